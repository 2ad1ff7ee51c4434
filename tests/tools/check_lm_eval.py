"""lm-eval's Hugging Face adapter over the real chat model: what it computes is what we compute.

    python tests/tools/check_lm_eval.py        (check_lm_eval.sh makes the environment)

Requests are made in memory; nothing is fetched. Exit status 1 where a figure is off.
"""

import sys

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from ktransformers import AutoModelForCausalLM, AutoTokenizer
from tests.support.smollm2 import dense_path

PAIRS = [
    ("The capital of Japan is", " Tokyo"),
    ("The capital of Japan is", " a small village in the mountains of Peru"),
    ("Water is made of hydrogen and", " oxygen"),
]
QUESTIONS = [
    "Question: What is 2 + 2?\nAnswer:",
    "The capital of Japan is",
    "Roses are red, violets",
]
CHAT_SETTINGS = {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False}


def own_loglikelihood(model, tokenizer, context: str, ending: str) -> tuple[float, bool]:
    """(log-probability of the ending, whether it is the greedy one), one forward, no padding."""
    whole = tokenizer(context + ending, return_tensors="pt").input_ids
    start = len(tokenizer(context).input_ids)
    scores = model(input_ids=whole[:, :-1]).logits[0, start - 1 :].log_softmax(-1)
    tokens = whole[0, start:]
    greedy = bool((scores.argmax(-1) == tokens).all())
    return float(scores.gather(1, tokens[:, None]).sum()), greedy


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)
    ]


def main() -> int:
    path = dense_path()
    model = AutoModelForCausalLM.from_pretrained(path, activations="exact")
    tokenizer = AutoTokenizer.from_pretrained(path)
    adapter = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=256)
    failures = 0

    found = adapter.loglikelihood(requests("loglikelihood", PAIRS))
    for (context, ending), (value, greedy) in zip(PAIRS, found, strict=True):
        expected = own_loglikelihood(model, tokenizer, context, ending)
        good = abs(value - expected[0]) < 1e-3 and greedy == expected[1]
        failures += not good
        print(f"{'ok  ' if good else 'FAIL'} {value:9.4f} {greedy!s:5} {context!r} {ending!r}")
    failures += not found[0][0] > found[1][0]

    rolling = adapter.loglikelihood_rolling(requests("loglikelihood_rolling", [("Roses are red",)]))
    print(f"rolling: {rolling[0]:.4f}")
    failures += not -50 < rolling[0] < 0

    texts = adapter.generate_until(
        requests("generate_until", [(text, CHAT_SETTINGS) for text in QUESTIONS])
    )
    for question, text in zip(QUESTIONS, texts, strict=True):
        ids = tokenizer(question, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=12, do_sample=False)
        plain = tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
        for stop in CHAT_SETTINGS["until"]:
            plain = plain.split(stop)[0]
        good = text == plain
        failures += not good
        print(f"{'ok  ' if good else 'FAIL'} {question!r} -> {text!r}")
    print(f"lm-eval: {'passed' if not failures else f'{failures} failures'}")
    return min(failures, 1)


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
