#!/usr/bin/env bash
# Debian's browser, without a screen, for the tests of links in a browser.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/chromium.sh install   install chromium unless it is there, or say what is missing

Needs apt-get and root (or sudo without a password). What apt-get says goes to .cache/chromium.log.
TEXT
}

die() {
  echo "chromium.sh: $1" >&2
  exit 1
}

install() {
  local sudo=() cache
  if type -P chromium >/dev/null; then return; fi
  type -P apt-get >/dev/null || die "there is no apt-get here; install chromium yourself"
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || die "apt-get needs root; run this once as root, or install chromium"
    sudo=(sudo -n)
  fi
  cache=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.cache
  mkdir -p "$cache"
  # The lists of packages may be missing, as in most containers, or too old.
  { "${sudo[@]}" apt-get update \
    && "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      -o DPkg::Lock::Timeout=300 chromium; } >"$cache/chromium.log" 2>&1 </dev/null \
    || die "apt-get could not install chromium: $(tail -n 3 "$cache/chromium.log")"
  type -P chromium >/dev/null || die "there is no chromium; see $cache/chromium.log"
}

case ${1:-} in
  install) install ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
