"""How faithful the arithmetic is: our logits against transformers in fp32 on the same weights.

    python -m bench.fidelity            miniatures of every family, then SmolLM2 on a text
    python -m bench.fidelity --chat     also twenty chat questions, llama.cpp's answers beside ours
    python -m bench.fidelity --quick    a quarter of everything

Each row that has a limit ends in ok or FAIL; any FAIL makes the exit status 1. The figures go to
bench/results/fidelity.json too.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import report

FAMILY_COLUMNS = "family way activations KL NMSE top-1 greedy ties verdict".split()


@dataclass
class Outcome:
    """Rows of one part, and how many of them missed their limits."""

    rows: list[dict] = field(default_factory=list)
    failed: int = 0

    def add(self, row: dict, is_good: bool | None) -> None:
        """is_good: None where the row has no limit."""
        verdict = {None: "", True: "ok", False: "FAIL"}[is_good]
        self.failed += is_good is False
        self.rows.append(row | {"verdict": verdict})


def compare_families(quick: bool) -> Outcome:
    """Miniatures with Q8_0 weights: 96 tokens in one forward, 16 more one by one, 16 greedy."""
    import numpy as np
    import torch

    from tests.support import ours, vocabulary
    from tests.support.compare import compare, greedy_match
    from tests.support.families import families
    from tests.support.miniatures import miniature, write
    from tests.support.reference import Reference

    outcome = Outcome()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ids = [int(i) for i in np.random.default_rng(2).integers(3, vocabulary.SIZE, 112)]
    table = dict(list(families().items())[:: 4 if quick else 1])
    with tempfile.TemporaryDirectory() as folder:
        for name, family in table.items():
            path = write(miniature(name, "Q8_0"), Path(folder) / f"{name}.gguf")
            reference = Reference.load(path, family)
            logits = reference.logits(ids)
            tokens, gaps = reference.greedy(ids[:20], 16, vocabulary.EOS)
            for way, lowered in ours.WAYS.items():
                for activations in ("f32", "exact", "auto"):
                    model = ours.load(path, activations, lowered)
                    result = compare(logits, ours.logits(model, ids, 96))
                    answer = ours.greedy(model, ids[:20], 16, vocabulary.EOS)
                    match = greedy_match(tokens, gaps, answer)
                    row = {"family": name, "way": way, "activations": activations}
                    row |= {"KL": result.kl_mean, "NMSE": result.nmse, "top-1": result.top1}
                    row |= {"greedy": "equal" if match.equal else f"differs at {match.compared}"}
                    row |= {"ties": result.near_ties + match.near_ties}
                    good = result.kl_mean <= 1e-8 and result.nmse <= 1e-9 and match.equal
                    outcome.add(row, good if activations == "f32" else None)
    torch.set_num_threads(threads)
    return outcome


def show(title: str, columns: list[str], outcome: Outcome) -> None:
    print(f"\n{title}")
    rows = [[row.get(column) for column in columns] for row in outcome.rows]
    print(report.table(columns, rows), flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--chat", action="store_true", help="also the chat questions")
    parser.add_argument("--quick", action="store_true", help="a quarter of everything")
    parser.add_argument("--only", choices=("families", "text", "chat"), help="one part")
    parser.add_argument("--text", type=Path, help="text for the SmolLM2 part")
    options = parser.parse_args(argv)
    parts = {options.only} if options.only else {"families", "text"}
    if options.chat:
        parts.add("chat")

    from ktransformers.errors import UserError

    print(report.header())
    try:
        outcomes = measure(parts, options)
    except (UserError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = sum(outcome.failed for outcome in outcomes.values())
    path = report.write_json("fidelity", {name: asdict(o) for name, o in outcomes.items()})
    print(f"\n{failed} rows missed their limits; figures in {path.relative_to(report.ROOT)}")
    return 1 if failed else 0


def measure(parts: set[str], options) -> dict[str, Outcome]:
    """Runs and prints the parts in order. Raises: UserError, OSError, ValueError."""
    from bench import fidelity_chat, fidelity_text

    outcomes: dict[str, Outcome] = {}
    if "families" in parts:
        outcomes["families"] = compare_families(options.quick)
        title = "Miniatures of every family, Q8_0 weights; limits for f32: KL 1e-8, NMSE 1e-9"
        show(title, FAMILY_COLUMNS, outcomes["families"])
    if "text" in parts:
        outcomes["text"] = fidelity_text.compare_text(options.text, options.quick)
        show(fidelity_text.TITLE, fidelity_text.COLUMNS, outcomes["text"])
    if "chat" in parts:
        outcomes["chat"] = fidelity_chat.compare_chat(options.quick)
        show(fidelity_chat.TITLE, fidelity_chat.COLUMNS, outcomes["chat"])
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
