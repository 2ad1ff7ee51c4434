#!/usr/bin/env bash
# Runs lm-eval's Hugging Face adapter over the real chat model (check_lm_eval.py), in an environment
# of its own beside ours: about 300 MB of packages that nothing else here needs.
#   usage: check_lm_eval.sh [PYTHON]     PYTHON has the package, torch and transformers
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-.venv/bin/python}
venv=build/lm-eval
version=0.4.13
if [ "$(cat $venv/VERSION 2>/dev/null)" != $version ]; then
  "$python" -m venv --clear $venv
  # Our packages are seen from there, so that torch is not fetched a second time.
  ours=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$ours" >"$(echo $venv/lib/python3*/site-packages)/ours.pth"
  scripts/pip.sh $venv install --quiet "lm-eval==$version" accelerate peft
  echo $version >$venv/VERSION
fi
PYTHONPATH=. HF_HUB_OFFLINE=1 TQDM_DISABLE=1 $venv/bin/python tests/tools/check_lm_eval.py
