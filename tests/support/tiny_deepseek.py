"""The small trained DeepSeek-V3: where it is, how transformers reads it, and its figures.

Trained by tests/tools/train_tiny_deepseek.py. Unlike the miniatures it has learned something, so
that a wrong expert, a lost bit or a bad rounding shows as a worse loss on text it has never seen.

The GGUF file is laid out as llama.cpp's converter writes DeepSeek-V3, with the older, whole
`attn_kv_b`. Matrices are F16; norms, routers and router biases F32. Rope: the rows of `attn_q_b`
and `attn_kv_a_mqa` stay in Hugging Face's order, in which the rotary values of a head are
neighbouring pairs (x0, x1), (x2, x3), ... turned by one angle each (`rope_interleave`). That is
the order `deepseek2` files hold; nothing is permuted on the way in or out.
"""

import math
from pathlib import Path

import gguf
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import DeepseekV3ForCausalLM

from tests.support.families import Family, plain_rope
from tests.support.reference import Reference

DATA = Path(__file__).parents[1] / "data"
MODEL = DATA / "tiny_deepseek_v3.f16.gguf"
FIGURES = DATA / "tiny_deepseek_v3.json"
TEXT = DATA / "tinyshakespeare_200k.txt"  # the end of the text; its own end is what was held out

BOS, EOS = "<|begin|>", "<|end|>"
BOS_ID, EOS_ID = 0, 1
WINDOW = 512  # tokens per window of `evaluate`

# What a training run must reach, on all of the held-out text.
MAX_NATS_PER_CHARACTER = 1.75
MIN_LOAD_ENTROPY = 0.85
MIN_PERPLEXITY_RISE = 0.05
MAX_FILE_BYTES = 19_000_000

# Every width is a multiple of 256, so that each K-quant applies to each matrix.
FAMILY = Family(
    "tiny_deepseek_v3",
    "deepseek2",
    "DeepseekV3",
    {
        "vocab_size": 1024,
        "hidden_size": 256,
        "intermediate_size": 768,
        "moe_intermediate_size": 256,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 256,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 4,
        "topk_group": 3,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 1024,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_parameters": plain_rope(),
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    },
)


def gpt2_tokenizer(bpe: models.BPE) -> Tokenizer:
    """A byte-level BPE split by GPT-2's regular expression (llama.cpp's pre-tokenizer `gpt-2`)."""
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def load_tokenizer(path: Path = MODEL) -> Tokenizer:
    """The tokenizer held by a GGUF file; it adds no BOS by itself."""
    reader = gguf.GGUFReader(path)
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    merges = reader.get_field("tokenizer.ggml.merges").contents()
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = gpt2_tokenizer(models.BPE(vocab=vocab, merges=merges))
    special = [AddedToken(token, special=True, normalized=False) for token in (BOS, EOS)]
    tokenizer.add_special_tokens(special)
    return tokenizer


def load_model(path: Path = MODEL) -> DeepseekV3ForCausalLM:
    """transformers' own model in fp32 with the weights of a GGUF file."""
    return Reference.load(path, FAMILY).model


def held_out_text(text: str) -> str:
    """The last tenth of the whole text, which training never sees."""
    return text[len(text) - len(text) // 10 :]


def routers(model: DeepseekV3ForCausalLM) -> list[torch.nn.Module]:
    """The routers of the MoE layers; each returns (logits, weights, expert ids), [tokens, ...]."""
    return [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]


def count_loads(model: DeepseekV3ForCausalLM) -> tuple[torch.Tensor, list]:
    """Makes the routers count their choices.

    Returns the counts, [MoE layers, experts], which go on rising, and the hooks that raise them.
    """
    gates = routers(model)
    loads = torch.zeros(len(gates), model.config.n_routed_experts)

    def counter(load):
        def count(_module, _args, output):
            load.add_(torch.bincount(output[2].flatten(), minlength=len(load)))

        return count

    return loads, [g.register_forward_hook(counter(loads[i])) for i, g in enumerate(gates)]


def drop_top_expert(_module, _args, output):
    """Hook of a router: takes each token's highest-weighted expert out of the sum, others stay."""
    logits, weights, ids = output
    return logits, weights.scatter(1, weights.argmax(dim=1, keepdim=True), 0.0), ids


@torch.no_grad()
def evaluate(
    model: DeepseekV3ForCausalLM,
    tokens: torch.Tensor,
    *,
    window: int = WINDOW,
    top_expert: str = "kept",
) -> tuple[float, torch.Tensor]:
    """Sum of -log p over `tokens` [n], and the routers' loads [MoE layers, experts].

    The text is cut into windows; each is read after a BOS, so that every token is predicted exactly
    once. top_expert: "kept" or "dropped", see drop_top_expert.
    """
    loads, hooks = count_loads(model)
    if top_expert == "dropped":
        hooks += [gate.register_forward_hook(drop_top_expert) for gate in routers(model)]
    whole = len(tokens) // window * window
    batches = list(tokens[:whole].view(-1, window).split(8)) if whole else []
    if whole < len(tokens):
        batches.append(tokens[None, whole:])
    nats = 0.0
    try:
        for targets in batches:
            inputs = F.pad(targets[:, :-1], (1, 0), value=BOS_ID)
            logits = model(inputs, use_cache=False).logits.float()
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
            nats += losses.item()
    finally:
        for hook in hooks:
            hook.remove()
    return nats, loads


def load_entropy(loads: torch.Tensor) -> list[float]:
    """Entropy of each layer's load, [layers, experts], as a fraction of the uniform load's."""
    share = loads / loads.sum(dim=1, keepdim=True)
    return (torch.special.entr(share).sum(dim=1) / math.log(loads.shape[1])).tolist()


def measure(
    model: DeepseekV3ForCausalLM, tokenizer: Tokenizer, text: str, *, window: int = WINDOW
) -> dict:
    """The figures the model is held to, over `text`."""
    tokens = torch.tensor(tokenizer.encode(text).ids)
    nats, loads = evaluate(model, tokens, window=window)
    nats_dropped, _ = evaluate(model, tokens, window=window, top_expert="dropped")
    return {
        "nats_per_character": nats / len(text),
        "nats_per_token": nats / len(tokens),
        "characters_per_token": len(text) / len(tokens),
        "router_load_entropy": load_entropy(loads),
        "perplexity_rise_top_expert_dropped": math.expm1((nats_dropped - nats) / len(tokens)),
    }
