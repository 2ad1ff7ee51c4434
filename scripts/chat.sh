#!/usr/bin/env bash
# `make chat`: whatever is missing first (environment, module, model), then the conversation.
#   PROMPT="..."    answer this once, greedily, and end
#   MODEL=my.gguf   talk to this model; default: SmolLM2-135M-Instruct sliced into a mixture of experts
# Every finished step leaves a stamp or a file, so that a second run goes straight to the prompt.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
py=$venv/bin/python
started=${KT_STARTED:-$(date +%s)}
export YES=${YES:-} PROMPT=${PROMPT:-} MODEL=${MODEL:-}

mkdir -p .cache
: >"$KT_DOWNLOADS" # what this run downloads, and no other
make -s "$venv/.done/package"
make core >/dev/null
[ -n "$MODEL" ] || make chat_model
model=${MODEL:-.cache/models/SmolLM2-135M-Instruct-moe8.gguf}

if [ -n "$PROMPT" ]; then
  status=0
  "$py" -m ktransformers.local_chat --gguf_path "$model" --prompt "$PROMPT" --temperature 0 || status=$?
  echo "make chat: first answer $(($(date +%s) - started)) s after the start, downloaded $("$py" scripts/downloaded.py "$KT_DOWNLOADS")"
  exit $status
fi
echo "make chat: ready $(($(date +%s) - started)) s after the start, downloaded $("$py" scripts/downloaded.py "$KT_DOWNLOADS")"
exec "$py" -m ktransformers.local_chat --gguf_path "$model"
