#!/bin/sh
# Builds the GGUF reader's fuzzer (clang, ASan + UBSan) and runs it; exits non-zero on any finding.
#
#   tests/tools/fuzz.sh [EXECUTIONS]      default 200000; one core
#
# CLANG (clang++), PYTHON (python3), FUZZ_DIR (build/fuzz: binary, corpus, findings; the corpus is
# kept and grown from run to run), FUZZ_ARGS (more libFuzzer options).
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
executions=${1:-200000}
dir=${FUZZ_DIR:-$root/build/fuzz}
clang=${CLANG:-}
for name in clang++ clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14; do
  [ -n "$clang" ] || clang=$(command -v $name || true)
done
if [ -z "$clang" ]; then
  echo "error: fuzzing needs clang with libFuzzer; on Debian: apt install clang" >&2
  exit 2
fi
mkdir -p "$dir/findings"
"${PYTHON:-python3}" "$root/tests/tools/fuzz_seeds.py" "$dir"

flags="-std=c++20 -O1 -g -Wall -Wextra -fno-omit-frame-pointer -fno-sanitize-recover=all"
flags="$flags -fsanitize=fuzzer,address,undefined -I$root/csrc"
cache=$(command -v ccache || true)
rm -f "$dir"/*.o
(
  cd "$dir"
  ls "$root"/tests/cpp/fuzz/fuzz_gguf.cpp "$root"/csrc/gguf/*.cpp "$root"/csrc/quant/refused.cpp \
    "$root"/csrc/base/os_linux_file.cpp | xargs -P "$(nproc)" -n 1 $cache "$clang" $flags -c
)
"$clang" $flags "$dir"/*.o -o "$dir/fuzz_gguf"

# 64 MiB: what the reader may hold beyond the file itself.
exec "$dir/fuzz_gguf" -runs="$executions" -dict="$dir/gguf.dict" -max_len=4096 -timeout=10 \
  -malloc_limit_mb=64 -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$dir/findings/" \
  ${FUZZ_ARGS:-} "$dir/corpus"
