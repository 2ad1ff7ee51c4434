#!/usr/bin/env bash
# The chat page: built, or tested.
#
#   scripts/web.sh build   web/ -> ktransformers/server/static (committed; needs node 20.19 or newer)
#   scripts/web.sh test    unit tests, then the built page in Chromium; says what it skips, and why
#   scripts/web.sh pictures   the same tests, which also take docs/images/web-*.png
set -eu
cd "$(dirname "$0")/../web"
work=${1:-build}

if ! command -v node >/dev/null || ! command -v npm >/dev/null ||
  ! node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)'; then
  has=$(command -v node >/dev/null && node --version || echo none)
  if [ "$work" = build ]; then
    echo "error: node 20.19 or newer with npm is needed to build the page, found: $has; the built page in ktransformers/server/static is used without it" >&2
    exit 2
  fi
  echo "skipped: the page's own tests need node 20.19 or newer with npm, found: $has"
  exit 0
fi

export npm_config_fund=false npm_config_audit=false npm_config_update_notifier=false
# npm ci where the lock file changed since the last time; omit-lockfile-registry-resolved keeps the
# registry of whoever built last out of the lock file.
if ! cmp -s package-lock.json node_modules/.kt-lock; then
  npm ci --no-progress
  cp package-lock.json node_modules/.kt-lock
fi

# The real server with the real chat model, where both are there; the tests say so where not.
start_server() {
  py=$PWD/../${VENV:-.venv}/bin/python
  model=$PWD/../.cache/models/SmolLM2-135M-Instruct-moe8.gguf
  [ -z "${KT_WEB_SERVER:-}" ] && [ -x "$py" ] && [ -f "$model" ] || return 0
  log=$(mktemp)
  (cd .. && exec "$py" -m ktransformers serve --gguf_path "$model" --port 0) 2>"$log" &
  server=$!
  trap 'kill $server 2>/dev/null; rm -f "$log"' EXIT
  for _ in $(seq 600); do
    KT_WEB_SERVER=$(sed -n 's#.*\(http://127\.0\.0\.1:[0-9]*\).*#\1/#p' "$log" | head -n 1)
    [ -z "$KT_WEB_SERVER" ] || break
    kill -0 $server 2>/dev/null || { cat "$log" >&2; exit 1; }
    sleep 0.1
  done
  export KT_WEB_SERVER
}

# The committed build is what these sources give, byte for byte.
same_as_built() {
  fresh=$(mktemp -d)
  KT_WEB_OUT=$fresh/static npm run build
  if ! diff -rq "$fresh/static" ../ktransformers/server/static; then
    echo "FAILED: ktransformers/server/static is not what web/ builds: run make web" >&2
    exit 1
  fi
  rm -rf "$fresh"
}

case $work in
  build) npm run build ;;
  test | pictures)
    same_as_built
    npm test
    [ "$work" = test ] || export KT_PICTURES=$PWD/../docs/images
    start_server
    npm run test:browser
    ;;
  *) echo "error: $work: build, test or pictures" >&2; exit 2 ;;
esac
