"""bench.cpu's arithmetic and its models: figures that are wrong would be believed."""

import sys

import numpy as np
import pytest
from gguf import GGUFReader

from bench import cpu, cpu_models, cpu_run, cpu_tables, cpu_turns, cpu_verdict, report
from bench.cpu_engine import Engine, EngineFailed
from bench.cpu_work import phase_of, uniform_distinct, work_of
from ktransformers.checkpoint.gguf import open_model
from ktransformers.runtime.loading import model_config
from tests.support.families import Family

GIB = 2**30


def small(family: Family, **changes) -> Family:
    """The family narrowed to a file of a few MB, its name and structure kept."""
    return Family(family.name, family.architecture, family.model, family.config | changes,
                  family.split_kv_b)  # fmt: skip


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    family = small(
        cpu_models.qwen3(2), hidden_size=256, vocab_size=1024, num_experts=16,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, moe_intermediate_size=256,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_models, "POOL_BYTES", 1 << 20)
        return family, cpu_models.make(family, tmp_path_factory.mktemp("models"))


def test_the_written_file_is_what_was_planned(qwen3):
    family, path = qwen3
    reader = GGUFReader(path)
    plans = {plan.name: plan for plan in cpu_models.tensors_of(family)}
    assert {t.name for t in reader.tensors} == set(plans)
    for tensor in reader.tensors:
        plan = plans[tensor.name]
        assert tensor.tensor_type == plan.kind
        assert tuple(tensor.shape[::-1]) == plan.shape
        assert tensor.n_bytes == plan.nbytes


def test_weights_have_the_deviation_asked_for(qwen3):
    family, path = qwen3
    gguf = open_model(path)
    for plan in cpu_models.tensors_of(family):
        values = gguf.dequantize(plan.name)
        assert np.isfinite(values).all(), plan.name
        if plan.std:
            assert values.std() == pytest.approx(plan.std, rel=0.1), plan.name
        else:
            assert (values == 1.0).all(), plan.name


def test_types_are_those_of_q4_k_m():
    kinds = {plan.name: plan.kind.name for plan in cpu_models.tensors_of(cpu_models.qwen3(1))}
    assert kinds["blk.0.ffn_gate_exps.weight"] == kinds["blk.0.ffn_up_exps.weight"] == "Q4_K"
    assert kinds["blk.0.ffn_down_exps.weight"] == kinds["blk.0.attn_v.weight"] == "Q6_K"
    assert kinds["blk.0.ffn_gate_inp.weight"] == "F32" and kinds["output.weight"] == "Q6_K"
    lite = {plan.name: plan.kind.name for plan in cpu_models.tensors_of(cpu_models.mixtral(1))}
    assert lite["blk.0.attn_output.weight"] == lite["token_embd.weight"] == "Q4_K"


