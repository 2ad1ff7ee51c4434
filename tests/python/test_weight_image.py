"""Repacked weights on disk: the same answers, only for the same file, whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ktransformers import AutoModelForCausalLM
from ktransformers.checkpoint.gguf import open_model
from ktransformers.checkpoint.weight_image import ImageWriter, open_image, remove_leftovers
from ktransformers.errors import UserError
from tests.support import ours
from tests.support.miniatures import miniature, write

ROOT = Path(__file__).parents[2]
IDS = [int(i) for i in np.random.default_rng(3).integers(3, 250, 80)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(miniature("deepseek_v3", "Q8_0"), tmp_path_factory.mktemp("model") / "m.gguf")


@pytest.fixture(scope="module")
def expected(path):
    return ours.logits(AutoModelForCausalLM.from_pretrained(str(path)), IDS, 70)


def load(path, folder, **options):
    return AutoModelForCausalLM.from_pretrained(str(path), weight_cache=folder, **options)


def images(folder):
    return sorted(folder.glob("*.ktw*"))


@pytest.mark.parametrize("in_place", [False, True])
def test_written_and_read_back_it_changes_no_bit(path, expected, tmp_path, in_place):
    for turn in range(3):
        model = load(path, tmp_path, in_place=in_place)
        store = model.kt.engine.store
        assert (store.writer is not None) == (turn == 0) and store.in_place == in_place
        assert np.array_equal(ours.logits(model, IDS, 70), expected)
        (image,) = images(tmp_path)
        assert image.suffix == ".ktw" and image.stat().st_size >= path.stat().st_size // 2


def test_one_image_serves_both_ways(path, expected, tmp_path):
    load(path, tmp_path)
    model = load(path, tmp_path, in_place=True)
    assert model.kt.engine.store.reader is not None
    assert np.array_equal(ours.logits(model, IDS, 70), expected)


def test_every_tensor_but_the_embedding_comes_from_the_image(path, tmp_path):
    load(path, tmp_path)
    reader = open_image(tmp_path, [str(path)])
    tensors = open_model(path).tensors
    matrices = {n for n, t in tensors.items() if len(t.shape) > 1 and n != "token_embd.weight"}
    assert set(reader.entries) == matrices


def test_an_image_of_another_state_of_the_file_is_not_used(path, tmp_path):
    model = tmp_path / "m.gguf"
    model.write_bytes(path.read_bytes())
    folder = tmp_path / "cache"
    load(model, folder)
    assert open_image(folder, [str(model)])
    stamp = model.stat().st_mtime_ns + 1
    os.utime(model, ns=(stamp, stamp))
    assert open_image(folder, [str(model)]) is None
    load(model, folder)
    assert open_image(folder, [str(model)])
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    os.utime(model, ns=(stamp, stamp))
    assert open_image(folder, [str(model)]) is None


@pytest.mark.parametrize("keep", [0, 7, 4096, -1, -16, -17])
def test_a_truncated_image_is_made_again(path, expected, tmp_path, keep):
    load(path, tmp_path)
    (image,) = images(tmp_path)
    os.truncate(image, keep if keep >= 0 else image.stat().st_size + keep)
    assert open_image(tmp_path, [str(path)]) is None
    model = load(path, tmp_path)
    assert np.array_equal(ours.logits(model, IDS, 70), expected)
    assert open_image(tmp_path, [str(path)])


def test_damaged_records_are_taken_from_the_model_instead(path, expected, tmp_path):
    load(path, tmp_path)
    (image,) = images(tmp_path)
    reader = open_image(tmp_path, [str(path)])
    for name, entry in reader.entries.items():
        assert entry["offset"] % 4096 == 0 and entry["bytes"] % 8 == 0, name
    where = [e["offset"] + e["bytes"] // 2 for e in reader.entries.values()]
    with open(image, "r+b") as file:
        for at in where[::3]:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 0x10]))
    model = load(path, tmp_path)
    assert model.kt.engine.store.reader is not None
    assert np.array_equal(ours.logits(model, IDS, 70), expected)


def test_a_writer_that_fails_leaves_nothing(path, tmp_path):
    with pytest.raises(UserError, match="not enough memory for this test"):

        def fail(*_):
            raise UserError("not enough memory for this test")

        load(path, tmp_path, progress=fail)
    assert images(tmp_path) == []


def test_no_room_on_disk_is_said_with_numbers(path, tmp_path):
    with pytest.raises(UserError, match=r"need 1048576\.0 GiB, [\d.]+ GiB are free"):
        ImageWriter(tmp_path, [str(path)], 1 << 50)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="--weight_cache"):
        load(path, tmp_path / "file")


# Writes an image and stops where it is told to, with half of the parts on disk.
KILLED = """
import sys
from ktransformers import AutoModelForCausalLM
from ktransformers.checkpoint import weight_image
keep, left = weight_image.ImageWriter.keep, [6]
def slow(self, *rest):
    keep(self, *rest)
    left[0] -= 1
    if left[0] == 0:
        self._file.flush()
        print("half way", flush=True)
        sys.stdin.read()
weight_image.ImageWriter.keep = slow
AutoModelForCausalLM.from_pretrained(sys.argv[1], weight_cache=sys.argv[2], in_place=True)
"""


def test_killed_while_writing_it_leaves_no_image(path, expected, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(tmp_path)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout.readline() == "half way\n"
    (partial,) = images(tmp_path)
    assert ".partial-" in partial.name
    remove_leftovers(tmp_path)  # it is still being written
    assert partial.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert open_image(tmp_path, [str(path)]) is None
    model = load(path, tmp_path)
    assert np.array_equal(ours.logits(model, IDS, 70), expected)
    (image,) = images(tmp_path)
    assert image.suffix == ".ktw"


def test_kill_at_any_moment_leaves_an_image_that_is_absent_or_whole(path, expected, tmp_path):
    """The instant of the rename is hit by chance, if at all: whatever is there must be usable."""
    code = (
        KILLED.replace("left[0] == 0", "False")
        .replace("AutoModel", "print('go', flush=True)\nAutoModel", 2)
        .replace(
            "from ktransformers import print('go', flush=True)\n", "from ktransformers import "
        )
    )
    for delay in (0.0, 0.1, 0.4):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(tmp_path)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.stdout.readline() == "go\n"
        time.sleep(delay)
        process.kill()
        process.wait()
        reader = open_image(tmp_path, [str(path)])
        assert reader is not None or all(".partial-" in p.name for p in images(tmp_path))
    assert np.array_equal(ours.logits(load(path, tmp_path), IDS, 70), expected)
