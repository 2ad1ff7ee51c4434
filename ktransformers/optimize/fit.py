"""The planner: fills GPUs by intensity, reserves what a run needs first, says what comes of it.

Order: room for the cache of the asked context, for a prompt's peak and a margin; then every group
that a token reads whole - attention, shared experts, dense layers, head - in that order; then
routed experts one by one, the hottest first where a profile tells, else layer by layer. The
embedding stays in RAM: a token reads one row of it. Several GPUs take consecutive layers in
proportion to their memory. What a user's rules place stays there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ktransformers.errors import UserError
from ktransformers.optimize import estimate
from ktransformers.optimize.box import GB, Box
from ktransformers.optimize.card_steps import MOST_ROWS, SLICE, ram_bytes
from ktransformers.optimize.facts import KINDS, Group, ModelFacts
from ktransformers.optimize.hot import Profile, fill, parts
from ktransformers.optimize.prompt_chunk import LEAST as LEAST_CPU_ROWS
from ktransformers.optimize.prompt_chunk import MOST as MOST_CPU_ROWS

MARGIN = 1.0 * GB  # the driver's context, fragmentation, the desktop
RAM_SHARE = 0.92  # of RAM for weights and cache
PROMPT_ROWS = 24  # half-precision rows of the hidden size per prompt token: a layer's peak
CPU_ROWS = 26  # the same on the CPU, in floats (bench/fit_rows.json: 17 to 37)
PROCESS = 0.3 * GB  # Python with torch and transformers
EXPANDED = 64 << 20  # keys and values of the latent positions that are expanded together

REASONS = {
    "attention": "read for every token, and so is the cache, which goes where attention is",
    "shared": "read for every token, beside the routed experts",
    "dense": "read for every token",
    "head": "read for every token",
    "embedding": "a token reads one row of it",
}


@dataclass(frozen=True)
class Placed:
    """One group and its device. reason: why it is there. experts: how many of a layer's, where not
    all of them are there."""

    group: Group
    device: str
    reason: str
    experts: int | None = None


@dataclass
class Fit:
    """A placement and what it will do. used: bytes per device, reserves included; seconds: of one
    generated token, by part; verdict: "" where everything fits."""

    facts: ModelFacts
    box: Box
    context: int
    placed: list[Placed]
    reserve: dict[str, float]
    used: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    prompt: float = 0.0
    prompt_bound: str = ""
    verdict: str = ""
    profile: Profile | None = None

    @property
    def speed(self) -> float:
        """Generated tokens per second."""
        return 1 / sum(self.seconds.values())

    def room(self, device: str) -> float:
        """Bytes a device has."""
        if device == "cpu":
            return self.box.ram
        return self.box.gpus[int(device.partition(":")[2])].vram


def fit(
    facts: ModelFacts,
    box: Box,
    context: int = 8192,
    prompt: int = 2048,
    fixed: Callable[[Group], str | None] | None = None,
    profile: Profile | None = None,
) -> Fit:
    """fixed(group): the device a user's rule puts it on, or None. profile: which experts are hot.
    Raises: UserError where a rule names a GPU the machine lacks, or puts more there than it
    holds."""
    kv = float(facts.card_kv_bytes * context)  # per layer
    scratch = 2.0 * PROMPT_ROWS * facts.hidden * min(context, MOST_ROWS)
    owner = layer_owners(facts, box)
    free = {f"cuda:{i}": gpu.vram - MARGIN - scratch for i, gpu in enumerate(box.gpus)}
    devices: dict[tuple[str, int], Placed] = {}

    def put(group: Group, device: str, reason: str) -> None:
        devices[group.kind, group.layer] = Placed(group, device, reason)
        if device != "cpu":
            free[device] -= cost(group, kv)

    for group in facts.groups.values():
        device = fixed(group) if fixed else None
        if device is not None:
            if device != "cpu" and device not in free:
                raise UserError(f"a rule puts {group.kind} on {device}; {box.line()}")
            put(group, device, "a rule says so")
    for device, left in free.items():
        if left < 0 and any(p.device == device for p in devices.values()):
            raise UserError(f"the rules put {-left / GB:.1f} GB more on {device} than it holds")
    for kind in KINDS:
        if kind == "experts":
            continue
        for group in facts.of(kind):
            if (kind, group.layer) in devices:
                continue
            device = owner(group)
            if kind == "embedding" or device is None:
                put(group, "cpu", REASONS["embedding"] if kind == "embedding" else "no GPU")
            elif cost(group, kv) <= free[device]:
                put(group, device, REASONS[kind])
            else:
                short = (cost(group, kv) - free[device]) / GB
                put(group, "cpu", f"{device} is full, {short:.1f} GB short")
    left = [group for group in facts.of("experts") if ("experts", group.layer) not in devices]
    experts = place_experts(facts, left, owner, free, profile)
    placed = [*devices.values(), *experts]
    placed.sort(key=lambda p: (p.group.layer, KINDS.index(p.group.kind), p.device == "cpu"))
    made = Fit(facts, box, context, placed, {}, profile=profile)
    account(made, scratch)
    predict(made, prompt)
    return made


def cost(group: Group, kv: float) -> float:
    """Bytes a group takes on a GPU: attention brings its layer's cache."""
    return group.nbytes + (kv if group.kind == "attention" and group.layer >= 0 else 0.0)


