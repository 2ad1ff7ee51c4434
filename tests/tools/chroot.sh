#!/usr/bin/env bash
# What a stranger sees: `make chat` in a bare system with git, make, python3 and certificates only.
#
#   tests/tools/chroot.sh            as root; SUITE names another release, KEEP=1 leaves the folder
#
# Fails unless the answer names Tokyo, within 15 minutes and 800 MB (MINUTES, MEGABYTES).
# The bare system sees this machine's package sources, proxies, certificates and pip settings, folders
# of wheels included, and nothing else of it. All mounts are in a namespace that ends with the script.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
minutes=${MINUTES:-15}
megabytes=${MEGABYTES:-800}
[ "$(id -u)" = 0 ] || { echo "error: needs root (it mounts and changes root)" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "error: debootstrap is missing; run: scripts/system_packages.sh check" >&2; exit 2; }
if [ -z "${KT_IN_NAMESPACE:-}" ]; then
  exec env KT_IN_NAMESPACE=1 unshare --mount --propagation private "$0" "$@"
fi

. /etc/os-release
suite=${SUITE:-$VERSION_CODENAME}
bare=$(mktemp -d "${TMPDIR:-/var/tmp}/kt-bare.XXXXXX")
cleanup() { # unmounted first: the folder holds bind mounts of this machine
  findmnt -rno TARGET | grep "^$bare/" | sort -r | xargs -r -n 1 umount -l
  [ -n "${KEEP:-}" ] || rm -rf --one-file-system "$bare"
}
trap cleanup EXIT

# Package sources: those of this machine that serve the same release, as plain lines.
targets() { apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' | sort -u; }
[ -n "$(targets)" ] || apt-get update >/dev/null
sources=$(targets | awk -v suite="$suite" '$2 ~ "^" suite "([-/]|$)" && $3 == "main"')
mirror=$(awk -v suite="$suite" '$2 == suite { print $1; exit }' <<<"$sources")
[ -n "$mirror" ] || { echo "error: no package source of this machine serves $suite" >&2; exit 2; }

echo "== a bare $suite"
debootstrap --variant=minbase --include=git,make,python3,ca-certificates "$suite" "$bare" "$mirror" >"$bare.log" 2>&1 ||
  { tail -n 20 "$bare.log" >&2; exit 1; }
rm -f "$bare.log"
awk '{ print "deb", $1, $2, $3 }' <<<"$sources" >"$bare/etc/apt/sources.list"
apt-config dump | grep -E '^Acquire::(http|https|Check|Retries|ForceIPv4)' >"$bare/etc/apt/apt.conf.d/01host" || true
cp -L /etc/resolv.conf /etc/hosts "$bare/etc/"
mount -t proc proc "$bare/proc"
mount --rbind /dev "$bare/dev"
mount --rbind /sys "$bare/sys"
mkdir -p "$bare/etc/ssl/certs"
mount --bind /etc/ssl/certs "$bare/etc/ssl/certs"

# pip: its settings, and the local folders they name (an index folder's files lie beside it).
python3 -m pip config list | sed -n "s/^global\.\([a-z-]*\)='\(.*\)'$/\1 = \2/p" | sed '1i [global]' >"$bare/etc/pip.conf"
for place in $(python3 -m pip config list | grep -oE "(file://)?/[^' ]+" | sed 's#^file://##'); do
  [ -d "$place" ] || continue
  [ "$(basename "$place")" = simple ] && place=$(dirname "$place")
  mkdir -p "$bare$place"
  mountpoint -q "$bare$place" || mount --bind -o ro "$place" "$bare$place"
done
passed=()
while IFS='=' read -r name value; do
  [[ $name =~ ^([a-z]+_proxy|[A-Z]+_PROXY|SSL_.*|.*_CA_BUNDLE|PIP_.*|TORCH|TORCH_ARGS)$ ]] && passed+=("$name=$value")
done < <(env)

git clone -q --no-hardlinks "$root" "$bare/ktransformers"
echo "== make chat, at commit $(git -C "$bare/ktransformers" rev-parse --short HEAD)"
start=$(date +%s)
status=0
chroot "$bare" env -i HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  "${passed[@]}" make --no-print-directory -C /ktransformers chat YES=1 PROMPT="What is the capital of Japan?" \
  </dev/null >"$bare/chat.log" 2>&1 || status=$?
seconds=$(($(date +%s) - start))
tail -n 12 "$bare/chat.log"
fetched=$(sed -n 's/^make chat: .*downloaded \([0-9]*\) MB.*/\1/p' "$bare/chat.log" | tail -n 1)

failed=
[ $status = 0 ] || failed="make chat ended with $status"
grep -q '^[^:]*Tokyo' "$bare/chat.log" || failed="${failed:+$failed; }no Tokyo in the answer"
grep -q '^eval rate: ' "$bare/chat.log" || failed="${failed:+$failed; }no statistics"
[ $seconds -le $((minutes * 60)) ] || failed="${failed:+$failed; }$seconds s are more than $minutes minutes"
[ "${fetched:-99999}" -le "$megabytes" ] || failed="${failed:+$failed; }${fetched:-no figure of} MB are more than $megabytes"

echo "== make chat again, without a network"
chroot "$bare" env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  unshare --net make --no-print-directory -C /ktransformers chat PROMPT="What is the capital of Japan?" </dev/null >"$bare/again.log" 2>&1 &&
  grep -q Tokyo "$bare/again.log" || { tail -n 12 "$bare/again.log"; failed="${failed:+$failed; }the second run failed"; }
grep "^make chat:" "$bare/again.log" || true
[ -z "$failed" ] || { echo "FAILED: $failed" >&2; exit 1; }
echo "passed: Tokyo after $seconds s and $fetched MB"
