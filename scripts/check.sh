#!/usr/bin/env bash
# All of `make check`: what takes too long for every commit. Steps and closing table as in `make test`.
#   CHECK="symbols wheel" names a subset, FUZZ_EXECUTIONS=100000 fuzzes less.
set -u
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
export KT_REPORT=build/report-check
rm -rf $KT_REPORT
mkdir -p $KT_REPORT
step=scripts/step.sh
py=$PWD/$venv/bin/python
report() { "$py" scripts/report.py $KT_REPORT; exit; }

$step "system packages" scripts/system_packages.sh check || report
$step "environment" make "$venv/.done/test" core || report
$step "token vectors" tests/tools/fetch_token_vectors.sh "$py" || report
$step "real chat model" make chat_model || report
for part in ${CHECK:-symbols wheel cuda sanitize thread fuzz lm_eval openapi interop soak browser chroot image}; do
  case $part in
    symbols)
      $step "-O0 configure" cmake -S . -B build/O0 -G Ninja -DCMAKE_BUILD_TYPE=Debug \
        -DKT_BUILD_PYTHON=OFF -DKT_ISA_OPTIMIZE=-O0
      $step "-O0 build" cmake --build build/O0 -- --quiet
      KT_OBJECTS=build/O0 $step "-O0 symbol tests" "$py" -m pytest tests/python/test_symbols.py -o junit_family=xunit1 --junitxml="$KT_REPORT/symbols.xml"
      ;;
    wheel) $step "wheel" env VENV="$venv" tests/tools/wheel.sh ;;
    cuda)
      # Kernels for every card, Turing to Blackwell; only a machine with nvcc can.
      if command -v nvcc >/dev/null; then
        $step "CUDA configure" cmake -S . -B build/cuda-all -G Ninja -DKT_CUDA=ON -DKT_GPU_TESTS=ON \
          -DKT_BUILD_PYTHON=OFF -DCMAKE_CUDA_ARCHITECTURES="75;80;86;89;90;100;120"
        $step "CUDA build" cmake --build build/cuda-all -- --quiet
      else
        echo "skipped: cuda (no nvcc here)"
      fi
      ;;
    sanitize) $step "ASan+UBSan" env REPORTS="$PWD/$KT_REPORT" tests/tools/sanitize.sh address ;;
    thread) $step "TSan" env REPORTS="$PWD/$KT_REPORT" tests/tools/sanitize.sh thread ;;
    fuzz) $step "fuzzing" env PYTHON="$py" tests/tools/fuzz.sh "${FUZZ_EXECUTIONS:-10000000}" ;;
    lm_eval) $step "lm-eval's adapter" tests/tools/check_lm_eval.sh "$py" ;;
    openapi)
      $step "schemathesis, at length" env KT_SCHEMATHESIS="${KT_SCHEMATHESIS:-40}" "$py" -m pytest \
        tests/python/test_server_openapi.py -o junit_family=xunit1 --junitxml="$KT_REPORT/openapi.xml"
      ;;
    browser) $step "chat page in Chromium" env REPORTS="$PWD/$KT_REPORT" scripts/web.sh test ;;
    interop) $step "LangChain and lm-eval as clients" tests/tools/check_interop.sh "$py" ;;
    soak)
      $step "soak" env PYTHONPATH=. "$py" -m tests.tools.soak --minutes "${SOAK_MINUTES:-1}" --requests 2000
      $step "kill -9 and start again" env PYTHONPATH=. "$py" -m tests.tools.kill_restart --times 20
      ;;
    chroot) $step "chat on a bare system" tests/tools/chroot.sh ;;
    image) $step "the Dockerfile's lines" tests/tools/dockerfile.sh ;;
    *) echo "error: CHECK names $part; known: symbols wheel cuda sanitize thread fuzz lm_eval openapi interop soak browser chroot image" >&2; exit 2 ;;
  esac
done
report
