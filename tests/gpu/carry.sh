#!/usr/bin/env bash
# Fetches into .gpu/ what check.sh needs and a bare machine lacks: yaml-cpp as this system's own
# Debian packages, pure Python packages as wheels. Run it on a machine with a network and take .gpu/
# along (< 6 MB).
#
# The packages run where the C library is at least as new as here, dpkg can unpack them and the
# processor is the same. For another distribution install yaml-cpp's development package there
# (yaml-cpp-devel, yaml-cpp, libyaml-cpp-dev); check.sh takes what the system has, and --dry-run says
# whether what it has, or what was brought, can be linked and run.
set -eu
cd "$(dirname "$0")/../.."
mkdir -p .gpu
rm -rf .gpu/*.deb .gpu/*.whl .gpu/root .gpu/site
# pytest and what it imports; the others import nothing that transformers does not bring.
"${PYTHON:-python3}" -m pip download -q --no-deps --only-binary=:all: -d .gpu gguf==0.19.0 \
  'pybind11>=3' 'pytest>=8,<10' iniconfig pluggy packaging pygments
if ! command -v apt-get >/dev/null || ! command -v apt-cache >/dev/null; then
  echo "carry.sh: no apt-get here: install yaml-cpp's development package where the card is" >&2
  exit 1
fi
# libyaml-cpp0.7 on Debian 12, 0.8 on later ones: whichever the headers are of.
library=$(apt-cache depends libyaml-cpp-dev | sed -n 's/^ *Depends: \(libyaml-cpp[0-9].*\)$/\1/p')
(cd .gpu && apt-get download -q libyaml-cpp-dev $library)
ls -l .gpu
