"""A peer's side of bench.cpu under .venv-peers' Python: keeps a model and answers lines.

llama.cpp through llama-cpp-python is driven by its C API, token by token, as our own side is;
xllamacpp has a server only (on the loopback address), whose own timings are taken.
"""

import json
import random
import sys
import time
import urllib.request

from bench.answering import answer

ERROR = 4  # of ggml's log levels
ROOM = 1280  # positions beyond the longest context


def positions(job: dict) -> int:
    return (job["longest"] + ROOM + 255) // 256 * 256


class LlamaCpp:
    """llama-cpp-python, built for this machine."""

    def __init__(self, job: dict):
        import llama_cpp

        self.api = llama_cpp
        self.rng = random.Random(7)
        said: list[str] = []  # errors; anything else is not told
        self.log = llama_cpp.llama_log_callback(
            lambda level, text, data: said.append(text.decode()) if level == ERROR else None
        )
        llama_cpp.llama_log_set(self.log, None)
        llama_cpp.llama_backend_init()
        start = time.perf_counter()
        self.model = llama_cpp.llama_model_load_from_file(
            job["model"].encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            why = said[0].strip() if said else "it does not say why"
            raise RuntimeError(f"llama.cpp does not load the model: {why}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = positions(job)
        params.n_batch, params.n_ubatch, params.n_seq_max = 2048, 512, 1
        params.n_threads = params.n_threads_batch = job["threads"]
        self.handle = llama_cpp.llama_init_from_model(self.model, params)
        if not self.handle:
            raise RuntimeError("llama.cpp makes no context")
        seconds = time.perf_counter() - start
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        self.length = 0  # of what the context holds
        name = f"llama-cpp-python {llama_cpp.__version__}"
        self.facts = {"engine": name, "load_seconds": seconds, "threads": job["threads"]}
        self.prompt(32)  # first touch of its memory

    def evaluate(self, count: int) -> float:
        """Seconds for `count` random tokens behind what the context holds; logits of the last."""
        api = self.api
        tokens = [self.rng.randrange(300, self.vocab) for _ in range(count)]
        begin = time.perf_counter()
        for start in range(0, count, 2048):
            part = tokens[start : start + 2048]
            array = (api.llama_token * len(part))(*part)
            if api.llama_decode(self.handle, api.llama_batch_get_one(array, len(part))) != 0:
                raise RuntimeError("llama_decode failed")
        api.llama_synchronize(self.handle)
        self.length += count
        return time.perf_counter() - begin

    def forget(self, length: int) -> None:
        """What lies behind the first `length` positions."""
        memory = self.api.llama_get_memory(self.handle)
        if not self.api.llama_memory_seq_rm(memory, 0, length, -1):
            raise RuntimeError(f"llama.cpp does not forget positions from {length} on")
        self.length = length

    def prompt(self, length: int) -> float:
        self.forget(0)
        return self.evaluate(length)

    def context(self, length: int) -> int:
        """Evaluates what is missing to `length` positions, forgets what is more."""
        if self.length > length:
            self.forget(length)
        elif self.length < length:
            self.evaluate(length - self.length)
        return self.length

    def decode(self, tokens: int) -> list[float]:
        """Seconds of each token behind the context, which is as long again afterwards."""
        length = self.length
        self.evaluate(1)  # threads wake
        seconds = [self.evaluate(1) for _ in range(tokens)]
        self.forget(length)
        return seconds


class XLlamaCpp:
    """xllamacpp's wheel: llama.cpp built for AVX2."""

    def __init__(self, job: dict):
        import importlib.metadata

        import xllamacpp

        self.rng = random.Random(7)
        params = xllamacpp.CommonParams()
        params.model.path = job["model"]
        params.n_ctx, params.n_parallel, params.warmup = positions(job), 1, False
        params.cache_ram_mib = 0  # past prompts are not kept beside the slot's
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
        start = time.perf_counter()
        self.server = xllamacpp.Server(params)
        seconds = time.perf_counter() - start
        self.vocab = job["vocab"]
        self.behind = self.tokens(1)
        name = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
        self.facts = {"engine": name, "load_seconds": seconds, "threads": job["threads"]}
        self.prompt(32)  # first touch of its memory

    def tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(300, self.vocab) for _ in range(count)]

    def completion(self, prompt: list[int], tokens: int, is_kept: bool = True) -> dict:
        """The server's timings. is_kept: what it holds of the prompt is not evaluated again."""
        body = {
            "prompt": prompt,
            "n_predict": tokens,
            "ignore_eos": True,
            "cache_prompt": is_kept,
            "top_k": 1,
        }
        request = urllib.request.Request(
            self.server.listening_address + "/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)["timings"]

    def prompt(self, length: int) -> float:
        return self.completion(self.tokens(length), 1, is_kept=False)["prompt_ms"] / 1000.0

    def context(self, length: int) -> int:
        if len(self.behind) != length:
            self.behind = self.tokens(length)
            self.completion(self.behind, 1)
        return length

    def decode(self, tokens: int) -> list[float]:
        """The mean token's seconds. The first comes out of the prompt, whose last position is
        evaluated again; the server's clock begins behind it."""
        timings = self.completion(self.behind, tokens + 1)
        return [timings["predicted_ms"] / 1000.0 / (timings["predicted_n"] - 1)]


ENGINES = {"llama.cpp": LlamaCpp, "xllamacpp": XLlamaCpp}


if __name__ == "__main__":
    sys.exit(answer(lambda job: ENGINES[job["engine"]](job)))
