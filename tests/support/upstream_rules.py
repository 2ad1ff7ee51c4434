"""Rule files in upstream's dialect, made from what is known of the ones it shipped.

Same match names and classes, replacements and kwargs, per kind of model; the text is our own. Each
entry says for which miniature family it is meant, and every rule in it must match something there.
"""

OPERATORS = "ktransformers.operators."
MODELS = "ktransformers.models."


def rule(
    replace: str,
    name: str | None = None,
    cls: str | None = None,
    kwargs: dict | None = None,
    recursive: bool | None = None,
) -> str:
    """One rule as YAML; short names get upstream's prefixes."""
    lines = ["- match:"]
    if name is not None:
        lines.append(f"    name: '{name}'")
    if cls is not None:
        full = cls if cls.startswith("torch.") else f"{MODELS}{cls}"
        lines.append(f"    class: {full}")
    lines += [
        "  replace:",
        f"    class: {replace if replace == 'default' else OPERATORS + replace}",
    ]
    if kwargs:
        lines.append("    kwargs:")
        for key, value in kwargs.items():
            if isinstance(value, dict):
                lines.append(f"      {key}:")
                lines += [f'        {layer}: "{device}"' for layer, device in value.items()]
            else:
                lines.append(f"      {key}: {value}")
    if recursive is not None:
        lines.append(f"  recursive: {recursive}")
    return "\n".join(lines) + "\n"


def on(device: str, **more) -> dict:
    return {"generate_device": f'"{device}"', "prefill_device": f'"{device}"', **more}


def linear(device: str, name: str, op: str = "KLinearMarlin") -> str:
    ops = {"generate_op": op, "prefill_op": "KLinearTorch"}
    return rule("linear.KTransformersLinear", name, "torch.nn.Linear", on(device, **ops))


def experts(device: str, name: str, version: str = "", **more) -> str:
    kwargs = {
        "prefill_device": f'"{device}"',
        "prefill_op": "KExpertsTorch",
        "generate_device": '"cpu"',
        "generate_op": "KExpertsCPU",
        "out_device": f'"{device}"',
        **more,
    }
    return rule(f"experts.KTransformersExperts{version}", name, None, kwargs, recursive=False)


def model(kind: str, **more) -> str:
    return rule(
        f"models.{kind}", "^model$", None, {"per_layer_prefill_intput_threshold": 0, **more}
    )


def plain(device: str, name: str) -> str:
    return rule("default", name, None, on(device))


EMBEDDING = plain("cpu", "^model.embed_tokens")
LAYERS = r"^model\.layers\..*"


def deepseek_v2_lite() -> str:
    device = "cuda"
    return "".join(
        (
            rule("RoPE.YarnRotaryEmbedding", None,
                 "modeling_deepseek.DeepseekV2YarnRotaryEmbedding", on(device)),
            linear(device, r"^model\.layers\.(?!.*self_attn\.kv_b_proj).*$"),
            linear(device, "^lm_head"),
            rule("experts.KDeepseekV2MoE", LAYERS + r"\.mlp$",
                 "modeling_deepseek.DeepseekV2MoE", on(device)),
            experts(device, LAYERS + r"\.mlp\.experts$"),
            rule("attention.KDeepseekV2Attention", LAYERS + r"\.self_attn$", None, on(device)),
            model("KDeepseekV2Model"),
            EMBEDDING,
        )
    )  # fmt: skip


