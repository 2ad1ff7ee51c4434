"""llama-server (xllamacpp) for bench.serve, run inside .venv-peers: prints its address and serves
until standard input ends. Argument: a JSON object with model, slots, context (tokens of a slot) and
threads. Exit status 3: not installed.
"""

import json
import sys


def main() -> int:
    job = json.loads(sys.argv[1])
    try:
        import xllamacpp
    except ImportError as error:
        print(error, file=sys.stderr)
        return 3
    params = xllamacpp.CommonParams()
    params.model.path = job["model"]
    params.n_parallel, params.n_ctx = job["slots"], job["slots"] * job["context"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
    params.warmup = False
    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address}), flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
