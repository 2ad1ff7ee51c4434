"""AutoModelForCausalLM and AutoTokenizer with transformers' call, for GGUF files."""

from pathlib import Path

from ktransformers.errors import UserError


def resolve(path: str | Path) -> str:
    """A local path as it is; `user/repo[:quant]` downloaded. Raises: UserError."""
    from ktransformers.checkpoint.hub import resolve_model

    return str(resolve_model(str(path)))


def resolve_folder(path: str | Path | None) -> str | None:
    """A Hugging Face folder as it is; the config files of `user/repo` downloaded."""
    if path is None:
        return None
    from ktransformers.checkpoint.hub import resolve_config

    return str(resolve_config(str(path)))


class AutoModelForCausalLM:
    """`AutoModelForCausalLM.from_pretrained("model.gguf")`: a real PreTrainedModel."""

    def __init__(self):
        raise TypeError("use AutoModelForCausalLM.from_pretrained(path)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        optimize_config_path: str | None = None,
        cpu_infer: int | None = None,
        activations: str = "auto",
        *,
        model_path: str | None = None,
        cache_lens: int = 8192,
        kv_type: str | None = None,
        lowered: bool = True,
        device_map: dict[str, str] | None = None,
        progress=None,
        weight_cache: str | Path | None = None,
        in_place: bool = False,
        gpu: str = "auto",
        defer_experts: int | None = None,
        chunk_size: int | None = None,
        **unused,
    ):
        """See runtime.loading.load_model for the arguments. Raises: UserError."""
        if unused:
            raise UserError(f"from_pretrained: {', '.join(sorted(unused))}: no such argument")
        from ktransformers.runtime.loading import load_model

        return load_model(
            resolve(pretrained_model_name_or_path),
            resolve_folder(model_path),
            optimize_config_path,
            cpu_infer,
            activations,
            cache_lens=cache_lens,
            kv_type=kv_type,
            lowered=lowered,
            progress=progress,
            device_map=device_map,
            weight_cache=weight_cache,
            in_place=in_place,
            gpu=gpu,
            defer_experts=defer_experts,
            chunk_size=chunk_size,
        )


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained("model.gguf")`: a PreTrainedTokenizerFast."""

    def __init__(self):
        raise TypeError("use AutoTokenizer.from_pretrained(path)")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, model_path=None):
        """From the file's metadata; a Hugging Face folder in `model_path` wins."""
        from ktransformers.checkpoint.gguf import open_model
        from ktransformers.checkpoint.tokenizer import build_tokenizer

        gguf = open_model(resolve(pretrained_model_name_or_path))
        return build_tokenizer(gguf, resolve_folder(model_path))
