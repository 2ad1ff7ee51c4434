"""A decode step in time: its operations in the order that the graph is captured in, each as long as
its bytes take, drawn as a picture.

    python -m bench.cuda.timeline LIBRARY [--out step.svg] [--cpu-gbps 400] [--gpu-gbps 2300]
        [--defer 3]

The order is csrc/cuda/graph/step.cpp's own (LIBRARY: the CUDA library or its emulated twin); the
durations are estimates for one token of DeepSeek-V3, from bytes, bandwidths and launch times. A
simulated trace, to show what waits for what; nothing here was measured.
"""

import argparse
import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

from ktransformers.cuda_library import CudaLibrary

MOE, SHARED, ON_CPU, IN_SLOTS, DEFERS = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class Machine:
    """gpu_gbps, cpu_gbps: what kernels reach of memory's bandwidth. launch_us: from one kernel of a
    graph to the next. handoff_us: until the other side sees a flag. deferred: of a token's 8
    experts, in layers that defer."""

    gpu_gbps: float = 2300.0
    cpu_gbps: float = 400.0
    launch_us: float = 1.5
    handoff_us: float = 2.0
    deferred: int = 0


# name: (MB read on the card for one token of DeepSeek-V3 at 4k, kernels). Q4_K_M, kv_b in f16.
GPU_WORK = {
    "embed": (0.03, 1),
    "attention": (146.0, 14),
    "dense ffn": (240.0, 5),
    "router": (7.4, 3),
    "copy to host": (0.03, 1),
    "shared expert": (26.7, 4),
    "resident experts": (26.7, 5),
    "copy from host": (0.03, 1),
    "deferred from host": (0.03, 1),
    "combine": (0.03, 1),
    "head": (700.0, 4),
    "sample": (0.5, 1),
}
CPU_MB = 8 * 26.7  # experts of a layer


@dataclass(frozen=True)
class Span:
    """lane: main, side or cpu. Times in microseconds."""

    lane: str
    name: str
    begin: float
    end: float


def operations(library: CudaLibrary, flags: list[int]) -> list[list[str]]:
    text = ctypes.create_string_buffer(64 * 16 * (len(flags) + 2))
    array = (ctypes.c_int * len(flags))(*flags)
    library.call("record_step", array, len(flags), 1, text, ctypes.c_size_t(len(text)))
    return [line.split() for line in text.value.decode().splitlines()]


def own_jobs(jobs: list[int]) -> int:
    """Of job numbers in the order they are posted: how many are no layer's deferred experts."""
    own = 0
    for job in jobs:
        own += job == own + 1
    return own


def simulate(lines: list[list[str]], machine: Machine) -> list[Span]:
    """When each operation runs: a stream is busy with one at a time, an order makes a stream wait
    for another, a job starts when its flag is seen and ends before its await does."""
    free = {"main": 0.0, "side": 0.0, "cpu": 0.0}
    # Deferred experts are jobs behind all others: `count` after the job they are a part of.
    jobs = [int(words[0]) for kind, *words in lines if kind == "post"]
    count = own_jobs(jobs)
    part = machine.deferred / 8
    done: dict[str, float] = {}
    spans = []
    for kind, *words in lines:
        if kind == "order":
            free[words[1]] = max(free[words[1]], free[words[0]])
        elif kind == "post":
            begin = max(free["main"] + machine.handoff_us, free["cpu"])
            job = int(words[0])
            share = part if job > count else 1 - part if job + count in jobs else 1.0
            free["cpu"] = begin + share * CPU_MB * 1e3 / machine.cpu_gbps
            done[words[0]] = free["cpu"] + machine.handoff_us
            name = "deferred experts" if job > count else "experts"
            spans.append(Span("cpu", name, begin, free["cpu"]))
        elif kind == "await":
            if done[words[0]] > free["main"]:
                spans.append(Span("main", "wait", free["main"], done[words[0]]))
            free["main"] = max(free["main"], done[words[0]])
        else:
            name = " ".join(words[:-1])
            megabytes, kernels = GPU_WORK[name]
            end = free[kind] + megabytes * 1e3 / machine.gpu_gbps + kernels * machine.launch_us
            spans.append(Span(kind, name, free[kind], end))
            free[kind] = end
    return spans


COLOURS = {"attention": "#4477aa", "dense ffn": "#66ccee", "router": "#aa3377", "wait": "#eeeeee",
           "shared expert": "#228833", "experts": "#ee6677", "deferred experts": "#ffaabb",
           "resident experts": "#ccbb44", "head": "#66ccee"}  # fmt: skip
LANES = {"main": "GPU, main stream", "side": "GPU, side stream", "cpu": "CPU cores"}


def svg(spans: list[Span], width: int = 1000) -> str:
    """The picture; widths are time, names stand where there is room, titles tell the rest."""
    whole = max(span.end for span in spans)
    left, scale = 130, (width - 170) / whole
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 190" '
             'font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="190" fill="white"/>']  # fmt: skip
    for row, (lane, title) in enumerate(LANES.items()):
        y = 15 + 45 * row
        parts.append(f'<text x="5" y="{y + 22}">{title}</text>')
        for span in spans:
            if span.lane != lane:
                continue
            x, w = left + span.begin * scale, max(0.5, (span.end - span.begin) * scale)
            colour = COLOURS.get(span.name, "#bbbbbb")
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{w:.1f}" height="34" fill="{colour}" '
                         f'stroke="#555555" stroke-width="0.4"><title>{span.name}: '
                         f'{span.begin:.0f} to {span.end:.0f} us</title></rect>')  # fmt: skip
            if w > 7 * len(span.name):
                parts.append(f'<text x="{x + 4:.1f}" y="{y + 21}">{span.name}</text>')
    for tick in range(6):
        x = left + whole * scale * tick / 5
        parts.append(f'<line x1="{x:.1f}" y1="10" x2="{x:.1f}" y2="155" stroke="#999999" '
                     'stroke-width="0.3"/>')  # fmt: skip
        parts.append(f'<text x="{x - 12:.1f}" y="172">{whole * tick / 5:.0f} us</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cuda.timeline", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("library", type=Path)
    parser.add_argument("--out", type=Path, default=Path("step.svg"))
    parser.add_argument("--cpu-gbps", type=float, default=Machine.cpu_gbps)
    parser.add_argument("--gpu-gbps", type=float, default=Machine.gpu_gbps)
    parser.add_argument("--defer", type=int, default=0, help="of 8 experts, by layers that can")
    options = parser.parse_args(argv)
    moe = MOE | SHARED | ON_CPU
    flags = [0, moe, moe | IN_SLOTS]
    if options.defer:
        flags = [0, moe | DEFERS, moe | DEFERS, moe]
    machine = Machine(options.gpu_gbps, options.cpu_gbps, deferred=options.defer)
    spans = simulate(operations(CudaLibrary(options.library), flags), machine)
    options.out.write_text(svg(spans))
    for span in spans:
        print(f"{span.begin:8.0f} {span.end:8.0f} us  {span.lane:<5} {span.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
