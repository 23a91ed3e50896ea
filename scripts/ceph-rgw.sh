#!/usr/bin/env bash
# A real S3 server for tests: one Ceph monitor, one OSD that keeps everything in memory, and the
# RADOS gateway, all on 127.0.0.1. The Debian packages are unpacked under a cache folder, not
# installed, and every start begins with an empty store.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/ceph-rgw.sh start PORT [TLS_PORT]   start in the background, print how to reach it
       scripts/ceph-rgw.sh run PORT [TLS_PORT]     the same, and stop when standard input closes
       scripts/ceph-rgw.sh stop PORT               stop it and remove what it stored
       scripts/ceph-rgw.sh PORT                    short for start
       scripts/ceph-rgw.sh install                 only fetch the packages, as the first start does

Listens on 127.0.0.1 on PORT (http), TLS_PORT (https, self-signed) and PORT+1 to PORT+20 (inside).
Prints two users that may not see each other's buckets, and the certificate if there is one:

  endpoint=http://127.0.0.1:PORT access_key=... secret_key=... region=us-east-1
  other access_key=... secret_key=...
  tls endpoint=https://127.0.0.1:TLS_PORT certificate=...

The first start needs apt-get and root (or sudo without a password), unless radosgw, ceph-mon and
ceph-osd are installed. CEPH_CACHE: where packages and run folders go (default .cache/ceph).
TEXT
}

die() {
  echo "ceph-rgw.sh: $1" >&2
  exit "${2:-1}"
}

# shellcheck source=scripts/debs.sh
source "$(dirname "${BASH_SOURCE[0]}")/debs.sh"
CACHE=${CEPH_CACHE:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.cache/ceph}

install() {
  unpack_debs "$CACHE" "radosgw ceph-mon ceph-osd ceph" radosgw ceph-mon ceph-osd
}

use_packages() {
  local lib
  lib=$(echo "$ROOT"/usr/lib/*-linux-gnu)
  PLUGINS=$lib/ceph CLASSES=$lib/rados-classes
  export PATH=$ROOT/usr/bin:/usr/bin:$PATH
  if [ -n "$ROOT" ]; then
    export LD_LIBRARY_PATH=$lib:$PLUGINS:$ROOT/lib/${lib##*/}
    export PYTHONPATH=$ROOT/usr/lib/python3/dist-packages
  fi
  export CEPH_CONF=$RUN/ceph.conf
  export TCMALLOC_MAX_TOTAL_THREAD_CACHE_BYTES=33554432
}

# ---- daemons: each has a file with its pid in the run folder, and is ended by that pid only

ours() { # is the daemon of this pid file running, and not a stranger with a reused pid?
  [ -s "$1" ] && { tr '\0' ' ' <"/proc/$(cat "$1")/cmdline"; } 2>/dev/null \
    | grep -qF -- "$RUN/ceph.conf"
}

daemon() { # NAME COMMAND...
  setsid nohup "${@:2}" -f -c "$CEPH_CONF" >"$RUN/log/$1.out" 2>&1 </dev/null 8>&- &
  echo $! >"$RUN/$1.pid"
  disown # so that bash has nothing to say when it is ended
}

stop() {
  local name
  for name in rgw osd mon; do # nothing it stores outlives it, so there is nothing to end gently
    if ours "$RUN/$name.pid"; then
      kill -9 "$(cat "$RUN/$name.pid")" || true
      while ours "$RUN/$name.pid"; do sleep 0.05; done
    fi
  done
  rm -rf "$RUN"
}

fail() { # what was awaited, and whose log explains why it did not come
  local why
  why=$(tail -n 5 "$RUN/log/$2.out" 2>/dev/null || true)
  stop
  die "$1. The last of its log: $why"
}

wait_for() { # DAEMON COMMAND...: at most 60 seconds
  local deadline=$((SECONDS + 60))
  until "${@:2}" 2>/dev/null; do
    # not `ours`: between its fork and its exec a daemon still bears the name of this script
    kill -0 "$(cat "$RUN/$1.pid")" 2>/dev/null || fail "$1 ended while starting (are ports $PORT to $((PORT + 20)) free?)" "$1"
    [ $SECONDS -lt $deadline ] || fail "$1 did not start within 60 seconds" "$1"
    sleep 0.1
  done
}

