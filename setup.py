"""Builds ktransformers._core with CMake; everything else is declared in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeExtension(Extension):
    def __init__(self, name: str):
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        wanted = Path(self.get_ext_fullpath(ext.name)).resolve()
        # An editable install shares its build folder with `make core`, which builds beside the
        # sources; setuptools wants a copy to put there itself.
        output = ROOT / "ktransformers" if self.editable_mode else wanted.parent
        build = Path(os.environ.get("KT_BUILD_DIR", self.build_temp)).resolve()
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DKT_OUTPUT_DIR={output}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build), "--target", "_core"], check=True)
        if self.editable_mode:
            wanted.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(output / wanted.name, wanted)


setup(ext_modules=[CMakeExtension("ktransformers._core")], cmdclass={"build_ext": CMakeBuild})
