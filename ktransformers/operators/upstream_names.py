"""Upstream's names: what its rule files may say, and which operator of ours is meant.

Sources: the rule files and tutorials of kvcache-ai/ktransformers, tags v0.1.0 to v0.3.2, also those
names that a later tag dropped and two misspelt ones that shipped, because users keep copies.
"""

_OPERATORS = "ktransformers.operators."


def _in(module: str, names: str) -> tuple[str, ...]:
    return tuple(f"{_OPERATORS}{module}.{name}" for name in names.split())


# operator -> full names for `replace.class`
UPSTREAM_CLASSES: dict[str, tuple[str, ...]] = {
    "linear": _in("linear", "KTransformersLinear KTransformerLinear"),
    "norm.rms": _in(
        "layernorm",
        "RMSNorm KQwen2MoeRMSNorm KQwen3MoeRMSNorm KGlm4MoeRMSNorm KSmallthinkerRMSNorm",
    ),
    # The last one is a slip in rule files of v0.2.3post2, where it stands for a rotary embedding.
    "rope": _in(
        "RoPE",
        "RotaryEmbedding RotaryEmbeddingV2 RotaryEmbeddingV3 RotaryEmbeddingV4 YarnRotaryEmbedding"
        " YarnRotaryEmbeddingV3 DynamicNTKScalingRotaryEmbedding KQwen3MoeRotaryEmbedding"
        " KGlm4MoeRotaryEmbedding KSmallthinkerRotaryEmbedding KMoEGateDeepSeekV3",
    ),
    "attention.mla": (
        *_in("attention", "KDeepseekV2Attention DeepseekV2AttentionInjected flashinfer_attn"),
        *_in("balance_serve_attention", "flashinfer_attn deepseek_torch_attn"),
    ),
    "attention.gqa": (
        *_in("attention", "KLlamaAttention"),
        *_in(
            "balance_serve_attention",
            "KQwen2MoeAttention KQwen3MoeAttention KGlm4MoeAttention KSmallthinkerAttention",
        ),
    ),
    "mlp.swiglu": _in("mlp", "kDeepseekV3MLP KQwen2MoeMLP KGlm4MoeMLP"),
    "moe.router": _in("gate", "KMoEGate KMoEGateDeepSeekV3 KMoEGateQwen2Moe"),
    "moe.experts": _in(
        "experts",
        "KTransformersExperts KTransformersExpertsV2 KGlm4Experts KTransformersMLPExpert",
    ),
    "moe.block": _in(
        "experts",
        "KDeepseekV2MoE KDeepseekV3MoE KDeepseekV3MoEV2 KQwen2MoeSparseMoeBlock"
        " KQwen2MoeSparseMoeBlockV2 KQwen3MoeSparseMoeBlockV2 KMistralSparseMoEBlock"
        " KMisrtalSparseMoEBlock KGlm4MoeMoE DeepseekV2MoEInjected Qwen2MoeSparseMoeBlockInjected",
    ),
    "model": (
        *_in("models", "KDeepseekV2Model KQwen2MoeModel KLlamaModel"),
        *_in("layer_wise_prefill", "DeepseekV2ModelPerLayerPrefill Qwen2MoeModelPerLayerPrefill"),
    ),
    # Parts of architectures this project does not run; known, so that the message can say so.
    "unsupported": (
        *_in("balance_serve_attention", "KQwen3NextAttention KQwen3NextGatedDeltaNet"),
        *_in("layernorm", "KQwen3NextRMSNorm"),
        *_in("experts", "KQwen3NextSparseMoeBlockV2 KSmallthinkerExperts KSmallthinkerMoeBlock"),
        *_in("mlp", "KSmallthinkerDenseMlpBlock"),
    ),
}

# operator -> op name -> backend; None: the op named one of upstream's kernels for the device, and
# the operator has its own for that.
UPSTREAM_OPS: dict[str, dict[str, str | None]] = {
    "linear": {
        "KLinearMarlin": None,
        "VLinearMarlin": None,
        "KLinearFP8": None,
        "KLinearQ8": None,
        "KLinearCPUInfer": None,
        "KLinearTorch": "torch",
        "QuantizedLinearMarlin": None,
        "QuantizedLinearTorch": "torch",
    },
    "moe.experts": {
        "KExpertsCPU": None,
        "KExpertsMarlin": None,
        "KExpertsTorch": "torch",
        "MLPCPUExperts": None,
        "MLPExpertsMarlin": None,
        "MLPCUDAExperts": None,
        "MLPExpertsTorch": "torch",
    },
}

