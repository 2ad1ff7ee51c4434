#!/usr/bin/env bash
# The C++ tests under sanitizers, each in a build folder of its own:
#   tests/tools/sanitize.sh [address|thread]...      both by default
# Kernels are built with -O1 for threads and -O0 for memory: optimising what the checks of undefined
# behaviour make of the scalar kernels takes GCC 12 more than a quarter of an hour.
# Any report ends the test it came from with a failure. FILTER=... names a part (ctest -R);
# REPORTS=... is the folder of the JUnit files.
set -eu
cd "$(dirname "$0")/../.."
export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
[ $# -gt 0 ] || set -- address thread
for kind in "$@"; do
  case $kind in
    address) folder=build-asan sanitizers=address,undefined optimize=-O0 ;;
    thread) folder=build-tsan sanitizers=thread optimize=-O1 ;;
    *)
      echo "error: sanitize.sh $kind: address or thread" >&2
      exit 2
      ;;
  esac
  cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DKT_SANITIZE="$sanitizers" \
    -DKT_BUILD_PYTHON=OFF -DKT_BUILD_TESTS=ON -DKT_ISA_OPTIMIZE=$optimize >"$folder.log" || {
    cat "$folder.log"
    exit 1
  }
  mv "$folder.log" "$folder/configure.log"
  cmake --build "$folder" --target kt_tests -- --quiet
  ctest --test-dir "$folder" --no-tests=error --output-on-failure --progress --timeout 600 \
    --output-junit "${REPORTS:-$PWD/$folder}/$kind.xml" ${FILTER:+-R "$FILTER"}
done
