"""Measures one model for bench.cpu: engines stay loaded and take turns within seconds.

On a machine whose memory's bandwidth changes by the second, two figures can be compared only if
they were taken in turns, and one can be held against a limit only if that was measured beside it.
So of each kind of work there are turns: ours, each step between readings of the limits, and the
peer's; which of them begins alternates.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import report
from bench.cpu_engine import OURS, Engine, EngineFailed, started
from bench.cpu_turns import compared, floor_of, is_long, wants_more

GROUPS = (("ours", "llama.cpp"), ("ours-avx2", "xllamacpp"))  # loaded together
ENGINES = tuple(name for group in GROUPS for name in group)
SETTLE = 0.1  # seconds between an engine's turn and another's: threads spin for a while after work
PATIENT_PAUSE = 2.0  # seconds between further turns


@dataclass
class Job:
    """What is measured. prompts, contexts: lengths in tokens; turns: of generating tokens; rows:
    sequences decoded together; patience: seconds spent on further turns while too few count."""

    prompts: list[int]
    contexts: list[int]
    rows: list[int] = field(default_factory=list)
    turns: int = 12
    tokens: int = 4
    prompt_turns: int = 3  # of short prompts; longer ones have fewer
    threads: int = 0
    activations: str = "auto"
    details: bool = True  # phases and routing of our own engine
    patience: float = 0.0

    def turns_of(self, length: int) -> int:
        return min(self.prompt_turns, 3 if length <= 1024 else 2 if length <= 4096 else 1)

    def beside_others(self) -> "Job":
        """What the second group does: the shortest context, prompts of 512 or the shortest."""
        prompts = [512] if 512 in self.prompts else self.prompts[:1]
        return Job(**asdict(self) | {
            "prompts": prompts, "contexts": self.contexts[:1], "rows": [], "details": False,
        })  # fmt: skip


class Pair:
    """Ours and a peer, either of which may not be there; both take the same tasks."""

    def __init__(self, engines: list[Engine]):
        self.ours = next((engine for engine in engines if engine.name in OURS), None)
        self.peer = next((engine for engine in engines if engine.name not in OURS), None)

    def left_without(self, name: str) -> bool:
        """Whether anyone is left when that engine has gone."""
        self.ours = self.ours if self.ours and self.ours.name != name else None
        self.peer = self.peer if self.peer and self.peer.name != name else None
        return bool(self.ours or self.peer)

    def turn(
        self, index: int, ours: Callable[[Engine], list], peer: Callable[[Engine], dict]
    ) -> dict:
        """One of bench.cpu_turns. ours(engine) -> steps, peer(engine) -> the other entries."""
        made: dict = {}
        for side in ("ours", "peer") if index % 2 == 0 else ("peer", "ours"):
            time.sleep(SETTLE)
            if side == "ours" and self.ours:
                made["ours"] = ours(self.ours)
            elif side == "peer" and self.peer:
                made |= peer(self.peer)
        return made

    def beside(self, peer: Callable[[], list]) -> dict:
        """The peer's seconds of something long, with the limits around it."""
        if not self.ours:
            return {"peer": peer()}
        before = self.ours.ask("limits")
        time.sleep(SETTLE)
        seconds = peer()
        time.sleep(SETTLE)
        after = self.ours.ask("limits")
        return {"peer": seconds, "beside_peer": {k: (before[k] + after[k]) / 2 for k in before}}

    def prompt(self, index: int, length: int) -> dict:
        def made(engine: Engine) -> list:
            return [engine.ask("prompt", length=length)]

        return self.turn(index, made, lambda engine: self.beside(lambda: made(engine)))

    def decode(self, index: int, context: int, tokens: int) -> dict:
        def made(engine: Engine) -> list:
            engine.ask("context", length=context)
            return engine.ask("decode", tokens=tokens)

        return self.turn(index, made, lambda engine: {"peer": made(engine)})

    def forward(self, index: int, tokens: int, times: int) -> dict:
        """Of bench.cpu_layer's engines."""

        def made(engine: Engine) -> list:
            return engine.ask("forward", tokens=tokens, times=times)

        if tokens == 1:
            return self.turn(index, made, lambda engine: {"peer": made(engine)})
        return self.turn(index, made, lambda engine: self.beside(lambda: made(engine)))

    def rows(self, index: int, count: int, steps: int) -> dict:
        return self.turn(index, lambda e: e.ask("rows", count=count, steps=steps), lambda e: {})