def place_experts(
    facts: ModelFacts,
    groups: list[Group],
    owner: Callable[[Group], str | None],
    free: dict[str, float],
    profile: Profile | None,
) -> list[Placed]:
    """Routed experts into what is left of each GPU, expert by expert; the others into RAM."""
    if not facts.experts:
        return [Placed(group, "cpu", "no GPU") for group in groups]
    placed = []
    read = f"a token reads {100 * facts.used / facts.experts:.1f} % of them"
    for device in (None, *free):
        own = [group for group in groups if owner(group) == device]
        if device is None:
            placed += [Placed(group, "cpu", f"no GPU; {read}") for group in own]
            continue
        counts = fill(own, facts.experts, free[device], profile)
        for group in own:
            count = counts.get(group.layer, 0)
            there, rest = parts(group, count, facts.experts, profile)
            if count == facts.experts:
                placed.append(Placed(group, device, f"what is left of the memory; {read}"))
                continue
            if count:
                why = "the hottest by the profile" if profile else "as many as are left room for"
                placed.append(Placed(there, device, why, count))
            placed.append(Placed(rest, "cpu", f"{device} is full; {read}"))
    return placed


def layer_owners(facts: ModelFacts, box: Box) -> Callable[[Group], str | None]:
    """Which GPU a group belongs to: consecutive layers in proportion to memory; the head last."""
    if not box.gpus:
        return lambda group: None
    total, edges, sum_so_far = sum(gpu.vram for gpu in box.gpus), [], 0.0
    for gpu in box.gpus:
        sum_so_far += gpu.vram
        edges.append(round(facts.layers * sum_so_far / total))

    def owner(group: Group) -> str:
        if group.layer < 0:
            return f"cuda:{len(box.gpus) - 1}"
        return f"cuda:{next(i for i, edge in enumerate(edges) if group.layer < edge)}"

    return owner


def cpu_scratch(facts: ModelFacts, context: int) -> float:
    """Bytes in RAM beside weights and cache, at the peak of a prompt's chunk."""
    rows = 4.0 * CPU_ROWS * facts.hidden * min(context, estimate.CPU_CHUNK)
    # The latents of all positions, as floats and as 16-bit integers: the cache has them as halves.
    expanded = EXPANDED + 3.0 * facts.kv_bytes * context if facts.expand_ops else 0.0
    return PROCESS + rows + expanded


