#!/usr/bin/env bash
# pip of the virtual environment, quiet about what is already there; notes what it downloaded.
#
#   scripts/pip.sh VENV install|download ARGS...
#
# Lines "Downloading …" and "Processing …" (a file of a local wheel folder) go to $KT_DOWNLOADS, from
# which scripts/downloaded.py adds up the megabytes.
set -u
venv=$1
command=$2
shift 2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$venv/bin/python" -m pip "$command" --disable-pip-version-check --no-color --progress-bar off "$@" </dev/null 2>&1 |
  tee "$log" | grep --line-buffered -v -e '^Requirement already satisfied' -e '^Looking in ' -e '^WARNING: Location '
status=${PIPESTATUS[0]}
if [ -n "${KT_DOWNLOADS:-}" ]; then
  mkdir -p "$(dirname "$KT_DOWNLOADS")"
  grep -h -E '^ *(Downloading|Processing) ' "$log" | sed 's/^ */pip: /' >>"$KT_DOWNLOADS"
fi
exit "$status"
