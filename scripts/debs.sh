# Debian packages, unpacked under a cache folder and not installed. To be sourced by scripts that have
# `die`; needs apt-get and root (or sudo without a password) unless the commands are installed.

# unpack_debs CACHE "COMMAND..." PACKAGE...
# Sets ROOT: the folder the packages are unpacked in, once; "" if all the commands are installed.
unpack_debs() {
  local cache=$1 commands=$2 packages=("${@:3}") first=${2%% *}
  ROOT=$cache/root
  if [ -x "$ROOT/usr/bin/$first" ]; then return; fi
  # shellcheck disable=SC2086  # several words
  if [ "$(type -P $commands | wc -l)" = "$(wc -w <<<"$commands")" ]; then
    ROOT=
    return
  fi
  mkdir -p "$cache"
  ( # two starts at a time: the second waits here, and finds it done
    flock 9
    if [ -x "$ROOT/usr/bin/$first" ]; then exit 0; fi
    download_debs
    rm -rf "$ROOT.new"
    mkdir "$ROOT.new"
    for package in "$cache"/debs/*.deb; do dpkg-deb -x "$package" "$ROOT.new"; done
    [ -x "$ROOT.new/usr/bin/$first" ] || die "the packages hold no $first; see $cache/apt.log"
    mv "$ROOT.new" "$ROOT" # last, so that a half-unpacked folder is never taken for a whole one
  ) 9>"$cache/install.lock"
}

download_debs() {
  local sudo=() yourself="install ${packages[*]} yourself"
  type -P apt-get >/dev/null || die "there is no apt-get here; $yourself"
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null \
      || die "apt-get needs root to download packages; run this once as root, or $yourself"
    sudo=(sudo -n)
  fi
  mkdir -p "$cache/debs/partial"
  local fetch=("${sudo[@]}" apt-get install -y --no-install-recommends --download-only
    -o "Dir::Cache::archives=$cache/debs/" -o DPkg::Lock::Timeout=300 "${packages[@]}")
  # The lists of packages may be missing, as in most containers, or too old.
  "${fetch[@]}" >"$cache/apt.log" 2>&1 \
    || { "${sudo[@]}" apt-get update && "${fetch[@]}"; } >>"$cache/apt.log" 2>&1 \
    || die "apt-get could not download ${packages[*]}: $(tail -n 3 "$cache/apt.log")"
}
