"""Several Python threads on one model: each gets what it would get alone."""

import threading

import torch

from ktransformers import AutoModelForCausalLM
from tests.support.miniatures import miniature, write


def test_threads_generate_what_each_would_alone(tmp_path):
    path = write(miniature("qwen3moe", types="Q8_0"), tmp_path / "model.gguf")
    model = AutoModelForCausalLM.from_pretrained(path, cpu_infer=2)

    def answer(start: int) -> list[int]:
        prompt = torch.arange(start, start + 12)[None]
        return model.generate(
            prompt, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0].tolist()

    alone = [answer(20 * i) for i in range(4)]
    together: list = [None] * 4

    def run(i: int) -> None:
        together[i] = answer(20 * i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert len({tuple(row) for row in alone}) == 4
