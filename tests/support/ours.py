"""Our side of a comparison, through the interface users have and nothing else."""

from pathlib import Path

import numpy as np
import torch

WAYS = {"modules": False, "lowered": True}


def load(path: Path, activations: str, lowered: bool):
    from ktransformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(path), activations=activations, lowered=lowered)


def logits(model, ids: list[int], prompt: int | None = None) -> np.ndarray:
    """[tokens, vocabulary] float32: the first `prompt` tokens in one forward (all of them by
    default), the rest token by token through the cache."""
    prompt = len(ids) if prompt is None else prompt
    pieces = [ids[:prompt]] if prompt else []
    pieces += [[token] for token in ids[prompt:]]
    out, cache = [], None
    with torch.no_grad():
        for piece in pieces:
            step = model(input_ids=torch.tensor([piece]), past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            out.append(step.logits[0].float().numpy())
    return np.concatenate(out)


def greedy(model, ids: list[int], count: int, stop: int | None) -> list[int]:
    """The tokens generate() adds; `stop` is the last one where it comes."""
    prompt = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=0 if stop is None else stop,
        )
    return [int(token) for token in out[0, len(ids) :]]