def deepseek_v2_two_gpus() -> str:
    """The first layer on one GPU, the rest on another, as the multi-GPU files divide theirs."""
    parts = [EMBEDDING]
    for device, layers in (("cuda:0", r"^model\.layers\.(0)\."),
                           ("cuda:1", r"^model\.layers\.([1-9]|[1-5][0-9])\.")):  # fmt: skip
        parts += [
            rule("RoPE.YarnRotaryEmbedding", layers,
                 "modeling_deepseek.DeepseekV2YarnRotaryEmbedding", on(device)),
            linear(device, layers + r"(?!self_attn\.kv_b_proj).*$"),
            rule("attention.KDeepseekV2Attention", layers + "self_attn$", None, on(device)),
        ]  # fmt: skip
    moe = r"^model\.layers\.([1-9]|[1-5][0-9])\.mlp"
    parts += [
        rule("experts.KDeepseekV2MoE", moe + "$", "modeling_deepseek.DeepseekV2MoE", on("cuda:1")),
        experts("cuda:1", moe + r"\.experts$"),
        model("KDeepseekV2Model", transfer_map={1: "cuda:1"}),
        plain("cuda:0", r"^model\.layers\.(0)\."),
        plain("cuda:1", r"(^model\.layers\.([1-9]|[1-5][0-9])\.)|(^model.norm)"),
        linear("cuda:1", "^lm_head"),
    ]
    return "".join(parts)


def deepseek_v3(rotary: str = "RoPE.YarnRotaryEmbeddingV3", attention: str = "", **kwargs) -> str:
    device = "cuda"
    return "".join(
        (
            rule(rotary, None, "modeling_deepseek_v3.DeepseekV3RotaryEmbedding", on(device)),
            linear(device, "^lm_head$"),
            linear(device, r"^model\.layers\.(?!.*self_attn\.kv_b_proj).*$"),
            rule("experts.KDeepseekV3MoE", LAYERS + r"\.mlp$",
                 "modeling_deepseek_v3.DeepseekV3MoE", on(device)),
            rule("gate.KMoEGate", None, "modeling_deepseek_v3.MoEGate", on('cuda:0')),
            experts(device, LAYERS + r"\.mlp\.experts$", **kwargs),
            rule(attention or "attention.KDeepseekV2Attention", LAYERS + r"\.self_attn$", None,
                 on(device, absorb_for_prefill="False")),
            model("KDeepseekV2Model"),
            EMBEDDING,
        )
    )  # fmt: skip


def deepseek_v3_serve() -> str:
    module = "modeling_deepseek_v3.DeepseekV3"
    return (
        deepseek_v3(attention="balance_serve_attention.flashinfer_attn")
        .replace("KTransformersExperts", "KTransformersExpertsV2")
        .replace("KDeepseekV3MoE", "KDeepseekV3MoEV2")
        .replace("KLinearMarlin", "VLinearMarlin")
        + rule("layernorm.RMSNorm", None, module + "RMSNorm", on("cuda"))
        + rule("mlp.kDeepseekV3MLP", None, module + "MLP", on("cuda"))
    )


def qwen2moe() -> str:
    module = "modeling_qwen2_moe.Qwen2Moe"
    return "".join(
        (
            rule("RoPE.RotaryEmbedding", None, module + "RotaryEmbedding", on("cuda")),
            linear("cuda", LAYERS + "$"),
            linear("cuda", "^lm_head"),
            rule("experts.KQwen2MoeSparseMoeBlock", LAYERS + r"\.mlp$",
                 module + "SparseMoeBlock", on("cuda")),
            experts("cuda", LAYERS + r"\.mlp\.experts$"),
            model("KQwen2MoeModel"),
            EMBEDDING,
            plain("cuda", LAYERS + r"\."),
        )
    )  # fmt: skip


def qwen3moe() -> str:
    """Without the rule for MLPs: a model all of whose layers are sparse has none."""
    module = "modeling_qwen3_moe.Qwen3Moe"
    return "".join(
        (
            rule("RoPE.RotaryEmbedding", None,
                 "modeling_qwen2_moe.Qwen2MoeRotaryEmbedding", on("cuda")),
            linear("cuda", "^lm_head$", "VLinearMarlin"),
            linear("cuda", r"^model\.layers\.(?!.*mlp\.shared_expert_gate).*$"),
            rule("experts.KQwen3MoeSparseMoeBlockV2", LAYERS + r"\.mlp$",
                 module + "SparseMoeBlock", on("cuda")),
            experts("cuda", LAYERS + r"\.mlp\.experts$", "V2", backend='"AMXBF16"'),
            rule("balance_serve_attention.KQwen3MoeAttention", LAYERS + r"\.self_attn$", None,
                 on("cuda")),
            model("KQwen2MoeModel"),
            EMBEDDING,
            rule("layernorm.KQwen3MoeRMSNorm", None, module + "RMSNorm", on("cuda")),
        )
    )  # fmt: skip


