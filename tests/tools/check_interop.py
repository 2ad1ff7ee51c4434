"""Runs the blocks of the pages on LangChain and lm-eval against a server with the real chat model.

python -m tests.tools.check_interop PYTHON        (check_interop.sh makes PYTHON's environment)
"""

import re
import sys

from tests.support import smollm2
from tests.support.pages import blocks, run_blocks
from tests.support.serving import Server


def main(python: str) -> int:
    failures = []
    with Server(smollm2.dense_path(), "--cache_lens", "4096") as server:
        for page in ("langchain", "lm-eval"):
            # lm-eval's command is left out: its task's questions are fetched from a hub.
            sources = [source for language, source in blocks(page) if language == "python"]
            try:
                model = str(smollm2.dense_path())
                said = run_blocks("python", sources, server.url, python, model)
            except AssertionError as error:
                failures.append(f"{page}: {error}")
                continue
            print(f"== {page}\n{said}", flush=True)
            if page == "lm-eval":
                likely, unlikely = map(float, re.findall(r"\((-[0-9.]+), (?:True|False)\)", said))
                if not likely > unlikely:
                    failures.append("lm-eval: Tokyo is less likely than a village")
    for failure in failures:
        print("FAILED:", failure)
    return min(len(failures), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
