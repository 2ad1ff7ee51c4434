"""A peer's side of bench.cpu, run inside .venv-peers: a JSON job on standard input, its figures on
the last line. Exit status 3: that engine is not installed.

llama.cpp through llama-cpp-python is driven by its C API, token by token, as our own side is;
xllamacpp has a server only (on the loopback address), whose own timings are taken.
"""

import json
import random
import sys
import time
import urllib.request


class LlamaCpp:
    """llama-cpp-python, built for this machine."""

    def __init__(self, job: dict):
        import llama_cpp

        self.api = llama_cpp
        self.name = f"llama-cpp-python {llama_cpp.__version__}"
        self.rng = random.Random(7)
        longest = max([*job["prompts"], *job["contexts"], 512]) + job["decode"] + 128
        silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        self.keep = [silent]
        llama_cpp.llama_log_set(silent, None)
        llama_cpp.llama_backend_init()
        start = time.perf_counter()
        self.model = llama_cpp.llama_model_load_from_file(
            job["model"].encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError("llama.cpp does not load the model")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = (longest + 255) // 256 * 256
        params.n_batch, params.n_ubatch, params.n_seq_max = 2048, 512, 1
        params.n_threads = params.n_threads_batch = job["threads"]
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context")
        self.load_seconds = time.perf_counter() - start
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab = llama_cpp.llama_vocab_n_tokens(vocab)

    def evaluate(self, count: int) -> float:
        """Seconds for `count` random tokens behind what the context holds; logits of the last."""
        api = self.api
        tokens = [self.rng.randrange(300, self.vocab) for _ in range(count)]
        begin = time.perf_counter()
        for start in range(0, count, 2048):
            part = tokens[start : start + 2048]
            array = (api.llama_token * len(part))(*part)
            if api.llama_decode(self.context, api.llama_batch_get_one(array, len(part))) != 0:
                raise RuntimeError("llama_decode failed")
        api.llama_synchronize(self.context)
        return time.perf_counter() - begin

    def clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def prompt(self, length: int, then: int) -> tuple[float, list[float]]:
        """Seconds of a prompt, and of each of `then` tokens behind it."""
        self.clear()
        return self.evaluate(length), [self.evaluate(1) for _ in range(then)]


class XLlamaCpp:
    """xllamacpp's wheel: llama.cpp built for AVX2."""

    def __init__(self, job: dict):
        import importlib.metadata

        import xllamacpp

        self.name = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
        self.rng = random.Random(7)
        params = xllamacpp.CommonParams()
        params.model.path = job["model"]
        longest = max([*job["prompts"], *job["contexts"], 512]) + job["decode"] + 128
        params.n_ctx, params.n_parallel, params.warmup = (longest + 255) // 256 * 256, 1, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
        start = time.perf_counter()
        self.server = xllamacpp.Server(params)
        self.load_seconds = time.perf_counter() - start
        self.vocab = job["vocab"]

    def prompt(self, length: int, then: int) -> tuple[float, list[float]]:
        """Seconds of a prompt, and of each of `then` tokens behind it (their mean)."""
        body = {
            "prompt": [self.rng.randrange(300, self.vocab) for _ in range(length)],
            "n_predict": then + 1,  # the first comes out of the prompt
            "ignore_eos": True,
            "cache_prompt": False,
            "top_k": 1,
        }
        request = urllib.request.Request(
            self.server.listening_address + "/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as reply:
            timings = json.load(reply)["timings"]
        token = timings["predicted_ms"] / max(timings["predicted_n"], 1) / 1000.0
        return timings["prompt_ms"] / 1000.0, [token] * then


ENGINES = {"llama.cpp": LlamaCpp, "xllamacpp": XLlamaCpp}


def run(job: dict) -> dict:
    peer = ENGINES[job["engine"]](job)
    result = {"engine": peer.name, "load_seconds": peer.load_seconds, "threads": job["threads"]}
    peer.prompt(32, 0)  # warm
    result |= {"prompt": {}, "decode": {}}
    for length in sorted({*job["prompts"], *job["contexts"]}):
        is_prompt = length in job["prompts"]
        repeats = job["repeats"] if is_prompt and length <= 1024 else 1
        for turn in range(repeats):
            is_last = length in job["contexts"] and turn == repeats - 1
            seconds, tokens = peer.prompt(length, job["decode"] if is_last else 0)
            if is_prompt:
                result["prompt"].setdefault(str(length), []).append(seconds)
            if is_last:
                result["decode"][str(length)] = tokens
    return result


if __name__ == "__main__":
    try:
        outcome = run(json.load(sys.stdin))
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    print()
    print(json.dumps(outcome), flush=True)