def mixtral() -> str:
    module = "modeling_mixtral.Mixtral"
    return "".join(
        (
            rule("RoPE.RotaryEmbedding", None, module + "RotaryEmbedding", on("cuda")),
            linear("cuda", LAYERS + "$"),
            linear("cuda", "^lm_head"),
            rule("experts.KMistralSparseMoEBlock", LAYERS + r"\.block_sparse_moe$",
                 module + "SparseMoeBlock"),
            experts("cuda", LAYERS + r"\.block_sparse_moe\.experts$"),
            EMBEDDING,
            plain("cuda", LAYERS + r"\."),
        )
    )  # fmt: skip


def llama() -> str:
    return "".join(
        (
            rule("RoPE.RotaryEmbeddingV2", None, "modeling_llama.LlamaRotaryEmbedding", on("cuda")),
            rule("models.KLlamaModel", None, "modeling_llama.LlamaModel", on("cuda")),
            rule("attention.KLlamaAttention", LAYERS + r"\.self_attn$", None, on("cuda")),
            EMBEDDING,
        )
    )  # fmt: skip


# name -> (miniature family, text)
CORPUS = {
    "v2_lite": ("deepseek_v2_lite", deepseek_v2_lite()),
    "v2": ("deepseek_v2", deepseek_v2_lite()),
    "v2_two_gpus": ("deepseek_v2", deepseek_v2_two_gpus()),
    "v3": ("deepseek_v3", deepseek_v3()),
    "v3_amx": ("deepseek_v3", deepseek_v3(backend="AMXInt8")),
    "v3_moonlight": ("deepseek_v3", deepseek_v3("RoPE.RotaryEmbeddingV3")),
    "v3_serve": ("deepseek_v3", deepseek_v3_serve()),
    "qwen2moe": ("qwen2moe", qwen2moe()),
    "qwen3moe": ("qwen3moe", qwen3moe()),
    "mixtral": ("mixtral", mixtral()),
    "llama": ("llama", llama()),
    # as older tags spelt it
    "v2_first_tag": (
        "deepseek_v2",
        deepseek_v2_lite()
        .replace("linear.KTransformersLinear", "linear.KTransformerLinear")
        .replace("KLinearMarlin", "QuantizedLinearMarlin")
        .replace("KLinearTorch", "QuantizedLinearTorch")
        .replace("experts.KDeepseekV2MoE", "experts.DeepseekV2MoEInjected")
        .replace("experts.KTransformersExperts", "experts.KTransformersMLPExpert")
        .replace("prefill_op: KExpertsTorch", "prefill_mlp_type: MLPExpertsTorch")
        .replace("generate_op: KExpertsCPU", "generate_mlp_type: MLPCPUExperts")
        .replace("attention.KDeepseekV2Attention", "attention.DeepseekV2AttentionInjected")
        .replace("models.KDeepseekV2Model", "layer_wise_prefill.DeepseekV2ModelPerLayerPrefill"),
    ),
    "mixtral_misspelt": (
        "mixtral",
        mixtral().replace("KMistralSparseMoEBlock", "KMisrtalSparseMoEBlock"),
    ),
    "v3_gate_of_february": (
        "deepseek_v3",
        deepseek_v3().replace("gate.KMoEGate", "gate.KMoEGateDeepSeekV3"),
    ),
}
