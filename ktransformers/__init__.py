"""KTransformers: very large Mixture-of-Experts language models on one ordinary machine.

    from ktransformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("model.gguf")
    tokenizer = AutoTokenizer.from_pretrained("model.gguf")

Importing the package imports no torch; loading a model does.
"""

__version__ = "0.1.0"

__all__ = ["AutoModelForCausalLM", "AutoTokenizer", "__version__"]


def __getattr__(name: str):
    if name in ("AutoModelForCausalLM", "AutoTokenizer"):
        from ktransformers.runtime import auto

        return getattr(auto, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
