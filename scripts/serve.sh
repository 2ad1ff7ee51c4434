#!/usr/bin/env bash
# `make serve`: whatever is missing first (environment, module, model), then the server.
#   MODEL=my.gguf    serve this model; default: SmolLM2-135M-Instruct sliced into a mixture of experts
#   ARGS="..."       more flags, e.g. ARGS="--port 8080 --api_key secret"
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
export YES=${YES:-} MODEL=${MODEL:-}

mkdir -p .cache
make -s "$venv/.done/package"
make core >/dev/null
[ -n "$MODEL" ] || make chat_model
model=${MODEL:-.cache/models/SmolLM2-135M-Instruct-moe8.gguf}
# shellcheck disable=SC2086 # ARGS are words
exec "$venv/bin/python" -m ktransformers.cli.main serve --gguf_path "$model" ${ARGS:-}
