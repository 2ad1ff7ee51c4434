#!/usr/bin/env bash
# Tries docs/interop's pages on LangChain and lm-eval, in an environment of their own beside ours.
#   usage: check_interop.sh [PYTHON]     PYTHON has the package
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-.venv/bin/python}
venv=build/interop
packages="lm-eval[api]==0.4.13 langchain-openai>=1,<2"
if [ "$(cat $venv/PACKAGES 2>/dev/null)" != "$packages" ]; then
  "$python" -m venv --clear $venv
  # Our packages are seen from there, so that torch is not fetched a second time.
  ours=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$ours" >"$(echo $venv/lib/python3*/site-packages)/ours.pth"
  # shellcheck disable=SC2086 # words
  scripts/pip.sh $venv install --quiet $packages
  echo "$packages" >$venv/PACKAGES
fi
PYTHONPATH=$PWD HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$python" -m tests.tools.check_interop "$PWD/$venv/bin/python"