def card_ram(made: Fit) -> float:
    """Bytes in RAM of steps on GPUs, each of which has consecutive layers."""
    layers = {p.group.layer: p.device for p in made.placed if p.group.kind == "attention"}
    devices = {device for device in layers.values() if device != "cpu"}
    if not devices:
        return 0.0
    facts, runs = made.facts, len(devices)
    # Where the CPU has layers too it says how many rows: prompt_chunk() at most.
    cpu_rows = max(SLICE, MOST_CPU_ROWS if facts.experts else LEAST_CPU_ROWS)
    rows = min(made.context, cpu_rows if "cpu" in layers.values() else MOST_ROWS)
    vocab = int(facts.head_ops / 2 / facts.hidden)
    staged = runs if facts.experts else 0  # whether all can be pinned is found out in loading
    return float(
        ram_bytes(facts.hidden, facts.layers, vocab, rows, made.context, runs, staged=staged)
    )


def account(made: Fit, scratch: float) -> None:
    """Fills `used`, `reserve` and `verdict`."""
    devices = ["cpu", *(f"cuda:{i}" for i in range(len(made.box.gpus)))]
    made.used = dict.fromkeys(devices, 0.0)
    made.reserve = dict.fromkeys(devices, 0.0)
    for one in made.placed:
        made.used[one.device] += one.group.nbytes
        if one.group.kind == "attention" and one.group.layer >= 0:
            kv = made.facts.kv_bytes if one.device == "cpu" else made.facts.card_kv_bytes
            made.reserve[one.device] += float(kv * made.context)
    for device in devices[1:]:
        made.reserve[device] += MARGIN + scratch
    made.reserve["cpu"] += cpu_scratch(made.facts, made.context) + card_ram(made)
    for device in devices:
        made.used[device] += made.reserve[device]
    short = made.used["cpu"] - RAM_SHARE * made.box.ram
    if short > 0:
        made.verdict = (
            f"does not fit: {made.used['cpu'] / GB:.0f} GB are needed in RAM, "
            f"{made.box.ram / GB:.0f} GB are there ({short / GB:.0f} GB short); "
            "a smaller quant may fit"
        )


def predict(made: Fit, prompt: int) -> None:
    """Fills `seconds`, `prompt` and `prompt_bound`."""
    split = split_of(made)
    made.seconds = estimate.decode_seconds(made.facts, made.box, split, made.context)
    made.prompt, made.prompt_bound = estimate.prompt_speed(made.facts, made.box, split, prompt)


def split_of(made: Fit) -> estimate.Split:
    """What each device does of a token."""
    by_gpu = {f"cuda:{i}": gpu for i, gpu in enumerate(made.box.gpus)}
    read = dict.fromkeys(by_gpu, 0.0)
    cpu_bytes = cpu_ops = prompt_ops = experts = experts_gpu = 0.0
    attention = attention_gpu = 0
    cpu_layers = set()
    for one in made.placed:
        group = one.group
        on_gpu = one.device != "cpu"
        if on_gpu:
            read[one.device] += group.active
        else:
            cpu_bytes += group.active
            cpu_ops += group.ops
            prompt_ops += group.ops if group.kind != "head" else 0.0
            if group.kind in ("experts", "dense"):
                cpu_layers.add(group.layer)
        if group.kind == "experts":
            experts += group.nbytes
            experts_gpu += group.nbytes * on_gpu
        if group.kind == "attention" and group.layer >= 0:
            attention += 1
            attention_gpu += on_gpu
    return estimate.Split(
        gpu=tuple((by_gpu[device], count) for device, count in read.items()),
        gpu_experts=experts_gpu / experts if experts else 1.0,
        cpu_bytes=cpu_bytes,
        cpu_ops=cpu_ops,
        prompt_ops=prompt_ops,
        cpu_layers=len(cpu_layers) if by_gpu else 0,
        cache_on_gpu=attention_gpu / max(attention, 1),
    )


def neighbours(
    facts: ModelFacts, box: Box, step: float = GB, **options
) -> Mapping[str, "Fit | None"]:
    """The same plan with `step` bytes more and less on the first GPU (or in RAM)."""
    found: dict[str, Fit | None] = {}
    for sign, name in ((1, "+"), (-1, "-")):
        try:
            found[name] = fit(facts, box.with_more(sign * step), **options)
        except UserError:
            found[name] = None
    return found
