#!/usr/bin/env bash
# Fetches vocabularies and token vectors into .cache/token-vectors, from the source archive of a PyPI
# package (76 MB; nothing of it is built or run beyond what pip needs to name the package).
#   usage: fetch_token_vectors.sh [PYTHON]     a second run does nothing
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
version=0.3.36
target=.cache/token-vectors
[ "$(cat "$target/VERSION" 2>/dev/null)" = "$version" ] && exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python -d "$work" \
  "llama-cpp-python==$version"
rm -rf "$target" && mkdir -p "$target"
models=llama_cpp_python-$version/vendor/llama.cpp/models
tar -xzf "$work/llama_cpp_python-$version.tar.gz" -C "$target" --strip-components=4 --wildcards \
  "$models/ggml-vocab-*" "$models/templates/*.jinja"
echo "$version" > "$target/VERSION"
echo "token vectors: $(ls "$target"/*.inp | wc -l) in $target"
