"""Whole rule files shaped like those upstream shipped: single GPU, several, serve, AMX, FP8.

Same kinds of rules in the same order, for models of full depth; the text is our own. Each entry
names a published model (models/known.py), a miniature of its family, and how many GPUs it is for.
"""

from dataclasses import dataclass

from tests.support import upstream_rules as parts
from tests.support.upstream_rules import EMBEDDING, LAYERS, experts, linear, model, on, plain, rule

V2, V3 = "modeling_deepseek.DeepseekV2", "modeling_deepseek_v3.DeepseekV3"


@dataclass(frozen=True)
class File:
    """devices: of the attention of each layer, as the file means it."""

    model: str
    miniature: str
    text: str
    gpus: int
    devices: tuple[str, ...]


def layers(first: int, last: int) -> str:
    """A pattern of these layers, digit by digit as people write it."""
    numbers = [str(n) for n in range(first, last + 1)]
    tens: dict[str, list[str]] = {}
    for number in numbers:
        tens.setdefault(number[:-1], []).append(number[-1])
    one = [f"{ten}[{ones[0]}-{ones[-1]}]" for ten, ones in tens.items()]
    return rf"^model\.layers\.({'|'.join(one)})\."


def split(count: int, gpus: int) -> list[tuple[str, str]]:
    """[(device, pattern of its layers)], consecutive layers in equal parts."""
    edges = [count * i // gpus for i in range(gpus + 1)]
    return [(f"cuda:{i}", layers(edges[i], edges[i + 1] - 1)) for i in range(gpus)]


def owners(count: int, gpus: int) -> tuple[str, ...]:
    return tuple(f"cuda:{next(i for i in range(gpus) if n < count * (i + 1) // gpus)}"
                 for n in range(count))  # fmt: skip


def latent(v2: bool, count: int, gpus: int, op: str = "KLinearMarlin", marlin: bool = False) -> str:
    """DeepSeek on several GPUs: every kind of rule once per GPU; marlin: experts of the first."""
    prefix, out = (V2 if v2 else V3), [EMBEDDING]
    rotary = "Yarn" if v2 else ""
    spans = split(count, gpus)
    for device, span in spans:
        out += [
            rule("RoPE.YarnRotaryEmbedding" + ("" if v2 else "V3"), span,
                 f"{prefix}{rotary}RotaryEmbedding", on(device)),
            linear(device, span + r"(?!self_attn\.kv_b_proj).*$", op),
            rule("experts.KDeepseekV2MoE" if v2 else "experts.KDeepseekV3MoE", span + "mlp$",
                 f"{prefix}MoE", on(device)),
            "" if v2 else rule("gate.KMoEGate", span + "mlp\\.gate$", f"{prefix[:-10]}MoEGate",
                               on(device)),
        ]  # fmt: skip
        ops = {"generate_op": "KExpertsMarlin", "generate_device": f'"{device}"'}
        own = ops if marlin and device == "cuda:0" else {}
        out += [
            experts(device, span + r"mlp\.experts$", **own),
            rule("attention.KDeepseekV2Attention", span + "self_attn$", None, on(device)),
        ]
    moves = {count * i // gpus: f"cuda:{i}" for i in range(1, gpus)}
    last = spans[-1][0]
    out.append(model("KDeepseekV2Model", transfer_map=moves))
    out += [plain(device, span) for device, span in spans]
    return "".join([*out, linear(last, "^lm_head", op), plain(last, r"^model\.norm")])


def lite_half_on_cpu() -> str:
    """V2-Lite: ten layers on the GPU, the others on the CPU, as the file for small cards."""
    out = [EMBEDDING]
    for device, span, op in (("cuda:0", layers(0, 9), "KLinearMarlin"),
                             ("cpu", layers(10, 26), "KLinearCPUInfer")):  # fmt: skip
        out += [
            rule("RoPE.YarnRotaryEmbedding", span, V2 + "YarnRotaryEmbedding", on(device)),
            rule("linear.KTransformersLinear", span + r"(?!self_attn\.kv_b_proj).*$",
                 "torch.nn.Linear", {"generate_device": device, "generate_op": op,
                 "prefill_device": device, "prefill_op": "KLinearTorch", "out_device": device}),
            rule("experts.KDeepseekV2MoE", span + "mlp$", V2 + "MoE", on(device)),
            experts(device, span + r"mlp\.experts$"),
            rule("attention.KDeepseekV2Attention", span + "self_attn$", None, on(device)),
        ]  # fmt: skip
    out.append(model("KDeepseekV2Model", transfer_map={10: "cpu"}))
    return "".join([*out, plain("cuda:0", layers(0, 9)), plain("cpu", "(^model.norm)|(^lm_head)")])


CPU_OP = "generate_op: KExpertsCPU"


def on_backend(text: str, backend: str) -> str:
    """The same with a `backend` for the experts."""
    return text.replace(CPU_OP, f"{CPU_OP}\n      backend: {backend}")


def qwen2(serve: bool = False) -> str:
    text = parts.qwen2moe()
    if not serve:
        return text
    module = "modeling_qwen2_moe.Qwen2Moe"
    text = text.replace("KTransformersExperts", "KTransformersExpertsV2")
    text = text.replace("SparseMoeBlock\n    kwargs", "SparseMoeBlockV2\n    kwargs")
    text = text.replace("KLinearMarlin", "VLinearMarlin")
    first, _, rest = text.partition("- match:\n    name: '^model$'")
    more = (
        rule("balance_serve_attention.KQwen2MoeAttention", LAYERS + r"\.self_attn$", None,
             on("cuda"))
        + rule("layernorm.KQwen2MoeRMSNorm", None, module + "RMSNorm", on("cuda"))
        + rule("mlp.KQwen2MoeMLP", None, module + "MLP", on("cuda"))
    )  # fmt: skip
    return first + more + "- match:\n    name: '^model$'" + rest


def glm() -> str:
    module = "modeling_glm4_moe.Glm4Moe"
    more = on("cuda")
    return "".join(
        (
            rule("RoPE.KGlm4MoeRotaryEmbedding", None, module + "RotaryEmbedding", more),
            linear("cuda", "^lm_head$", "VLinearMarlin"),
            linear("cuda", r"^model\.layers\.(?!.*mlp\.gate).*$", "VLinearMarlin"),
            rule("experts.KGlm4MoeMoE", LAYERS + r"\.mlp$", module + "MoE", more),
            experts("cuda", LAYERS + r"\.mlp\.experts$", prefill_op='"None"')
            .replace("KTransformersExperts", "KGlm4Experts"),
            rule("balance_serve_attention.KGlm4MoeAttention", LAYERS + r"\.self_attn$", None, more),
            rule("layernorm.KGlm4MoeRMSNorm", None, module + "RMSNorm", more),
            rule("mlp.KGlm4MoeMLP", None, module + "MLP", more),
            EMBEDDING,
        )
    )  # fmt: skip


def fp8(text: str) -> str:
    """FP8 linears on the GPU, experts of a GGUF on the CPU; lm_head as it was."""
    head, mark, rest = text.partition("(?!.*self_attn")
    return head + mark + rest.replace("KLinearMarlin", "KLinearFP8", 1).replace(
        "VLinearMarlin", "KLinearFP8", 1)  # fmt: skip


def one(name: str, miniature: str, text: str, count: int) -> File:
    return File(name, miniature, text, 1, ("cuda:0",) * count)


def several(name: str, miniature: str, text: str, count: int, gpus: int) -> File:
    return File(name, miniature, text, gpus, owners(count, gpus))


def files() -> dict[str, File]:
    serve, v3 = parts.deepseek_v3_serve(), "deepseek_v3"
    moonlight = parts.deepseek_v3("RoPE.RotaryEmbeddingV3")
    return {
        "V2-Lite": one("DeepSeek-V2-Lite", "deepseek_v2_lite", parts.deepseek_v2_lite(), 27),
        "V2": one("DeepSeek-V2", "deepseek_v2", parts.deepseek_v2_lite(), 60),
        "V2-2gpu": several("DeepSeek-V2", "deepseek_v2", latent(True, 60, 2), 60, 2),
        "V2-4gpu": several("DeepSeek-V2", "deepseek_v2", latent(True, 60, 4), 60, 4),
        "V2-Lite-2gpu": several("DeepSeek-V2-Lite", "deepseek_v2_lite", latent(True, 27, 2), 27, 2),
        "V2-Lite-gpu-cpu": File("DeepSeek-V2-Lite", "deepseek_v2_lite", lite_half_on_cpu(), 1,
                                ("cuda:0",) * 10 + ("cpu",) * 17),
        "V3": one("DeepSeek-V3", v3, parts.deepseek_v3(), 61),
        "V3-amx": one("DeepSeek-V3", v3, parts.deepseek_v3(backend="AMXInt8"), 61),
        "V3-serve": one("DeepSeek-V3", v3, serve, 61),
        "V3-fp8": one("DeepSeek-V3", v3, fp8(parts.deepseek_v3()), 61),
        "V3-fp8-serve": one("DeepSeek-V3", v3, fp8(serve), 61),
        "V3-fp8-serve-amx": one("DeepSeek-V3", v3, on_backend(fp8(serve), '"llamafile"'), 61),
        "V3-2gpu": several("DeepSeek-V3", v3, latent(False, 61, 2), 61, 2),
        "V3-2gpu-fp8": several("DeepSeek-V3", v3, latent(False, 61, 2, "KLinearFP8"), 61, 2),
        "V3-2gpu-marlin": several("DeepSeek-V3", v3, latent(False, 61, 2, marlin=True), 61, 2),
        "V3-4gpu": several("DeepSeek-V3", v3, latent(False, 61, 4), 61, 4),
        "V3-8gpu": several("DeepSeek-V3", v3, latent(False, 61, 8), 61, 8),
        "Moonlight": one("Moonlight-16B-A3B", "moonlight", moonlight, 27),
        "Qwen2": one("Qwen2-57B-A14B", "qwen2moe", qwen2(), 28),
        "Qwen2-serve": one("Qwen2-57B-A14B", "qwen2moe", qwen2(serve=True), 28),
        "Qwen2-serve-amx": one(
            "Qwen2-57B-A14B", "qwen2moe", on_backend(qwen2(serve=True), "AMXInt8"), 28),
        "Qwen3-serve-amx": one("Qwen3-235B-A22B", "qwen3moe", parts.qwen3moe(), 94),
        "Mixtral": one("Mixtral-8x7B", "mixtral", parts.mixtral(), 32),
        "GLM-serve": one("GLM-4.5-Air", "glm4moe", glm(), 46),
    }  # fmt: skip


FILES = files()
