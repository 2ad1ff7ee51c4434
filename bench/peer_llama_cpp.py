"""Runs inside .venv-peers: JSON on standard input -> llama.cpp's greedy tokens on the last line.

Either Python binding of llama.cpp will do. Exit status 3: none is installed. The server that
xllamacpp starts listens on the loopback address and ends with this process.
"""

import json
import sys
import urllib.request


def with_llama_cpp_python(task: dict) -> list[list[int]]:
    from llama_cpp import Llama

    model = Llama(task["model"], n_ctx=2048, verbose=False)
    answers = []
    for prompt in task["prompts"]:
        model.reset()
        stream = model.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0)
        tokens: list[int] = []
        for token in stream:
            tokens.append(int(token))
            if len(tokens) == task["count"] or token == model.token_eos():
                break
        answers.append(tokens)
    return answers


def with_xllamacpp(task: dict) -> list[list[int]]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = task["model"]
    params.n_ctx, params.n_parallel = 2048, 1
    server = xllamacpp.Server(params)
    answers = []
    for prompt in task["prompts"]:
        body = {
            "prompt": prompt,
            "n_predict": task["count"],
            "temperature": 0,
            "return_tokens": True,
            "cache_prompt": False,
        }
        request = urllib.request.Request(
            server.listening_address + "/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as reply:
            answers.append(json.load(reply)["tokens"])
    return answers


def main() -> int:
    task = json.load(sys.stdin)
    for ask in (with_llama_cpp_python, with_xllamacpp):
        try:
            answers = ask(task)
        except ImportError:
            continue
        print()
        print(json.dumps(answers), flush=True)
        return 0
    return 3


if __name__ == "__main__":
    sys.exit(main())
