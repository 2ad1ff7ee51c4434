#!/usr/bin/env bash
# What `docker build --target cpu .` does, where there is no Docker: the Dockerfile's own lines run in
# bare systems made by debootstrap, then the image's command serves a real model and is asked.
#
#   tests/tools/dockerfile.sh            as root; KEEP=1 leaves the folders
#
# The cuda target needs NVIDIA's base image and is not run; its lines are the same but for the build of
# the CUDA library, which `make cuda` and the cuda part of `make check` try. TORCH_ARGS and TORCH are
# build arguments.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
[ "$(id -u)" = 0 ] || { echo "error: needs root (it mounts and changes root)" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "error: debootstrap is missing; run: scripts/system_packages.sh check" >&2; exit 2; }
if [ -z "${KT_IN_NAMESPACE:-}" ]; then
  exec env KT_IN_NAMESPACE=1 unshare --mount --propagation private "$0" "$@"
fi
cd "$root"
model=.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf
[ -f "$model" ] || { echo "error: $model is missing; run: make chat_model" >&2; exit 2; }
. tests/tools/bare_system.sh
bare_passed
work=$(mktemp -d "${TMPDIR:-/var/tmp}/kt-image.XXXXXX")
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; bare_remove "$work"' EXIT
declare -A arguments image_of
environment=() user=root here=

stage() { # NAME IMAGE
  image_of[$1]=$2 here=$work/$1 user=root environment=()
  case $2 in debian:*) ;; *) echo "error: $2 cannot be made here" >&2; exit 2 ;; esac
  local suite=${2#debian:}
  suite=${suite%-slim}
  echo "== FROM $2 AS $1"
  [ -d "$work/base-$suite" ] || bare_make "$work/base-$suite" "$suite" ""
  cp -a "$work/base-$suite" "$here"
  bare_mount "$here"
}
enter() { # sets the array inside to what runs a command in the stage
  inside=(chroot --userspec="$user" "$here" env -i HOME=/tmp LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${passed[@]}" "${environment[@]}")
}
do_arg() { # NAME DEFAULT: before the first stage for all, then for one; the caller's variable wins
  local value=${2:-${arguments[$1]:-}}
  [ -z "${!1+set}" ] || value=${!1}
  arguments[$1]=$value
  environment+=("$1=$value")
}
do_env() { environment+=("$1=$2"); }
do_user() { user=$1; }
do_run() {
  echo "RUN $1"
  enter
  "${inside[@]}" /bin/sh -c "$1" </dev/null >"$work/log" 2>&1 || { tail -n 30 "$work/log"; exit 1; }
}
do_copy() { # STAGE FROM TO
  if [ -z "$1" ]; then
    mkdir -p "$here$3"
    git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -x -C "$here$3"
  else
    mkdir -p "$(dirname "$here$3")"
    cp -a "$work/$1$2" "$here$3"
  fi
}
do_start() {
  mkdir -p "$here/models"
  cp -L "$model" "$here/models/"
  echo "== $* (as $user)"
  enter
  # A shell's background commands ignore Ctrl-C unless told otherwise.
  env --default-signal=INT "${inside[@]}" "$@" --port 18777 >"$work/serve.log" 2>&1 </dev/null &
  server=$!
  for _ in $(seq 240); do
    grep -q 'at http' "$work/serve.log" && break
    kill -0 $server 2>/dev/null || break
    sleep 0.5
  done
  python3 - <<'PY' || { cat "$work/serve.log"; echo "FAILED: the image's command does not serve" >&2; exit 1; }
import json
import urllib.request

body = {"messages": [{"role": "user", "content": "What is the capital of Japan?"}], "temperature": 0}
request = urllib.request.Request(
    "http://127.0.0.1:18777/v1/chat/completions",
    json.dumps(body).encode(),
    {"Content-Type": "application/json"},
)
said = json.load(urllib.request.urlopen(request, timeout=120))["choices"][0]["message"]["content"]
print(said)
assert "Tokyo" in said
PY
  kill -INT $server
  status=0
  wait $server || status=$?
  server=
  [ $status = 130 ] || { echo "FAILED: ended with $status after Ctrl-C" >&2; exit 1; }
}

lines=$(python3 tests/tools/dockerfile_lines.py Dockerfile "${TARGET:-cpu}")
start=$(date +%s)
eval "$lines"
echo "passed: the lines of target ${TARGET:-cpu} in $(($(date +%s) - start)) s"
