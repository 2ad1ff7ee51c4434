#!/usr/bin/env bash
# All of `make test`, step by step, with the time of each; see scripts/report.py for the closing table.
set -u
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
build=${BUILD:-build}
export KT_REPORT=$build/report
rm -rf "$KT_REPORT"
mkdir -p "$KT_REPORT"
step=scripts/step.sh
report() { "${PYTHON:-python3}" scripts/report.py "$KT_REPORT"; exit; }
py=$PWD/$venv/bin/python

$step "system packages" scripts/system_packages.sh test || report
$step "torch and build tools" make "$venv/.done/torch" "$venv/.done/tools" || report
$step "C++ configure" cmake -S . -B "$build" -G Ninja -DPython_EXECUTABLE="$py" -DKT_BUILD_TESTS=ON || report
$step "C++ build" cmake --build "$build" -- --quiet || report
if command -v nvcc >/dev/null; then
  $step "CUDA compile, sm_90" tests/tools/nvcc.sh 90
else
  echo "skipped: CUDA compile (no nvcc here)"
fi
$step "package and dependencies" make test_env || report
$step "token vectors" tests/tools/fetch_token_vectors.sh "$py"
$step "token vectors" tests/tools/fetch_token_vectors.sh "$py" || report
$step "real chat model" make chat_model || report
export KT_EMULATED_KERNELS=$PWD/$KT_REPORT/kernels.tsv
rm -f "$KT_EMULATED_KERNELS"
$step "C++ tests" ctest --test-dir "$build" --no-tests=error --output-on-failure --progress \
  --timeout 300 --output-junit "$PWD/$KT_REPORT/cpp.xml"
"$py" tests/tools/kernel_table.py "$KT_EMULATED_KERNELS"
unset KT_EMULATED_KERNELS
$step "Python tests" "$py" -m pytest -o junit_family=xunit1 --junitxml="$KT_REPORT/python.xml" ${PYTEST_ARGS:-}
report