# Ops that compute on the CPU whatever device is named beside them.
CPU_OPS = frozenset({"KExpertsCPU", "KLinearCPUInfer", "MLPCPUExperts"})
# What upstream's GPU ops keep of a weight.
OP_WEIGHTS = {
    "KLinearMarlin": "int4g64", "VLinearMarlin": "int4g64", "QuantizedLinearMarlin": "int4g64",
    "KExpertsMarlin": "int4g64", "MLPExpertsMarlin": "int4g64", "MLPCUDAExperts": "int4g64",
    "KLinearFP8": "fp8", "KLinearQ8": "q8_0",
}  # fmt: skip
# `backend` of KExpertsCPU -> what float weights are loaded as. Files keep their types: those were
# chosen by whoever made the file, and the kernels take all of them.
CPU_BACKENDS = {"llamafile": None, "AMXBF16": "bf16", "AMXInt8": "q8_0"}
# Knobs of kernels that are not used here: nothing they could change is left.
IGNORED_KWARGS = frozenset("act_order is_k_full stride group_max_len use_quant".split())

# kwargs of upstream's constructors; optimize/rules_upstream.py reads them, and the plan shows what
# they mean.
DEVICE_KWARGS = frozenset({"generate_device", "prefill_device"})
UPSTREAM_KWARGS: dict[str, frozenset[str]] = {
    "linear": frozenset(
        "generate_op prefill_op out_device num_bits group_size act_order is_k_full block_size"
        " stride group_max_len generate_linear_type prefill_linear_type".split()
    ),
    "moe.experts": frozenset(
        "generate_op prefill_op out_device backend generate_mlp_type prefill_mlp_type".split()
    ),
    "attention.mla": frozenset({"absorb_for_prefill", "chunck_size"}),
    "attention.gqa": frozenset({"chunck_size"}),
    "moe.router": frozenset({"use_quant"}),
    "model": frozenset({"transfer_map", "per_layer_prefill_intput_threshold"}),
}


def _models(module: str, names: str) -> frozenset[str]:
    return frozenset(f"ktransformers.models.modeling_{module}.{name}" for name in names.split())


def _decoder(prefix: str, others: str = "") -> str:
    parts = "RMSNorm RotaryEmbedding MLP Attention DecoderLayer PreTrainedModel Model ForCausalLM"
    return " ".join(prefix + part for part in parts.split()) + " " + others


# full names for `match.class` that could be imported with upstream
UPSTREAM_MODULES: frozenset[str] = frozenset().union(
    _models(
        "deepseek",
        _decoder("DeepseekV2", "MoEGate DeepseekV2MoE DeepseekV2FlashAttention2")
        + " DeepseekV2YarnRotaryEmbedding DeepseekV2LinearScalingRotaryEmbedding"
        " DeepseekV2DynamicNTKScalingRotaryEmbedding",
    ),
    _models(
        "deepseek_v3",
        _decoder("DeepseekV3", "MoEGate DeepseekV3MoE DeepseekV3FlashAttention2")
        + " DeepseekV3YarnRotaryEmbedding DeepseekV3LinearScalingRotaryEmbedding"
        " DeepseekV3DynamicNTKScalingRotaryEmbedding",
    ),
    _models(
        "qwen2_moe",
        _decoder("Qwen2Moe", "Qwen2MoeSparseMoeBlock Qwen2MoeSdpaAttention")
        + " Qwen2MoeFlashAttention2",
    ),
    _models(
        "qwen3_moe",
        _decoder("Qwen3Moe", "Qwen3MoeSparseMoeBlock Qwen2MoeRotaryEmbedding"),
    ),
    _models(
        "mixtral",
        _decoder("Mixtral", "MixtralSparseMoeBlock MixtralBlockSparseTop2MLP")
        + " MixtralSdpaAttention MixtralFlashAttention2",
    ),
    _models(
        "llama",
        _decoder("Llama", "LlamaSdpaAttention LlamaFlashAttention2")
        + " LlamaLinearScalingRotaryEmbedding LlamaDynamicNTKScalingRotaryEmbedding",
    ),
    _models("glm4_moe", _decoder("Glm4Moe", "Glm4MoeMoE Glm4MoeTopkRouter")),
    _models("qwen3_next", _decoder("Qwen3Next", "Qwen3NextSparseMoeBlock Qwen3NextGatedDeltaNet")),
    _models(
        "smallthinker",
        _decoder("Smallthinker", "SmallthinkerMoeBlock SmallthinkerDenseMlpBlock"),
    ),
)

# Names for `match.class` in torch.nn that these models can hold, or hold a subclass of.
TORCH_MODULES = frozenset(
    f"torch.nn.{name}"
    for name in (
        "Module ModuleList ModuleDict Sequential Identity Linear Bilinear Embedding LayerNorm"
        " RMSNorm GroupNorm Dropout SiLU GELU ReLU Tanh Sigmoid Softmax Conv1d MultiheadAttention"
        " ParameterList"
    ).split()
)
