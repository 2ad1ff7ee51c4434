"""The tables of docs/planner.md: what the planner says of described machines, and what others got.

    python -m bench.fit_tables            prints them
    python -m bench.fit_tables --write    puts them into docs/planner.md

Computed from docs/machines/ and the models' public configurations; nothing is measured.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.fit_check import tested_table
from bench.report import ROOT
from ktransformers.optimize.box import GB, read_box
from ktransformers.optimize.fit import Fit, fit
from ktransformers.optimize.known import known_facts

PAGE = ROOT / "docs" / "planner.md"
MACHINES = ("no_gpu", "gpu24", "gpu24x2", "gpu80", "dual_socket")
MODELS = ("DeepSeek-V3", "Qwen3-235B-A22B", "Qwen3-30B-A3B", "Mixtral-8x7B")
SHORT = {"attention": "attention", "shared": "shared", "dense": "dense", "head": "head",
         "experts": "experts"}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """What somebody reported. prompt 0: not told."""

    machine: str
    model: str
    context: int
    prompt: int
    decode: str
    prefill: str
    who: str
    why: str


PUBLISHED = (
    Published("dual_socket", "DeepSeek-V3:Q4_K_M", 1024, 1024, "13.4", "88; 255 with int8 AMX",
              "KTransformers 0.2.1 to 0.3",
              "it reached 27 % of this machine's bandwidth end to end; one copy of the weights per "
              "socket, a callback per layer between GPU and CPU"),
    Published("socket_6980p", "DeepSeek-V3:Q4_K_M", 512, 512, "8.9 to 9.6", "153",
              "ik_llama.cpp",
              "39 % of the bandwidth: beyond 64 of its 128 threads it gained nothing"),
    Published("epyc_5090", "DeepSeek-V3:Q4_K_M", 1024, 1024, "16.4", "158", "ik_llama.cpp",
              "33 % of the bandwidth; prompts of this length on the CPU"),
    Published("two_epyc_5090", "DeepSeek-V3:Q4_K_M", 4096, 8192, "28", "1200 (FP8, 20K and more)",
              "a hybrid system, OSDI 2026",
              "350 us of GPU work a layer, which the prediction does not have; its prompts stream "
              "FP8 over PCIe, twice the bytes"),
    Published("gpu24", "Qwen3-30B-A3B:Q8_0", 4096, 4096, "42.9", "-",
              "FreeToken, RTX 4090, BF16, a sibling of 35B",
              "BF16 reads 1.9 times the bytes; its host had 63 GB/s and six threads"),
)  # fmt: skip


def placed(made: Fit) -> str:
    """What is on GPUs, in a few words."""
    found: dict[str, list[int]] = {}
    for one in made.placed:
        if one.group.kind in SHORT:
            total = found.setdefault(one.group.kind, [0, 0])
            total[0] += one.device != "cpu"
            total[1] += 1
    whole = [SHORT[k] for k, (on, of) in found.items() if on == of]
    parts = [f"{on} of {of} layers' {SHORT[k]}" for k, (on, of) in found.items() if 0 < on < of]
    return ", ".join([*whole, *parts]) or "nothing"


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def machine_table(name: str) -> list[str]:
    box = read_box(ROOT / "docs" / "machines" / f"{name}.yaml")
    out = [
        f"**{box.line()}** (`docs/machines/{name}.yaml`)\n",
        row("model, Q4_K_M", "GB", "on the GPUs", "GB there", "tokens/s", "prompts", "bound by"),
        "|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        made = fit(known_facts(model), box, context=8192)
        there = sum(used for device, used in made.used.items() if device != "cpu")
        if made.verdict:
            size = f"{made.facts.nbytes / GB:.0f}"
            out.append(row(model, size, made.verdict, "", "", "", ""))
            continue
        out.append(
            row(
                model,
                f"{made.facts.nbytes / GB:.0f}",
                placed(made),
                f"{there / GB:.1f}",
                f"{made.speed:.1f}",
                f"{made.prompt:.0f}",
                made.prompt_bound,
            )
        )
    return [*out, ""]


def published_table() -> list[str]:
    out = [
        row(
            "machine, model",
            "predicted, tokens/s",
            "published",
            "predicted prompt",
            "published",
            "whose, and why it differs",
        ),
        "|---|---|---|---|---|---|",
    ]
    for one in PUBLISHED:
        box = read_box(ROOT / "docs" / "machines" / f"{one.machine}.yaml")
        made = fit(known_facts(one.model), box, one.context, one.prompt)
        out.append(
            row(
                f"{one.machine}, {one.model}",
                f"{made.speed:.1f}",
                one.decode,
                f"{made.prompt:.0f}",
                one.prefill,
                f"{one.who}: {one.why}",
            )
        )
    return out


def tables() -> dict[str, str]:
    """{name of the mark in the page: text}"""
    machines = [line for name in MACHINES for line in machine_table(name)]
    return {
        "tested": tested_table(),
        "machines": "\n".join(machines).strip(),
        "published": "\n".join(published_table()),
    }


def with_tables(text: str) -> str:
    """The page with its tables renewed."""
    for name, table in tables().items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.S)
        if not mark.search(text):
            raise SystemExit(f"error: {PAGE.name} has no place for the table {name!r}")
        text = mark.sub(lambda m, table=table: m[1] + table + m[2], text)
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fit_tables", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--write", action="store_true")
    if parser.parse_args(argv).write:
        Path(PAGE).write_text(with_tables(PAGE.read_text()))
    else:
        print("\n\n".join(tables().values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
