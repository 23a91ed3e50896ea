#!/usr/bin/env bash
# Runs a throwaway Redis on 127.0.0.1, for tests and measurements. Unpacks the Debian packages under
# a cache folder and installs nothing; every start begins with an empty database.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/redis.sh run PORT [OPTION...]   run it until standard input closes
       scripts/redis.sh install                only fetch the packages, as the first run does

Listens on 127.0.0.1:PORT and prints `url=redis://127.0.0.1:PORT/0` once it answers. Keeps nothing on
disk unless an OPTION of redis-server says so: --appendonly yes --appendfsync everysec

The first run needs apt-get and root (or sudo without a password), unless redis-server is installed.
REDIS_CACHE: where packages and run folders go (default .cache/redis).
TEXT
}

die() {
  echo "redis.sh: $1" >&2
  exit "${2:-1}"
}

# shellcheck source=scripts/debs.sh
source "$(dirname "${BASH_SOURCE[0]}")/debs.sh"
CACHE=${REDIS_CACHE:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.cache/redis}

install() {
  unpack_debs "$CACHE" redis-server redis-server
}

# ---- the server: ended by its pid only

answers() { # whether it answers PING
  local line
  { exec 3<>"/dev/tcp/127.0.0.1/$PORT"; } 2>/dev/null || return 1
  printf 'PING\r\n' >&3
  IFS= read -r -t 2 line <&3 || line=
  exec 3>&-
  [[ $line == +PONG* ]]
}

stop() {
  kill -9 "$SERVER" 2>/dev/null || true # nothing it stores outlives it
  wait "$SERVER" 2>/dev/null || true
  rm -rf "$RUN"
}

run() { # OPTION...
  local deadline=$((SECONDS + 20)) lib
  RUN=$CACHE/run-$PORT
  rm -rf "$RUN"
  mkdir -p "$RUN"
  if [ -n "$ROOT" ]; then
    lib=$(echo "$ROOT"/usr/lib/*-linux-gnu)
    export PATH=$ROOT/usr/bin:$PATH LD_LIBRARY_PATH=$lib
  fi
  redis-server --bind 127.0.0.1 --port "$PORT" --dir "$RUN" --save '' --appendonly no "$@" \
    >"$RUN/out" 2>&1 </dev/null &
  SERVER=$!
  trap stop EXIT
  trap 'exit 130' INT TERM
  until answers; do
    kill -0 "$SERVER" 2>/dev/null || die "it ended while starting: $(tail -n 3 "$RUN/out")"
    [ $SECONDS -lt $deadline ] || die "it did not start within 20 seconds"
    sleep 0.05
  done
  echo "url=redis://127.0.0.1:$PORT/0"
  cat >/dev/null # until the parent closes the pipe or dies
}

# ---- the command line

case ${1:-} in
  install) install ;;
  run)
    PORT=${2:-}
    [[ $PORT =~ ^[0-9]+$ ]] || { usage >&2; exit 2; }
    install
    run "${@:3}"
    ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