def measure(path: Path, vocab: int, engines: list[str], job: Job, say: Callable) -> dict:
    """{"engines": {name: facts}, "missing": {name: why}, "groups": [...], "phases", "routing"}

    A group: {"ours": engine or None, "peer": engine or None, "turns": {work: [turn, ...]}}.
    """
    found: dict = {"engines": {}, "missing": {}, "groups": [], "phases": {}, "routing": {}}
    for group, task in zip(GROUPS, (job, job.beside_others()), strict=True):
        # The peer first: ours lets go of the file's pages, which a peer may map.
        wanted = [name for name in reversed(group) if name in engines]
        loaded: list[Engine] = []
        if wanted:
            read_through(path)
        try:
            for name in wanted:
                if engine := load(name, path, vocab, task, found, say):
                    loaded.append(engine)
            if loaded:
                found["groups"].append(Group(loaded, task, found, say).measure())
        finally:
            for engine in loaded:
                engine.end()
    return found


def read_through(path: Path) -> None:
    """Brings a file into the page cache: peers map it, and would wait for the disk page by page."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 23):
            pass


def load(name: str, path: Path, vocab: int, job: Job, found: dict, say: Callable) -> Engine | None:
    task = {
        "model": str(path), "vocab": vocab, "activations": job.activations,
        "threads": job.threads or len(os.sched_getaffinity(0)),
        "longest": max([*job.prompts, *job.contexts, 512]),
    }  # fmt: skip
    try:
        engine = started(name, task, "bench.cpu_ours", "bench.cpu_peer")
    except EngineFailed as error:
        found["missing"][name] = str(error)
        say(f"  {name}: {error}")
        return None
    found["engines"][name] = engine.facts
    say(f"  {name} ({engine.facts['engine']}): loaded in {engine.facts['load_seconds']:.1f} s")
    return engine


class Group:
    """All turns of two engines. One that fails is left out of what follows."""

    def __init__(self, loaded: list[Engine], job: Job, found: dict, say: Callable):
        self.pair, self.job, self.found, self.say = Pair(loaded), job, found, say
        self.names = {side: e and e.name for side, e in vars(self.pair).items()}
        self.turns: dict[str, list[dict]] = {}
        # Each row of short turns has its share, and what those before it left over.
        self.share = job.patience / max(1, len(job.contexts) + len(job.rows))
        self.patience = 0.0

    def measure(self) -> dict:
        pair, job = self.pair, self.job
        for n in sorted(job.prompts):
            self.take(f"prompt {n}", job.turns_of(n), lambda i, n=n: pair.prompt(i, n))
        # From the longest: a peer keeps the positions of the prompt before, and forgets quickly.
        for n in sorted(job.contexts, reverse=True):
            self.take(f"decode {n}", job.turns, lambda i, n=n: pair.decode(i, n, job.tokens))
        if pair.ours:
            for n in job.rows:
                self.take(f"{n} rows", job.turns, lambda i, n=n: pair.rows(i, n, job.tokens))
        if pair.ours and job.details:
            self.inside(pair.ours)
        return self.names | {"turns": self.turns}

    def take(self, work: str, count: int, one: Callable[[int], dict]) -> None:
        isa = self.pair.ours.facts["isa"] if self.pair.ours else ""
        floor = floor_of(work, report.machine(), isa)
        made = self.turns[work] = []
        self.patience += 0.0 if is_long(work) else self.share
        while len(made) < count or (self.patience > 0 and wants_more(work, made, floor)):
            start, is_more = time.perf_counter(), len(made) >= count
            if is_more:
                time.sleep(PATIENT_PAUSE)
            try:
                made.append(one(len(made)))
            except EngineFailed as error:
                self.found["missing"][error.engine] = str(error)
                self.say(f"    {work}: {error.engine}: {error}")
                if not self.pair.left_without(error.engine):
                    return
            self.patience -= is_more * (time.perf_counter() - start)
        self.say(f"    {work}: {shown(compared(work, made, lambda pair: None, floor))}")

    def inside(self, ours: Engine) -> None:
        try:
            self.found["phases"] = {
                "decode": ours.ask("phases", rows=1, repeats=8),
                "prompt": ours.ask("phases", rows=512, repeats=min(2, self.job.prompt_turns)),
            }
            self.found["routing"] = ours.ask("routing")
        except EngineFailed as error:
            self.found["missing"][error.engine] = str(error)
            self.say(f"    phases: {error.engine}: {error}")


def shown(row: dict) -> str:
    """Seconds of a step as they come; rows with limits follow at the end."""
    sides = [(who, row[key]) for who, key in (("ours", "seconds"), ("peer", "peer_seconds"))]
    parts = [f"{who} {seconds * 1e3:.4g} ms" for who, seconds in sides if seconds]
    if row["read_gbps"]:
        parts.append(f"{row['read_gbps']:.0f} GB/s, {row['turns']} turns count")
    return ", ".join(parts)
