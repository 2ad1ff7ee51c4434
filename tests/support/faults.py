"""Mistakes of the kind an implementation makes, planted in the file that our side is given.

The reference keeps the right file, so a comparison that does not turn red has missed the mistake.
Where an operation cannot be wrong in a file (an attention scale, say), weights are changed so that
the right operation gives what the wrong one would.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.support.blocks import Type
from tests.support.miniatures import Miniature, Tensor, head_dim


@dataclass(frozen=True)
class Fault:
    name: str
    family: str
    plant: Callable[[Miniature], None]


def metadata(key: str, value) -> Callable[[Miniature], None]:
    """Changes a key of the architecture; None removes it."""

    def plant(model: Miniature) -> None:
        full = model.key(key)
        if value is None:
            del model.metadata[full]
        else:
            model.metadata[full] = value

    return plant


def weights(part: str, change: Callable) -> Callable[[Miniature], None]:
    """Replaces the values of all F32 tensors with names in `part` by change(values, config)."""

    def plant(model: Miniature) -> None:
        names = [name for name in model.tensors if name.endswith(part)]
        assert names, f"no tensor {part} in {model.family.name}"
        for name in names:
            old = model.tensors[name]
            assert old.kind == Type.F32
            new = np.ascontiguousarray(change(old.values, model.family.config), np.float32)
            assert new.shape == old.values.shape
            model.tensors[name] = Tensor(old.kind, new.view(np.uint8))

    return plant


def both(*plants: Callable[[Miniature], None]) -> Callable[[Miniature], None]:
    def plant(model: Miniature) -> None:
        for one in plants:
            one(model)

    return plant


def swap(first: str, second: str) -> Callable[[Miniature], None]:
    """Exchanges two equally shaped tensors in every layer that has them."""

    def plant(model: Miniature) -> None:
        names = [name for name in model.tensors if name.endswith(first)]
        assert names
        for name in names:
            other = name.removesuffix(first) + second
            tensors = model.tensors
            tensors[name], tensors[other] = tensors[other], tensors[name]

    return plant


def scaled(factor: float) -> Callable:
    return lambda values, config: values * np.float32(factor)


def zero(values, config):
    return np.zeros_like(values)


def one(values, config):
    return np.ones_like(values)


def head_rows(key: str) -> Callable:
    """Rows of each head from rotary pairs to halves, as if the file had not been permuted."""

    def change(values, config):
        heads, width = config[key], head_dim(config)
        return values.reshape(heads, width // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)

    return change


def rotary_tail(heads: str | None) -> Callable:
    """The same for the rotary rows at the end of each MLA head (None: of the shared key)."""

    def change(values, config):
        rope = config["qk_rope_head_dim"]
        rows = values.reshape(config[heads] if heads else 1, -1, values.shape[-1]).copy()
        tail = rows[:, -rope:]
        rows[:, -rope:] = (
            tail.reshape(len(rows), rope // 2, 2, -1).swapaxes(1, 2).reshape(tail.shape)
        )
        return rows.reshape(values.shape)

    return change


def last_two_axes_mixed_up(values, config):
    """The numbers of each head's transposed matrix, read with the right shape."""
    return values.swapaxes(1, 2).reshape(values.shape)


def values_before_keys(values, config):
    """kv_b with the value rows of each head in front of its key rows."""
    nope, v = config["qk_nope_head_dim"], config["v_head_dim"]
    heads = values.reshape(-1, nope + v, values.shape[-1])
    return np.concatenate([heads[:, nope:], heads[:, :nope]], axis=1).reshape(values.shape)


def heads_interleaved(values, config):
    """Query heads dealt out to key-value heads in turn instead of in runs."""
    groups = config["num_attention_heads"] // config["num_key_value_heads"]
    heads = values.reshape(config["num_key_value_heads"], groups, -1)
    return heads.swapaxes(0, 1).reshape(values.shape)


def untie(model: Miniature) -> None:
    """Gives a tied model a head of its own."""
    tied = model.tensors["token_embd.weight"]
    model.tensors["output.weight"] = Tensor(
        tied.kind, np.ascontiguousarray(np.roll(tied.values, 1, axis=1)).view(np.uint8)
    )


def drop(name: str) -> Callable[[Miniature], None]:
    def plant(model: Miniature) -> None:
        del model.tensors[name]

    return plant


