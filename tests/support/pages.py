"""Code blocks of documentation pages, run as a reader would run them."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:10002"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.M | re.S)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, source) of every block of docs/interop/<page>.md, in order."""
    text = (ROOT / "docs" / "interop" / f"{page}.md").read_text()
    return BLOCK.findall(text)


def run_blocks(
    language: str, sources: list[str], url: str, python: str = sys.executable, model: str = ""
) -> str:
    """What blocks printed that were run one after another in one process, with the server at `url`
    and `model` for my.gguf.

    Raises: AssertionError where one fails.
    """
    marks = {"python": 'print("<<done>>", flush=True)\n', "sh": 'echo; echo "<<done>>"\n'}
    source = "".join(source + marks[language] for source in sources).replace(ADDRESS, url)
    source = source.replace("my.gguf", model)
    if language == "python":
        command = [python, "-c", source]
    else:
        source = source.replace("curl ", "curl -sS --fail-with-body ")
        command = ["bash", "-euo", "pipefail", "-c", source]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=folder)
    said = done.stdout.split("<<done>>")
    assert done.returncode == 0 and len(said) == len(sources) + 1, (done.stdout, done.stderr)
    return done.stdout
