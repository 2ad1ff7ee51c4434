"""`ktransformers calibrate`: which experts matter on a text, and what fewer of them would cost.

The profile holds, per MoE layer, how often each expert was chosen and how much weight it got, and
the weight by rank. With --experts-per-token it also holds what that costs on the text: perplexity
and KL against all experts, and whether the gate (--max-kl) was met. A run with
--experts_per_token takes only a profile in which it was.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ktransformers.cli.compare import read_text
from ktransformers.errors import UserError
from ktransformers.optimize.hot import read_profile
from ktransformers.util import measure


class Counter:
    """Adds up what one router chose. counts, weights: [experts]; by_rank: [experts per token]."""

    def __init__(self, experts: int, used: int):
        self.counts, self.weights = np.zeros(experts), np.zeros(experts)
        self.by_rank, self.tokens = np.zeros(used), 0

    def __call__(self, _module, _args, output) -> None:
        _, weights, ids = output
        weights, ids = weights.float().numpy(), ids.numpy()
        np.add.at(self.counts, ids, 1)
        np.add.at(self.weights, ids, weights)
        self.by_rank += np.sort(weights, axis=1)[:, ::-1].sum(axis=0)
        self.tokens += len(ids)


def run(
    gguf_path: str, text_path: str, out: str, experts_per_token: int | None = None,
    max_kl: float | None = None, tokens: int = 2048,
) -> None:  # fmt: skip
    """Measures and writes the profile. Raises: UserError, also where the gate is not met."""
    if experts_per_token is not None and max_kl is None:
        raise UserError(
            "--experts-per-token needs a gate: --max-kl NATS, the mean KL against all experts that "
            "is allowed (0.01 is hard to notice, 0.1 is not)"
        )
    if Path(out).exists():
        raise UserError(f"{out}: is there already; choose another name or remove it")
    text = read_text(text_path)
    check_fewer(gguf_path, experts_per_token)
    from ktransformers.runtime.auto import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(gguf_path)(text, add_special_tokens=False, verbose=False)
    ids = ids["input_ids"][:tokens]
    if len(ids) < 64:
        raise UserError(f"{text_path}: has {len(ids)} tokens, at least 64 are needed")
    profile, reference = observed(gguf_path, ids)
    profile |= {"model": Path(gguf_path).name, "tokens": len(ids), "fewer": {}}
    for line in summary(profile):
        print(line)
    if experts_per_token is not None:
        trial = cost_of(gguf_path, ids, reference, experts_per_token)
        trial["max_kl"] = max_kl
        trial["passed"] = trial["kl_mean"] <= max_kl
        profile["fewer"][str(experts_per_token)] = trial
        print(
            f"{experts_per_token} of {profile['experts_per_token']} experts: perplexity "
            f"{trial['perplexity']:.3f} against {profile['perplexity']:.3f}, KL mean "
            f"{trial['kl_mean']:.2e}, largest {trial['kl_max']:.2e} nats; gate {max_kl:g}: "
            + ("met" if trial["passed"] else "not met")
        )
    Path(out).write_text(json.dumps(profile, indent=1))
    print(f"written: {out}")


def check_fewer(gguf_path: str, experts_per_token: int | None) -> None:
    """Raises: UserError for a model without experts, and a number that is not fewer."""
    from ktransformers.checkpoint.gguf import open_model
    from ktransformers.runtime.loading import model_config

    used = model_config(open_model(gguf_path))[1].get("num_experts_per_tok")
    if not used:
        raise UserError(f"{gguf_path}: has no routed experts; there is nothing to calibrate")
    if experts_per_token is not None and experts_per_token >= used:
        raise UserError(
            f"--experts-per-token {experts_per_token}: the model uses {used}; give fewer"
        )


def observed(gguf_path: str, ids: list[int]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """(profile, logits of the text's pieces) with all experts, module by module."""
    from ktransformers.runtime.auto import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gguf_path, lowered=False)
    counters: dict[int, Counter] = {}
    hooks = []
    for index, layer in enumerate(model.model.layers):
        gate = getattr(layer.mlp, "gate", None)
        if gate is not None and hasattr(gate, "num_experts"):
            counters[index] = Counter(gate.num_experts, gate.top_k)
            hooks.append(gate.register_forward_hook(counters[index]))
            layer.mlp.core = None  # so that the block calls its router, which is then seen
    logits, losses = [], []
    for part, out in measure.text_logits(model, ids):
        logits.append(out)
        losses.append(measure.nats(out, part))
    for hook in hooks:
        hook.remove()
    layers = {
        str(index): {
            "counts": one.counts.astype(int).tolist(),
            "weights": np.round(one.weights / one.tokens, 6).tolist(),
            "by_rank": np.round(one.by_rank / one.tokens, 6).tolist(),
        }
        for index, one in counters.items()
    }
    used = next(iter(counters.values())).by_rank.size
    return {
        "experts_per_token": used,
        "perplexity": float(np.exp(np.mean(losses))),
        "layers": layers,
    }, logits


def cost_of(gguf_path: str, ids, reference, experts_per_token: int) -> dict[str, Any]:
    """Perplexity and KL against `reference` with fewer experts per token."""
    from ktransformers.runtime.loading import load_model

    model = load_model(gguf_path, experts_per_token=experts_per_token)
    losses, each = [], []
    for (part, out), full in zip(measure.text_logits(model, ids), reference, strict=True):
        losses.append(measure.nats(out, part))
        each.append(measure.kl(full, out))
    kl = np.concatenate(each)
    return {"perplexity": float(np.exp(np.mean(losses))), "kl_mean": float(kl.mean()),
            "kl_max": float(kl.max())}  # fmt: skip


def summary(profile: dict[str, Any]) -> list[str]:
    """A few lines about which experts matter."""
    out = [f"{profile['tokens']} tokens, perplexity {profile['perplexity']:.3f}"]
    for index, layer in profile["layers"].items():
        counts = np.sort(np.asarray(layer["counts"], float))[::-1]
        share = counts.cumsum() / max(counts.sum(), 1)
        half = int(np.searchsorted(share, 0.5)) + 1
        rank = np.asarray(layer["by_rank"])
        last = 100 * rank[-1] / max(rank.sum(), 1e-9)
        out.append(
            f"layer {index}: half of the choices fall on {half} of {len(counts)} experts, "
            f"{int((counts == 0).sum())} are never chosen; the last rank has {last:.1f} % of the "
            "weight"
        )
    return out


def allowed(profile_path: str, experts_per_token: int, gguf: Any) -> dict[str, Any]:
    """The trial of a profile of this model, its gate met. Raises: UserError."""
    profile = read_profile(profile_path)
    name = Path(gguf.path).name
    if profile["model"] != name:
        raise UserError(f"{profile_path}: was measured with {profile['model']}, not with {name}")
    trial = profile["fewer"].get(str(experts_per_token))
    if not isinstance(trial, dict) or trial.get("passed") is not True:
        what = "was not tried"
        if isinstance(trial, dict):
            what = f"has a KL of {trial.get('kl_mean')}, its gate was {trial.get('max_kl')}"
        raise UserError(
            f"{profile_path}: {experts_per_token} experts per token {what}; run `ktransformers "
            f"calibrate --experts-per-token {experts_per_token} --max-kl NATS` first"
        )
    return trial
