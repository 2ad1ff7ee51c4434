"""Configuration fields that the families read from GGUF metadata in the same way. No torch."""

from ktransformers.errors import UserError


def base_config(gguf) -> dict:
    """Fields of every decoder: sizes, norms, rotary embedding, token ids.

    Raises: UserError naming the key that is missing or out of range.
    """
    arch = gguf.architecture
    heads = gguf.integer(f"{arch}.attention.head_count", 1, 1 << 16)
    hidden = gguf.integer(f"{arch}.embedding_length", 1, 1 << 20)
    config = {
        "vocab_size": gguf.tensor("token_embd.weight").shape[0],
        "hidden_size": hidden,
        "intermediate_size": gguf.integer(f"{arch}.feed_forward_length", 1, 1 << 24),
        "num_hidden_layers": decoder_layers(gguf),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.integer(
            f"{arch}.attention.head_count_kv", 1, 1 << 16, default=heads
        ),
        "rms_norm_eps": gguf.number(f"{arch}.attention.layer_norm_rms_epsilon", 0.0, 1.0),
        "max_position_embeddings": gguf.integer(f"{arch}.context_length", 1, 1 << 28),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "rope_parameters": rope_parameters(gguf),
        "bos_token_id": gguf.integer("tokenizer.ggml.bos_token_id", 0, 1 << 28, default=None),
        "eos_token_id": gguf.integer("tokenizer.ggml.eos_token_id", 0, 1 << 28, default=None),
        "pad_token_id": None,
    }
    if heads % config["num_key_value_heads"]:
        raise UserError(
            f"{gguf.path}: {arch}.attention.head_count: {heads} heads are no multiple of "
            f"{config['num_key_value_heads']} key heads"
        )
    return config


def decoder_layers(gguf) -> int:
    """Layers that make the text: blocks at the end that only draft tokens (MTP) are left out."""
    arch = gguf.architecture
    blocks = gguf.integer(f"{arch}.block_count", 1, 1 << 12)
    return blocks - gguf.integer(f"{arch}.nextn_predict_layers", 0, blocks - 1, default=0)


def head_dim(gguf, config: dict) -> int:
    """Width of an attention head: its own key, or hidden_size over the heads."""
    arch = gguf.architecture
    default = config["hidden_size"] // config["num_attention_heads"]
    return gguf.integer(f"{arch}.attention.key_length", 1, 1 << 16, default=default)


def rope_parameters(gguf) -> dict:
    """transformers' `rope_parameters`.

    llama-3 scaling is no type here: files carry its result, divisors of the frequencies
    (`rope_freqs.weight`), which runtime.loading applies.
    """
    prefix = f"{gguf.architecture}.rope."
    rope = {
        "rope_type": "default",
        "rope_theta": gguf.number(prefix + "freq_base", 1.0, 1e12, default=10000.0),
    }
    kind = gguf.text(prefix + "scaling.type", default="none")
    factor = gguf.number(prefix + "scaling.factor", 1e-3, 1e6, default=1.0)
    if kind == "none" and prefix + "scale_linear" in gguf.metadata:  # files of 2023
        kind, factor = "linear", gguf.number(prefix + "scale_linear", 1e-3, 1e6)
    if kind in ("none", "default"):
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return rope | {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": gguf.integer(
                prefix + "scaling.original_context_length", 1, 1 << 28
            ),
            "beta_fast": gguf.number(prefix + "scaling.yarn_beta_fast", 0.0, 1e6, default=32.0),
            "beta_slow": gguf.number(prefix + "scaling.yarn_beta_slow", 0.0, 1e6, default=1.0),
        }
    raise UserError(
        f"{gguf.path}: {prefix}scaling.type: '{kind}' is not supported; linear and yarn are"
    )


def expert_counts(gguf) -> tuple[int, int]:
    """(experts, experts per token). Raises: UserError where they do not fit."""
    arch = gguf.architecture
    experts = gguf.integer(f"{arch}.expert_count", 1, 1 << 16)
    return experts, gguf.integer(f"{arch}.expert_used_count", 1, experts)


def expert_width(gguf, layer: int, part: str = "exps") -> int:
    """Intermediate size of the experts, from the tensor itself: metadata are often wrong here."""
    name = f"blk.{layer}.ffn_gate_{part}.weight"
    if name not in gguf.tensors and part == "exps":
        return gguf.tensor(f"blk.{layer}.ffn_gate.0.weight").shape[0]
    return gguf.tensor(name).shape[-2]


def attention_bias(gguf) -> bool:
    """Whether the file has biases on the query projection."""
    return "blk.0.attn_q.bias" in gguf.tensors
