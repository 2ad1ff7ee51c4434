#!/usr/bin/env bash
# Finds the system packages the build needs and installs the missing ones.
#
#   scripts/system_packages.sh build|test|check [--list]
#
# A thing counts as there when it works, however it came (a compiler from elsewhere is fine). As root the
# missing packages are installed at once; otherwise the script asks before it calls sudo (YES=1: does not
# ask); without sudo or a terminal it prints the one line to run and ends with 1.
# PYTHON names the interpreter (default python3). What is downloaded is added to the file $KT_DOWNLOADS.
set -u
level=${1:-build}
python=${PYTHON:-python3}
missing=()
need() { missing+=("$@"); }

header() { # header NAME: can the C++ compiler see it?
  echo "#include <$1>" | g++ -std=c++20 -E -x c++ - >/dev/null 2>&1
}

command -v g++ >/dev/null || need g++
command -v cmake >/dev/null || need cmake
command -v ninja >/dev/null || need ninja-build
if command -v "$python" >/dev/null; then
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $python is $("$python" -V 2>&1); Python 3.11 or newer is needed (PYTHON=/path/to/python3.12 names another)" >&2
    exit 1
  fi
  "$python" -c 'import venv, ensurepip' 2>/dev/null || need python3-venv
  "$python" - <<'PY' || need python3-dev
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
PY
else
  need python3 python3-venv python3-dev
fi
if command -v g++ >/dev/null; then
  header yaml-cpp/yaml.h || need libyaml-cpp-dev
  [ "$level" = build ] || header gtest/gtest.h || need libgtest-dev
else
  need libyaml-cpp-dev
  [ "$level" = build ] || need libgtest-dev
fi
if [ "$level" = check ]; then
  command -v clang++ >/dev/null || ls /usr/bin/clang++-* >/dev/null 2>&1 || need clang
  command -v debootstrap >/dev/null || [ -x /usr/sbin/debootstrap ] || need debootstrap
  command -v patchelf >/dev/null || need patchelf
fi

[ ${#missing[@]} -eq 0 ] && exit 0
if [ "${2:-}" = --list ]; then
  printf '%s\n' "${missing[@]}"
  exit 0
fi

line="apt-get install -y --no-install-recommends ${missing[*]}"
if ! command -v apt-get >/dev/null; then
  echo "error: missing here: ${missing[*]} (Debian's names); install your system's packages of that kind and run this again" >&2
  exit 1
fi
if [ "$(id -u)" = 0 ]; then
  sudo=
elif [ -n "${YES:-}" ] && command -v sudo >/dev/null; then
  sudo=sudo
elif [ -t 0 ] && command -v sudo >/dev/null; then
  printf 'These packages are missing: %s\nInstall them with sudo now? [y/N] ' "${missing[*]}"
  read -r answer
  case $answer in [yY]*) sudo=sudo ;; *) echo "Run this, then again what you ran: sudo $line" >&2; exit 1 ;; esac
else
  echo "Some packages are missing. Run this, then again what you ran: sudo $line" >&2
  exit 1
fi

export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() { $sudo env DEBIAN_FRONTEND=noninteractive LC_ALL=C $line </dev/null 2>&1 | tee "$log"; return "${PIPESTATUS[0]}"; }
echo "installing: ${missing[*]}"
# The lists of a new machine are empty or old: a failed install is tried once more with fresh ones.
if ! install; then
  $sudo apt-get update </dev/null || echo "warning: apt-get update failed; trying with what it got" >&2
  install || { echo "error: could not install: ${missing[*]}" >&2; exit 1; }
fi
if [ -n "${KT_DOWNLOADS:-}" ]; then
  mkdir -p "$(dirname "$KT_DOWNLOADS")"
  grep -h '^Need to get' "$log" | sed 's/^/apt: /' >>"$KT_DOWNLOADS"
fi
exit 0