answers() { # does it speak HTTP?
  local line
  exec 3<>"/dev/tcp/127.0.0.1/$PORT" || return 1
  printf 'GET / HTTP/1.0\r\n\r\n' >&3
  IFS= read -r -t 2 line <&3 || line=
  exec 3>&-
  [[ $line == HTTP/* ]]
}

osd_is_up() { [[ $(ceph osd stat) == *"1 up"* ]]; }

ceph() { timeout 30 python3 "$(type -P ceph)" -c "$CEPH_CONF" "$@"; }

user() { # NAME: a user whose keys can be told from its name, as nothing secret is ever kept here
  radosgw-admin -n client.rgw -c "$CEPH_CONF" user create --uid="$1" --display-name="$1" \
    --access-key="$1-access-key" --secret-key="$1-secret-key" >"$RUN/log/user-$1.out" 2>&1 \
    || fail "the user $1 could not be made" "user-$1"
}

configure() {
  local tls=
  if [ -n "$TLS_PORT" ]; then
    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost \
      -addext subjectAltName=IP:127.0.0.1,DNS:localhost \
      -keyout "$RUN/tls.key" -out "$RUN/tls.crt" 2>"$RUN/log/tls.out" \
      || fail "no certificate could be made" tls
    tls="ssl_endpoint=127.0.0.1:$TLS_PORT ssl_certificate=$RUN/tls.crt ssl_private_key=$RUN/tls.key"
  fi
  cat >"$CEPH_CONF" <<CONF
[global]
fsid = $FSID
mon host = [v2:127.0.0.1:$((PORT + 1))]
mon initial members = a
# Only this machine can reach it, and a test server keeps no secrets.
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
ms mon service mode = crc
ms mon cluster mode = crc
keyring = $RUN/keyring
run dir = $RUN
# A socket's path may have 107 characters, which a deep checkout exceeds.
admin socket =
log file = $RUN/log/\$name.log
crash dir = $RUN
plugin dir = $PLUGINS
erasure code dir = $PLUGINS/erasure-code
osd class dir = $CLASSES
ms bind ipv6 = false
ms bind msgr1 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
# One of everything, and no waiting for peers that will never come.
paxos propose interval = 0.05
paxos min wait = 0.01
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 2000
mon data avail crit = 1
mon data avail warn = 1
[mon.a]
mon data = $RUN/mon
public addr = [v2:127.0.0.1:$((PORT + 1))]
[osd.0]
osd data = $RUN/osd
osd objectstore = memstore
memstore device bytes = 6442450944
memstore page size = 65536
osd op num shards = 2
ms bind port min = $((PORT + 2))
ms bind port max = $((PORT + 20))
osd numa auto affinity = false
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:$PORT tcp_nodelay=1 $tls
rgw data = $RUN/rgw
rgw thread pool size = 64
rgw run sync thread = false
rgw enable usage log = false
# Deleted objects give back their memory soon.
rgw gc obj min wait = 5
rgw gc processor period = 5
CONF
}

start() {
  local osd_id
  FSID=$(cat /proc/sys/kernel/random/uuid) osd_id=$(cat /proc/sys/kernel/random/uuid)
  stop # what an earlier start left half-done
  mkdir -p "$RUN"/{mon,osd,rgw,log}
  configure
  touch "$RUN/keyring"
  { monmaptool --create --fsid "$FSID" --addv a "[v2:127.0.0.1:$((PORT + 1))]" "$RUN/monmap" \
    && ceph-mon -i a -c "$CEPH_CONF" --mkfs --monmap "$RUN/monmap" --keyring "$RUN/keyring"; } \
    >"$RUN/log/mkfs.out" 2>&1 || fail "the monitor's store could not be made" mkfs
  daemon mon ceph-mon -i a
  ceph osd new "$osd_id" >"$RUN/log/new.out" 2>&1 || fail "the monitor did not answer" mon
  ceph-osd -i 0 -c "$CEPH_CONF" --mkfs --osd-uuid "$osd_id" >"$RUN/log/mkfs.out" 2>&1 \
    || fail "the OSD's store could not be made" mkfs
  daemon osd ceph-osd -i 0
  wait_for osd osd_is_up
  user tester
  user other
  daemon rgw radosgw -n client.rgw
  wait_for rgw answers
}

tell() {
  echo "endpoint=http://127.0.0.1:$PORT access_key=tester-access-key" \
    "secret_key=tester-secret-key region=us-east-1"
  echo "other access_key=other-access-key secret_key=other-secret-key"
  [ ! -e "$RUN/tls.crt" ] || echo "tls endpoint=https://127.0.0.1:$TLS_PORT certificate=$RUN/tls.crt"
}

# ---- the command line

case ${1:-} in
  start | stop | run) COMMAND=$1; shift ;;
  install) install; exit 0 ;;
  -h | --help) usage; exit 0 ;;
  *) COMMAND=start ;;
esac
PORT=${1:-} TLS_PORT=${2:-}
[[ $PORT$TLS_PORT =~ ^[0-9]+$ ]] || { usage >&2; exit 2; }
RUN=$CACHE/run-$PORT

mkdir -p "$CACHE"
exec 8>"$CACHE/run-$PORT.lock"
flock 8 # one command at a time for one port
if [ "$COMMAND" = stop ]; then
  stop
  exit 0
fi
install
use_packages
if ! { ours "$RUN/rgw.pid" && answers; }; then start; fi
tell
if [ "$COMMAND" = run ]; then
  trap stop EXIT
  trap 'exit 130' INT TERM
  flock -u 8
  cat >/dev/null # until whoever started this closes the pipe, or dies
fi
