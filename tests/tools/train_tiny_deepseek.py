"""Trains the small DeepSeek-V3-architecture model of the tests and writes it as a GGUF file.

    python -m tests.tools.train_tiny_deepseek tinyshakespeare.txt

transformers' DeepseekV3ForCausalLM itself is trained, in bf16 autocast on the CPU, with two changes
that leave its function alone: a faster way through the experts and dropout on the residual
branches. The last tenth of the text is never trained on. Routers are balanced as DeepSeek-V3's are:
no auxiliary loss, after each step the correction bias of an expert goes down if it had more than
its share and up if it had less.

At the end the GGUF file is read back into a fresh transformers model in fp32, its logits are
compared with those of the trained one, the figures are measured on the file's F16 weights, and the
targets are checked.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from tests.support import tiny_deepseek as tiny
from tests.tools.export_tiny_deepseek import export

# Tokens of a step, as (windows, tokens each). Most steps are short, where attention is cheap; the
# long ones teach every position up to the context length.
SHORT_STEP, LONG_STEP, LONG_STEP_EVERY = (16, 256), (4, 1024), 4
# An expert's rows are padded to a multiple of this: bf16 products are compiled anew for each shape.
ROWS_QUANTUM = 64
# How far one step may move a router's correction bias; scores are sigmoids, in 0..1.
BIAS_STEP = 0.002


def experts_by_expert(self, hidden, expert_ids, weights):
    """The experts' forward with tokens sorted by expert.

    Same result as transformers' own loop. Taking the experts with `unbind` rather than by index
    matters: the backward of an index fills a zero tensor of the size of all experts, for each one.

    Shapes: hidden [n, h]; expert_ids, weights [n, k]; result [n, h].
    """
    flat = expert_ids.flatten()
    order = flat.argsort(stable=True)
    token = order // expert_ids.shape[1]
    counts = torch.bincount(flat, minlength=self.num_experts).tolist()
    outputs = []
    inputs = hidden.index_select(0, token).split(counts)
    experts = zip(inputs, self.gate_up_proj.unbind(0), self.down_proj.unbind(0), strict=True)
    for x, gate_up, down in experts:
        padded = F.pad(x, (0, 0, 0, -len(x) % ROWS_QUANTUM))
        gate, up = F.linear(padded, gate_up).chunk(2, dim=-1)
        outputs.append(F.linear(F.silu(gate) * up, down)[: len(x)])
    weighted = torch.cat(outputs).float() * weights.flatten().index_select(0, order)[:, None]
    return (
        torch.zeros(hidden.shape, dtype=torch.float32)
        .index_add(0, token, weighted)
        .to(hidden.dtype)
    )


ALL_EXPERTS_FUNCTIONS.register("by_expert", experts_by_expert)


def train_tokenizer(text: str) -> Tokenizer:
    """A byte-level BPE: two special tokens, all bytes, then merges."""
    tokenizer = tiny.gpt2_tokenizer(tokenizer_models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=tiny.FAMILY.config["vocab_size"],
        special_tokens=[tiny.BOS, tiny.EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


class Batches:
    """Random windows of the training tokens, each opened by BOS."""

    def __init__(self, tokens: torch.Tensor, seed: int):
        self.tokens = tokens
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, windows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = torch.randint(len(self.tokens) - length, (windows, 1), generator=self.generator)
        targets = self.tokens[start + torch.arange(length)]
        return F.pad(targets[:, :-1], (1, 0), value=tiny.BOS_ID), targets


def prepare_for_training(model: DeepseekV3ForCausalLM, dropout: float) -> torch.Tensor:
    """Adds dropout and a count of the routers' loads, which it returns: [MoE layers, experts]."""

    def drop(module, _args, output):
        if isinstance(output, tuple):
            return (F.dropout(output[0], dropout, module.training), *output[1:])
        return F.dropout(output, dropout, module.training)

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)
    model.model.embed_tokens.register_forward_hook(drop)

    for gate in tiny.routers(model):
        gate.forward = torch.autocast("cpu", enabled=False)(gate.forward)  # routers choose in fp32
    return tiny.count_loads(model)[0]


@torch.no_grad()
def balance(model: DeepseekV3ForCausalLM, loads: torch.Tensor) -> None:
    """DeepSeek-V3's balancing without an auxiliary loss."""
    for gate, load in zip(tiny.routers(model), loads, strict=True):
        gate.e_score_correction_bias += BIAS_STEP * (load.mean() - load).sign()
        # Only differences matter to the choice. With the least bias at zero all biased scores are
        # positive, so that marking an excluded group by zero or by -inf gives the same choice.
        gate.e_score_correction_bias -= gate.e_score_correction_bias.min()


def make_optimizer(
    model: DeepseekV3ForCausalLM, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.97), fused=True)