@pytest.mark.parametrize("width", sorted(cpu_models.WIDTHS))
def test_layers_are_sized_to_memory(width):
    spec = cpu_models.WIDTHS[width]
    largest = cpu_models.sized(width, 1024 * GIB)
    assert largest.config["num_hidden_layers"] == spec.most
    assert cpu_models.file_bytes(cpu_models.sized(width, 24 * GIB)) <= 8 * GIB
    assert cpu_models.sized(width, GIB // 2) is None


def test_known_sizes_of_the_recorded_models():
    assert cpu_models.file_bytes(cpu_models.qwen3(16)) == pytest.approx(6.9e9, rel=0.01)
    assert cpu_models.file_bytes(cpu_models.deepseek_v3(2)) == pytest.approx(7.9e9, rel=0.01)


def test_work_counts_what_a_token_reads(qwen3):
    _, path = qwen3
    gguf = open_model(path)
    work = work_of(gguf.tensors.values(), model_config(gguf)[1])
    assert (work.experts, work.used) == (16, 8)
    experts = sum(t.nbytes for t in gguf.tensors.values() if "_exps" in t.name)
    others = sum(
        t.nbytes
        for t in gguf.tensors.values()
        if "_exps" not in t.name and not t.name.startswith("token_embd")
    )
    assert work.decode_bytes(0) == experts / 2 + others
    assert work.decode_bytes(10) - work.decode_bytes(0) == 10 * 2 * 2 * 2 * (2 * 64)
    assert work.phases["experts"].ops == 2 * 2 * 8 * 3 * 256 * 256
    # 64 of 100 positions are counted twice; one row of logits in halves.
    head = 2 * 1024 * 256
    body = sum(phase.ops for name, phase in work.phases.items() if name != "head")
    assert work.phases["head"].ops == head
    assert work.linear_ops(100) == body * 164 + 2 * head
    # Attention: 4 heads of 64, keys and values, two layers, a triangle of positions.
    least = work.prompt_seconds(100, int8=1e30, bf16=1.0)
    assert least == pytest.approx(4 * 64 * 4 * 2 * (100 * 101 / 2))


def test_a_tied_embedding_is_the_head():
    assert phase_of("token_embd.weight", is_tied=True) == "head"
    assert phase_of("token_embd.weight", is_tied=False) is None
    assert phase_of("blk.1.ffn_gate_shexp.weight", False) == "shared"
    assert phase_of("blk.1.ffn_gate_inp.weight", False) == "router"
    assert phase_of("blk.1.ffn_down.weight", False) == "dense"


def test_uniform_expectation_matches_a_draw():
    rng = np.random.default_rng(1)
    draws = [len(np.unique(np.argsort(rng.random((8, 128)), axis=1)[:, :8])) for _ in range(400)]
    assert np.mean(draws) == pytest.approx(uniform_distinct(128, 8, 8), rel=0.01)


MACHINE = {"cpu": "AMD EPYC", "cores": 2}
FLOOR = {"read_gbps": 55.0}


def turn(seconds: float, peer: float, read: float = 60.0, **limits) -> dict:
    """Four tokens of either side, ours at the limits given."""
    pair = {"seconds": seconds, "read_gbps": read, **limits}
    return {"ours": [pair] * 4, "peer": [peer] * 4}


def at_read(nbytes: float):
    return lambda pair: nbytes / pair["read_gbps"] / 1e9


def test_fractions_and_ratios_are_those_of_their_moments():
    # The bandwidth halves and both sides with it: neither figure moves.
    turns = [turn(0.02 * k, 0.05 * k, 60.0 / k) for k in (1, 2, 1, 2, 2)]
    row = cpu_turns.compared("decode 128", turns, at_read(0.9 * 0.02 * 60e9), {})
    assert row["fraction"] == pytest.approx(0.9)
    assert row["ratio"] == pytest.approx(2.5)
    assert (row["turns"], row["void"]) == ("5/5", "")
    assert row["seconds"] == pytest.approx(0.04) and row["read_gbps"] == 30.0


def test_only_turns_that_count_make_a_row():
    slow, good = turn(0.10, 0.02, 30.0), turn(0.02, 0.05, 60.0)
    row = cpu_turns.compared("decode 128", [slow] * 9 + [good] * 3, at_read(1e9), FLOOR)
    assert (row["turns"], row["void"], row["seconds"]) == ("3/12", "", 0.02)
    assert row["ratio"] == pytest.approx(2.5)
    row = cpu_turns.compared("decode 128", [slow] * 9 + [good] * 2, at_read(1e9), FLOOR)
    assert (row["turns"], row["void"], row["seconds"]) == ("2/11", "30 GB/s", 0.10)
    row = cpu_turns.compared("decode 128", [good] * 2, at_read(1e9), FLOOR)
    assert row["void"] == "only 2/2 turns count"
    assert cpu_turns.verdict([(1.0, 0.5)], row["void"]).startswith("void")


def test_prompts_need_arithmetic_too_on_both_sides():
    floor = cpu_turns.floor_of("prompt 512", MACHINE, "avx512bf16")
    good = turn(1.0, 3.0, int8_tops=0.9) | {"beside_peer": {"read_gbps": 60.0, "int8_tops": 0.9}}
    assert cpu_turns.counts(good, floor)
    assert not cpu_turns.counts(turn(1.0, 3.0, int8_tops=0.8), floor)
    assert not cpu_turns.counts(good | {"beside_peer": {"read_gbps": 50.0}}, floor)
    assert cpu_turns.compared("prompt 512", [good], at_read(1), floor)["void"] == ""
    # Another instruction set has another peak, another machine has no record, decode only reads.
    for work, machine, isa, kinds in (
        ("prompt 512", MACHINE, "avx2", {"read_gbps"}),
        ("decode 128", MACHINE, "avx512", {"read_gbps"}),
        ("512 tokens", MACHINE, "avx512", {"read_gbps", "int8_tops"}),
        ("prompt 512", MACHINE | {"cores": 64}, "avx512", set()),
    ):
        assert set(cpu_turns.floor_of(work, machine, isa)) == kinds


def test_further_turns_are_wanted_only_of_short_ones():
    slow = turn(0.1, 0.2, 30.0)
    assert cpu_turns.wants_more("decode 128", [slow] * 12, FLOOR)
    assert cpu_turns.wants_more("4 rows", [slow] * 12, FLOOR)
    assert not cpu_turns.wants_more("prompt 512", [slow], FLOOR)
    assert not cpu_turns.wants_more("decode 128", [slow] * 9 + [turn(0.02, 0.05)] * 3, FLOOR)
    assert not cpu_turns.wants_more("decode 128", [slow] * 12, {})


def test_a_side_may_be_missing():
    row = cpu_turns.compared("decode 128", [{"peer": [0.05]}] * 5, at_read(1), FLOOR)
    assert (row["peer_seconds"], row["seconds"], row["fraction"], row["void"]) == (
        0.05, None, None, "",
    )  # fmt: skip
    row = cpu_turns.compared("4 rows", [{"ours": turn(0.02, 0)["ours"]}] * 5, at_read(6e8), FLOOR)
    assert (row["fraction"], row["ratio"]) == (pytest.approx(0.5), None)
    assert cpu_turns.verdict([(0.9, 0.8), (None, 2.4)], "") == ""
    assert cpu_turns.verdict([(0.7, 0.8), (None, 2.4)], "") == "short"


@pytest.fixture(scope="module")
def work(qwen3):
    gguf = open_model(qwen3[1])
    return work_of(gguf.tensors.values(), model_config(gguf)[1])


def found_with(turns: dict, ours: str = "ours", peer: str = "llama.cpp") -> dict:
    return {"engines": {ours: {"isa": "avx2" if "avx2" in ours else "avx512"}},
            "groups": [{"ours": ours, "peer": peer, "turns": turns}]}  # fmt: skip


def test_verdicts_hold_rates_against_what_is_asked(work):
    least = work.decode_bytes(128) / 60e9
    elsewhere = MACHINE | {"cores": 3}

    def row(share, peer, model="qwen3-30b-a3b-16layers"):
        turns = {"decode 128": [turn(least / share, least / peer)] * 3}
        (found,) = cpu_verdict.rows_of(model, work, found_with(turns), elsewhere)
        assert found["fraction"] == pytest.approx(share)
        assert found["ratio"] == pytest.approx(share / peer)
        assert found["limit"] == pytest.approx(1 / least)
        return found["verdict"]

    assert row(0.9, 0.3) == "ok"
    assert row(0.87, 0.3) == "short"  # of the bandwidth
    assert row(0.9, 0.4) == "short"  # of the peer
    assert row(0.9, 0.4, "qwen3-30b-a3b-2layers") == ""  # nothing is asked


def test_limits_of_prompts_and_rows_are_those_of_the_work(work):
    limits = {"read": 60.0, "int8_tops": 0.9, "bf16_tflops": 0.45}
    turns = {"prompt 512": [turn(1.0, 3.0, **limits)], "4 rows": [turn(0.5, 0, **limits)] * 3}
    prompt, rows = cpu_verdict.rows_of("any", work, found_with(turns), MACHINE)
    assert prompt["fraction"] == pytest.approx(work.prompt_seconds(512, 0.9e12, 0.45e12))
    assert (prompt["ours"], prompt["peer"]) == (512, pytest.approx(512 / 3))
    assert rows["fraction"] == pytest.approx(work.rows_seconds(4, 64, 60e9, 0.9e12) / 0.5)
    assert (rows["ours"], rows["must"]) == (8, "67%")


def test_rows_beside_a_slow_peer_are_void(work):
    def verdict(rate, machine=MACHINE, model="qwen3-30b-a3b-16layers"):
        turns = {"decode 128": [turn(0.01, 1 / rate)] * 3}
        (found,) = cpu_verdict.rows_of(model, work, found_with(turns), machine)
        return found["verdict"]

    assert verdict(20.0) == "void: llama.cpp 20.0 tokens/s, known to do 27.3"
    assert not verdict(24.0).startswith("void")
    assert not verdict(20.0, MACHINE | {"cores": 64}).startswith("void")
    assert not verdict(20.0, model="mixtral-8x7b-8layers").startswith("void")


def test_forced_instruction_sets_have_their_own_peer_and_bar(work):
    turns = {"decode 128": [turn(0.02, 0.03)] * 3, "prompt 512": [turn(0.9, 1.0)]}
    found = found_with(turns, "ours-avx2", "xllamacpp")
    decode, prompt = cpu_verdict.rows_of("qwen3-30b-a3b-16layers", work, found, MACHINE)
    assert (decode["must"], decode["verdict"]) == ("1.4x", "ok")
    assert (prompt["must"], prompt["verdict"]) == ("1.2x", "short")


def test_crowded_routers_are_told():
    crowded = {"tokens": 8, "distinct": 40.0, "uniform": 51.0, "share": 40 / 51}
    assert len(cpu_verdict.uneven([crowded, crowded | {"share": 0.95}])) == 1


def test_phases_stand_beside_the_limits_of_their_moment(work):
    nbytes = work.phases["attention"].nbytes
    runs = [
        {"spans": {"attention": nbytes / 0.8 / (read * 1e9)}, "limits": {"read_gbps": read}}
        for read in (20.0, 60.0, 40.0)
    ]
    (row,) = cpu_verdict.phase_rows(work, {"decode": runs})
    assert row["of limit"] == pytest.approx(0.8) and row["GB/s"] == pytest.approx(0.8 * 40)


# ---- what is kept ----


def entry_of(model: str, date: str, mode: str = "full", work: str = "decode 128") -> dict:
    row = {"work": work, "engine": "ours", "peer_engine": "llama.cpp", "ours": 70.0, "peer": 20.0,
           "limit": 75.0, "fraction": 0.91, "ratio": 3.5, "must": "88%, 2.4x", "read_gbps": 31.0,
           "verdict": "void: 31 GB/s", "void": "31 GB/s", "turns": "1/12",
           "int8_tops": None}  # fmt: skip
    return {"model": model, "layers": 2, "file_bytes": 10**9, "engines": {
        "ours": {"engine": "ktransformers avx512", "isa": "avx512", "activations": "auto",
                 "threads": 2}}, "missing": {"xllamacpp": "not installed"}, "rows": [row],
        "phases": [], "routing": [], "void": [], "turns": {"groups": []}, "mode": mode,
        "machine": MACHINE, "commit": "abc", "command": "python -m bench.cpu", "date": date,
    }  # fmt: skip


def test_a_models_entry_leaves_those_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    bare = {name: value for name, value in entry_of("a", "").items()
            if name not in ("machine", "commit", "date", "mode", "command")}  # fmt: skip
    cpu.keep(bare, "full", [])
    cpu.keep(bare | {"model": "b"}, "full", ["--models", "b"])
    cpu.keep(bare | {"rows": []}, "part", ["--prompts", "512"])
    path = cpu.keep(bare | {"layers": 3}, "quick", ["--quick"])
    entries = cpu_tables.entries_of(path)
    assert len(entries) == 4 and all(e["commit"] and e["date"] for e in entries.values())
    assert entries["b-2layers, full"]["command"] == "python -m bench.cpu --models b"
    assert len(entries["a-2layers, full"]["rows"]) == 1  # the part did not replace it
    assert cpu_tables.entries_of(tmp_path / "none.json") == {}


def test_the_page_shows_the_newest_full_runs():
    def keyed(*entries):
        return {cpu_tables.key_of(entry): entry for entry in entries}

    kept = keyed(entry_of("a", "2026-01-02"), entry_of("b", "2026-01-02"))
    measured = keyed(
        entry_of("a", "2026-01-03", work="decode 8192"), entry_of("b", "2026-01-01"),
        entry_of("b", "2026-01-09", "quick"), entry_of("c", "2026-01-09", "quick"),
        entry_of("d", "2026-01-09", "part"),
    )  # fmt: skip
    shown = cpu_tables.published(cpu_tables.newer(kept, measured))
    dates = {e["model"]: (e["date"], e["mode"]) for e in shown.values()}
    assert dates == {"a": ("2026-01-03", "full"), "b": ("2026-01-02", "full"),
                     "c": ("2026-01-09", "quick")}  # fmt: skip
    page = cpu_tables.with_part(
        "# Head\n<!-- measured -->\nold \\1\n<!-- end -->\nfoot\n",
        cpu_tables.page_part(shown, []),
    )
    assert page.startswith("# Head") and page.endswith("foot\n") and "old" not in page
    assert "| decode 8192 | 70 | 75 | 91.0% | llama.cpp | 20 | 3.5x | 88%, 2.4x | void: 31" in page
    assert "kernels avx512, activations auto" in page and "xllamacpp: not installed" in page
    with pytest.raises(ValueError, match="no place"):
        cpu_tables.with_part("# Head", "")
    assert "<!-- measured -->" in cpu_tables.PAGE.read_text()


def test_plots_are_drawn_of_what_there_is(tmp_path, recwarn):
    pytest.importorskip("matplotlib")
    alone = entry_of("a", "2026-01-02")
    alone["rows"][0] |= {"peer": None, "limit": None}
    assert [path.name for path in cpu_tables.plots([alone], tmp_path)] == ["cpu-decode.png"]
    assert not [str(w.message) for w in recwarn if "labels" in str(w.message)]


# ---- engines that answer lines ----

TINY = """
import sys
from bench.answering import answer
class Tiny:
    def __init__(self, job):
        if job["how"] == "missing":
            import no_such_module_anywhere
        self.job, self.facts = job, {"engine": "tiny"}
        print("{\\"loaded\\": 1} a line of its own", end="")
    def twice(self, n):
        print([1, 2]); print('"text"'); print("{}")
        return [2 * n]
    def fail(self):
        raise RuntimeError("the very reason")
    def vanish(self):
        print("gone", file=sys.stderr, flush=True)
        import os
        os._exit(5)
    def sleep(self):
        import time
        time.sleep(60)
sys.exit(answer(Tiny))
"""


def tiny(how: str = "", timeout: float = 60.0) -> Engine:
    return Engine("tiny", [sys.executable, "-c", TINY], {"how": how}, timeout=timeout)


def test_an_engine_stays_and_answers():
    engine = tiny()
    assert engine.facts == {"engine": "tiny"}
    assert [engine.ask("twice", n=n) for n in (1, 2)] == [[2], [4]]
    engine.end()
    engine.end()
    assert engine.process.returncode == 0


def test_engines_that_fail_say_why():
    for do, words in (("fail", "RuntimeError: the very reason"), ("vanish", "gone")):
        engine = tiny()
        with pytest.raises(EngineFailed, match=words) as caught:
            engine.ask(do)
        assert caught.value.engine == "tiny" and engine.process.poll() is not None
    with pytest.raises(EngineFailed, match="not installed: run `make peers`.*no_such_module"):
        tiny("missing")
    engine = tiny(timeout=2.0)
    with pytest.raises(EngineFailed, match="no answer within 2 s"):
        engine.ask("sleep")
    assert engine.process.poll() is not None


def test_ours_is_measured_end_to_end(qwen3, work):
    family, path = qwen3
    job = cpu_run.Job([96], [300], rows=[4], turns=2, tokens=2, prompt_turns=1)
    said = []
    found = cpu_run.measure(path, family.config["vocab_size"], ["ours"], job, said.append)
    assert found["missing"] == {} and found["engines"]["ours"]["isa"]
    (group,) = found["groups"]
    assert (group["ours"], group["peer"]) == ("ours", None)
    assert {name: len(turns) for name, turns in group["turns"].items()} == {
        "prompt 96": 1, "decode 300": 2, "4 rows": 2,
    }  # fmt: skip
    for row in cpu_verdict.rows_of("any", work, found, MACHINE | {"cores": 3}):
        assert row["ours"] > 0 and row["read_gbps"] > 0 and row["ratio"] is None
        assert row["fraction"] is None or row["fraction"] > 0
    phases = cpu_verdict.phase_rows(work, found["phases"])
    assert {(row["step"], row["phase"]) for row in phases} == {
        (step, phase)
        for step in ("decode", "prompt")
        for phase in ("embedding", "attention", "experts", "head")
    }
    routing = {row["tokens"]: row for row in cpu_verdict.routing_rows(work, found["routing"])}
    assert routing[1]["distinct"] == 8 and 8 < routing[8]["distinct"] <= 16
