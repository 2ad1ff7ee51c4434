# Sourced: bare systems that see this machine's package sources, proxies, certificates and pip settings,
# folders of wheels included, and nothing else of it. Needs root and a mount namespace of its own.

# bare_make FOLDER SUITE PACKAGES: debootstrap, with this machine's sources of the same release.
bare_make() {
  local folder=$1 suite=$2 include=$3 sources mirror
  targets() { apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' | sort -u; }
  [ -n "$(targets)" ] || apt-get update >/dev/null
  sources=$(targets | awk -v suite="$suite" '$2 ~ "^" suite "([-/]|$)" && $3 == "main"')
  mirror=$(awk -v suite="$suite" '$2 == suite { print $1; exit }' <<<"$sources")
  [ -n "$mirror" ] || { echo "error: no package source of this machine serves $suite" >&2; exit 2; }
  debootstrap --variant=minbase ${include:+--include=$include} "$suite" "$folder" "$mirror" >"$folder.log" 2>&1 ||
    { tail -n 20 "$folder.log" >&2; exit 1; }
  rm -f "$folder.log"
  awk '{ print "deb", $1, $2, $3 }' <<<"$sources" >"$folder/etc/apt/sources.list"
  apt-config dump | grep -E '^Acquire::(http|https|Check|Retries|ForceIPv4)' >"$folder/etc/apt/apt.conf.d/01host" || true
  cp -L /etc/resolv.conf /etc/hosts "$folder/etc/"
  # pip: its settings, and the local folders they name (an index folder's files lie beside it).
  python3 -m pip config list | sed -n "s/^global\.\([a-z-]*\)='\(.*\)'$/\1 = \2/p" | sed '1i [global]' >"$folder/etc/pip.conf"
}

# bare_mount FOLDER: kernel file systems, folders of wheels, and a copy of the certificates: a package
# installed inside may write that folder anew, from Debian's and those in /usr/local.
bare_mount() {
  local folder=$1 place
  mount -t proc proc "$folder/proc"
  mount --rbind /dev "$folder/dev"
  mount --rbind /sys "$folder/sys"
  mkdir -p "$folder/etc/ssl/certs" "$folder/usr/local/share/ca-certificates"
  cp -rL --remove-destination /etc/ssl/certs/. "$folder/etc/ssl/certs/" 2>/dev/null || true
  cp -L /usr/local/share/ca-certificates/*.crt "$folder/usr/local/share/ca-certificates/" 2>/dev/null || true
  for place in $(python3 -m pip config list | grep -oE "(file://)?/[^' ]+" | sed 's#^file://##'); do
    [ -d "$place" ] || continue
    [ "$(basename "$place")" = simple ] && place=$(dirname "$place")
    mkdir -p "$folder$place"
    mountpoint -q "$folder$place" || mount --bind -o ro "$place" "$folder$place"
  done
}

# bare_remove FOLDER: unmounted first, for it holds bind mounts of this machine. KEEP=1 leaves it.
bare_remove() {
  findmnt -rno TARGET | grep "^$1/" | sort -r | xargs -r -n 1 umount -l
  [ -n "${KEEP:-}" ] || rm -rf --one-file-system "$1"
}

# bare_passed: sets the array passed to what a bare system may know of this one's environment.
bare_passed() {
  local name value
  passed=()
  while IFS='=' read -r name value; do
    [[ $name =~ ^([a-z]+_proxy|[A-Z]+_PROXY|SSL_.*|.*_CA_BUNDLE|PIP_.*|TORCH|TORCH_ARGS)$ ]] && passed+=("$name=$value")
  done < <(env)
  return 0
}
