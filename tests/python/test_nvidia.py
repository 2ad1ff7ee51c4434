"""What a start says about GPUs, with a driver library that stands in for NVIDIA's."""

import ctypes

import pytest

from ktransformers import cuda_library
from ktransformers.cli import doctor
from ktransformers.errors import UserError
from ktransformers.optimize import nvidia

GIB = 2**30
CARD = nvidia.Card("NVIDIA H100 80GB HBM3", 80 * GIB, 79 * GIB, "580.159.04")


class Nvml:
    """Two cards; the second may not be used by this process (status 4, no permission)."""

    def nvmlInit_v2(self):
        return 0

    def nvmlShutdown(self):
        return 0

    def nvmlSystemGetDriverVersion(self, text, size):
        text.value = b"580.159.04"
        return 0

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        handle._obj.value = 7 + index
        return 0 if index == 0 else 4

    def nvmlDeviceGetName(self, handle, text, size):
        assert handle.value == 7
        text.value = b"NVIDIA H100 80GB HBM3"
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle, memory):
        memory._obj.total, memory._obj.free = 80 * GIB, 79 * GIB
        return 0


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    nvidia.module_state.cache_clear()
    monkeypatch.delenv("KT_VRAM_LIMIT", raising=False)
    monkeypatch.delenv("KT_CUDA_LIBRARY", raising=False)
    yield
    nvidia.module_state.cache_clear()


def test_cards_are_those_the_driver_lets_this_process_use():
    assert nvidia.cards(lambda name: Nvml()) == [CARD]


def test_no_driver_is_no_card_and_no_line(monkeypatch):
    def absent(name):
        raise OSError(name)

    assert nvidia.cards(absent) == []
    monkeypatch.setattr(nvidia, "read", lambda path: "")
    assert nvidia.start_lines(found=[]) == []
    monkeypatch.setattr(nvidia, "read", lambda path: "NVRM version")
    assert "no card answers" in nvidia.start_lines(found=[])[0]


def test_a_card_is_never_passed_over_silently(monkeypatch, tmp_path):
    monkeypatch.setenv("KT_CUDA_LIBRARY", str(tmp_path / "libkt_cuda.so"))
    card, module = nvidia.start_lines(found=[CARD])
    assert card == "GPU 0: NVIDIA H100 80GB HBM3, 80.0 GiB (79.0 free), driver 580.159.04"
    assert module.startswith("CUDA module: off, KT_CUDA_LIBRARY names no file")
    assert nvidia.start_lines("off", [CARD])[-1] == "CUDA module: off by --gpu off"


def test_a_module_that_is_not_built_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_library, "place", lambda: tmp_path / "libkt_cuda.so")
    assert nvidia.module_state() == (False, "not built; build it with: make cuda")
    nvidia.module_state.cache_clear()
    (tmp_path / "libkt_cuda.so").write_bytes(b"no library")
    assert nvidia.module_state()[1].startswith("off, ")


def test_a_module_of_another_version_is_said_to_be_one(monkeypatch, tmp_path):
    class Old:
        kt_cuda_error = ctypes.CFUNCTYPE(ctypes.c_char_p)(lambda: b"")

        @staticmethod
        def kt_cuda_version():
            return 0

    (tmp_path / "libkt_cuda.so").touch()
    monkeypatch.setattr(cuda_library, "place", lambda: tmp_path / "libkt_cuda.so")
    monkeypatch.setattr(cuda_library.ctypes, "CDLL", lambda path: Old())
    loads, text = nvidia.module_state()
    assert not loads and "version 0" in text and "make cuda" in text


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * GIB), ("24g", 24 * GIB), ("512 MB", 512 << 20), ("1000", 1000),
     ("1.5G", 3 * GIB // 2)],
)  # fmt: skip
def test_vram_limit(monkeypatch, text, size):
    monkeypatch.setenv("KT_VRAM_LIMIT", text)
    assert nvidia.vram_limit() == size
    line = nvidia.start_lines(found=[CARD])[0]
    assert f"KT_VRAM_LIMIT allows {size / GIB:.1f} GiB" in line


@pytest.mark.parametrize("text", ["much", "0", "-1G", "24 parsecs", "9" * 400, "9999999999G"])
def test_a_vram_limit_that_is_no_size(monkeypatch, text):
    monkeypatch.setenv("KT_VRAM_LIMIT", text)
    with pytest.raises(UserError, match="KT_VRAM_LIMIT") as error:
        nvidia.start_lines(found=[CARD])
    assert len(str(error.value)) < 100
    monkeypatch.setenv("KT_PIN_LIMIT", text)
    if text != "0":
        with pytest.raises(UserError, match="KT_PIN_LIMIT"):
            nvidia.pin_limit()


def test_doctor_tells_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_library, "place", lambda: tmp_path / "libkt_cuda.so")
    monkeypatch.setattr(nvidia, "cards", lambda: [CARD])
    card, module = doctor.check_gpu()
    assert card.verdict == doctor.GOOD and "H100" in card.text
    assert (module.verdict, module.text, module.todo) == (
        doctor.NOTE, "not built", "build it with: make cuda",
    )  # fmt: skip
