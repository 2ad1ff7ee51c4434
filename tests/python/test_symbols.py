"""What the object of each instruction set may contain: nothing the linker could hand to another.

A weak symbol compiled with AVX-512 may be the copy that a machine without it runs; a dynamic
initializer would run on every machine. Looks at the objects of the CMake folder KT_OBJECTS (by
default build). `make check` looks at an -O0 build too, where nothing is inlined away.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / os.environ.get("KT_OBJECTS", "build")
ISAS = re.findall(r"^kt_add_isa\((\w+)", (ROOT / "cmake/isa.cmake").read_text(), re.M)


def bad_symbols(nm_output: str) -> list[str]:
    """Lines of `nm -C` that name a weak or unique symbol, or a dynamic initializer."""
    return [
        line
        for line in nm_output.splitlines()
        if re.match(r"^[0-9a-f ]{16} [WwVvu] ", line) or "_GLOBAL__sub_I" in line
    ]


def nm(path: Path) -> str:
    return subprocess.run(["nm", path], check=True, capture_output=True, text=True).stdout


def test_every_isa_is_listed():
    assert {"scalar", "avx2", "avxvnni", "avx512", "avx512bf16", "amx"} <= set(ISAS)


@pytest.mark.parametrize("isa", ISAS)
def test_isa_objects_have_no_shared_symbols(isa):
    objects = sorted(BUILD.glob(f"CMakeFiles/kt_isa_{isa}.dir/**/*.o"))
    assert objects, f"{BUILD} holds no build of kt_isa_{isa}; run make core"
    for path in objects:
        assert not bad_symbols(nm(path)), path.name


def test_the_check_sees_a_weak_symbol_and_an_initializer(tmp_path):
    source = tmp_path / "leak.cpp"
    source.write_text(
        "#include <algorithm>\n#include <string>\nstd::string name(std::to_string(1));\n"
        "int f(const int* a, const int* b) { return std::max(*a, *b); }\n"
    )
    subprocess.run(["g++", "-O0", "-c", source, "-o", tmp_path / "leak.o"], check=True)
    bad = bad_symbols(nm(tmp_path / "leak.o"))
    assert any("max" in line for line in bad)
    assert any("_GLOBAL__sub_I" in line for line in bad)