def learning_rate_factor(step: int, steps: int, warmup: int = 60) -> float:
    """A linear rise, then a cosine down to 1 %."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def train(model, tokens: torch.Tensor, args, probe) -> None:
    """Runs `args.steps` steps; prints progress and, now and then, what `probe(model)` says."""
    loads = prepare_for_training(model, args.dropout)
    optimizer = make_optimizer(model, args.lr, args.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: learning_rate_factor(s, args.schedule)
    )
    batches = Batches(tokens, args.seed)
    began = time.time()
    mean_loss = 0.0
    for step in range(1, args.steps + 1):
        model.train()
        inputs, targets = batches.draw(*(LONG_STEP if step % LONG_STEP_EVERY == 0 else SHORT_STEP))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(inputs, use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        balance(model, loads)
        loads.zero_()
        mean_loss += (loss.item() - mean_loss) / min(step, 50)
        if step % 50 == 0:
            seconds = time.time() - began
            print(
                f"step {step:5d} {seconds:6.0f} s  training nats/token {mean_loss:.3f}", flush=True
            )
        if step % args.probe_every == 0:
            print(f"            {probe(model)}", flush=True)
            loads.zero_()


@torch.no_grad()
def compare_with_file(model: DeepseekV3ForCausalLM, path: Path, tokens: torch.Tensor) -> float:
    """The largest difference of logits between the trained model and transformers' own of the file.

    The trained weights are rounded as the file has them first, so that what is left is export,
    import and the faster experts. Both run in fp32. Raises if they differ by more than the rounding
    of sums can explain.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "mlp.gate." not in name:
            parameter.copy_(parameter.half())
    fresh = tiny.load_model(path)
    logits, expected = (m(tokens[None], use_cache=False).logits for m in (fresh, model))
    difference = (logits - expected).abs().max().item()
    if not difference < 1e-3 or not torch.equal(logits.argmax(-1), expected.argmax(-1)):
        raise AssertionError(
            f"the file's model differs from the trained one: logits by {difference}"
        )
    return difference


def report_figures(path: Path, held_out: str) -> dict:
    """The figures of the file on all of the held-out text, in windows of two lengths."""
    model, tokenizer = tiny.load_model(path), tiny.load_tokenizer(path)
    report = {"file_bytes": path.stat().st_size, "held_out_characters": len(held_out)}
    for window in (tiny.WINDOW, model.config.max_position_embeddings):
        report[f"window_{window}"] = tiny.measure(model, tokenizer, held_out, window=window)
    return report


def check_targets(report: dict) -> bool:
    """Prints each target with the figure reached; true if all are met."""
    figures = report[f"window_{tiny.WINDOW}"]
    loss, rise = figures["nats_per_character"], figures["perplexity_rise_top_expert_dropped"]
    entropy = min(figures["router_load_entropy"])
    rows = [
        (
            f"held-out nats per character {loss:.4f} <= {tiny.MAX_NATS_PER_CHARACTER}",
            loss <= tiny.MAX_NATS_PER_CHARACTER,
        ),
        (
            f"least router load entropy {entropy:.4f} >= {tiny.MIN_LOAD_ENTROPY}",
            entropy >= tiny.MIN_LOAD_ENTROPY,
        ),
        (
            f"perplexity rise without the top expert {rise:.1%} >= {tiny.MIN_PERPLEXITY_RISE:.0%}",
            rise >= tiny.MIN_PERPLEXITY_RISE,
        ),
        (
            f"file bytes {report['file_bytes']:,} <= {tiny.MAX_FILE_BYTES:,}",
            report["file_bytes"] <= tiny.MAX_FILE_BYTES,
        ),
    ]
    for text, is_met in rows:
        print("met   " if is_met else "MISSED", text)
    return all(is_met for _, is_met in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="tinyshakespeare.txt")
    parser.add_argument("--out", type=Path, default=tiny.MODEL, help="figures go beside it (.json)")
    parser.add_argument("--steps", type=int, default=730)
    parser.add_argument("--schedule", type=int, default=1000, help="steps the rate's cosine spans")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--probe-every", type=int, default=200, help="steps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    began = time.time()

    text = args.text.read_text(encoding="utf-8")
    held_out = tiny.held_out_text(text)
    train_text = text.removesuffix(held_out)
    tokenizer = train_tokenizer(train_text)
    tokens = torch.tensor(tokenizer.encode(train_text).ids)
    held_out_tokens = torch.tensor(tokenizer.encode(held_out).ids)

    def probe(model) -> str:
        model.eval()
        sample = held_out_tokens[: 16 * tiny.WINDOW]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            nats, loads = tiny.evaluate(model, sample)
        entropy = ", ".join(f"{e:.3f}" for e in tiny.load_entropy(loads))
        per_character = nats / len(tokenizer.decode(sample.tolist()))
        return f"held-out sample: {per_character:.4f} nats/character, load entropy {entropy}"

    config = DeepseekV3Config(
        **tiny.FAMILY.config,
        num_mtp_layers=0,
        initializer_range=0.04,
        attn_implementation="sdpa",
        experts_implementation="by_expert",
    )
    model = DeepseekV3ForCausalLM(config)
    weights = sum(p.numel() for p in model.parameters())
    print(f"{weights:,} weights; {len(tokens):,} training tokens", flush=True)
    train(model, tokens, args, probe)
    wall_minutes, cpu_minutes = (time.time() - began) / 60, time.process_time() / 60

    export(model.state_dict(), tokenizer, args.out)
    difference = compare_with_file(model.eval(), args.out, held_out_tokens[: tiny.WINDOW])
    report = report_figures(args.out, held_out)
    report["logits_difference_after_reload"] = difference
    names = ("steps", "schedule", "lr", "weight_decay", "dropout", "seed", "threads")
    report["training"] = {name: getattr(args, name) for name in names}
    report["training"]["wall_minutes"] = round(wall_minutes, 1)
    report["training"]["cpu_minutes"] = round(cpu_minutes, 1)
    figures = args.out.with_name(args.out.name.split(".")[0] + ".json")
    figures.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    raise SystemExit(0 if check_targets(report) else 1)


if __name__ == "__main__":
    main()