FAULTS = [
    Fault("rope base", "llama", metadata("rope.freq_base", 10500.0)),
    Fault("norm epsilon", "llama", metadata("attention.layer_norm_rms_epsilon", 1e-6)),
    Fault("rope pairs taken for halves", "llama", both(
        weights("attn_q.weight", head_rows("num_attention_heads")),
        weights("attn_k.weight", head_rows("num_key_value_heads")))),
    Fault("untied head tied", "llama", drop("output.weight")),
    Fault("attention scale", "llama", weights("attn_q.weight", scaled(1.01))),
    Fault("query heads grouped in turn", "llama", weights("attn_q.weight", heads_interleaved)),
    Fault("last norm dropped", "llama", weights("output_norm.weight", one)),
    Fault("gate and up swapped", "llama", swap("ffn_gate.weight", "ffn_up.weight")),
    Fault("llama-3 frequencies ignored", "llama_tied", drop("rope_freqs.weight")),
    Fault("linear rope factor ignored", "llama_linear", metadata("rope.scaling.factor", 1.0)),
    Fault("one expert too many", "mixtral", metadata("expert_used_count", 3)),
    Fault("one expert too few", "mixtral", metadata("expert_used_count", 1)),
    Fault("order of experts", "mixtral", weights(
        "ffn_down_exps.weight", lambda values, config: np.roll(values, 1, axis=0))),
    Fault("expert gate and up swapped", "mixtral", swap(
        "ffn_gate_exps.weight", "ffn_up_exps.weight")),
    Fault("biases of q, k, v dropped", "qwen2", both(
        *(weights(f"attn_{part}.bias", zero) for part in "qkv"))),
    Fault("bias of k dropped", "qwen2", weights("attn_k.bias", zero)),
    Fault("tied head untied", "qwen2", untie),
    Fault("YaRN ignored", "qwen2_yarn", metadata("rope.scaling.type", "none")),
    Fault("YaRN ramp", "qwen2_yarn", metadata("rope.scaling.yarn_beta_slow", 2.0)),
    Fault("shared expert dropped", "qwen2moe", weights("ffn_down_shexp.weight", zero)),
    Fault("gate of the shared expert ignored", "qwen2moe", weights(
        "ffn_gate_inp_shexp.weight", zero)),
    Fault("norm of q dropped", "qwen3", weights("attn_q_norm.weight", one)),
    Fault("norms of q and k swapped", "qwen3", swap("attn_q_norm.weight", "attn_k_norm.weight")),
    Fault("router ignored", "qwen3moe", weights("ffn_gate_inp.weight", zero)),
    Fault("whole heads rotated", "glm4moe", metadata("rope.dimension_count", 64)),
    Fault("router bias of GLM dropped", "glm4moe", weights("exp_probs_b.bias", zero)),
    Fault("scaling of GLM's experts", "glm4moe", metadata("expert_weights_scale", 1.0)),
    Fault("YaRN mscale", "deepseek_v2_lite", metadata("rope.scaling.yarn_log_multiplier", 0.1)),
    Fault("keys and values of kv_b swapped", "deepseek_v2_lite", weights(
        "attn_kv_b.weight", values_before_keys)),
    Fault("group mask ignored", "deepseek_v2", metadata("expert_group_used_count", 4)),
    Fault("routed scaling factor", "deepseek_v3", metadata("expert_weights_scale", 1.0)),
    Fault("top-k weights not normalised", "deepseek_v3", metadata("expert_weights_norm", None)),
    Fault("group mask", "deepseek_v3", metadata("expert_group_used_count", 3)),
    Fault("router bias dropped", "deepseek_v3", weights("exp_probs_b.bias", zero)),
    Fault("router bias doubled", "deepseek_v3", weights("exp_probs_b.bias", scaled(2.0))),
    Fault("YaRN mscale dropped", "deepseek_v3", metadata(
        "rope.scaling.yarn_log_multiplier", None)),
    Fault("k_b transposed", "deepseek_v3", weights("attn_k_b.weight", last_two_axes_mixed_up)),
    Fault("v_b transposed", "deepseek_v3", weights("attn_v_b.weight", last_two_axes_mixed_up)),
    Fault("MLA scale without the rotary width", "deepseek_v3", weights(
        "attn_q_b.weight", scaled((64 / 32) ** 0.5))),
    Fault("MLA rope halves taken for pairs", "deepseek_v3", both(
        weights("attn_q_b.weight", rotary_tail("num_attention_heads")),
        weights("attn_kv_a_mqa.weight", rotary_tail(None)))),
    Fault("norm of the latent dropped", "deepseek_v3", weights("attn_kv_a_norm.weight", one)),
]  # fmt: skip
