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
cd "$root"

. tests/tools/bare_system.sh
. /etc/os-release
suite=${SUITE:-$VERSION_CODENAME}
bare=$(mktemp -d "${TMPDIR:-/var/tmp}/kt-bare.XXXXXX")
trap 'bare_remove "$bare"' EXIT
echo "== a bare $suite"
bare_make "$bare" "$suite" git,make,python3,ca-certificates
bare_mount "$bare"
bare_passed

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
