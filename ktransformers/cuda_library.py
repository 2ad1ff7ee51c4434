"""The CUDA library: where it is, and its C functions (csrc/cuda/api.h) called through ctypes.

The library needs neither torch nor the CUDA toolkit, only NVIDIA's driver. Torch is not imported:
memory is named by address, or by anything with a `data_ptr()`.
"""

import ctypes
import os
from pathlib import Path

VERSION = 8  # of the C functions' signatures
NAME = "libkt_cuda.so"


class CudaLibraryError(RuntimeError):
    """A function of the library failed; the message is the library's."""


def place() -> Path:
    """Where the library is looked for: KT_CUDA_LIBRARY, else beside the package's core."""
    forced = os.environ.get("KT_CUDA_LIBRARY")
    return Path(forced) if forced else Path(__file__).with_name(NAME)


class CudaLibrary:
    """The functions of one library file.

    Raises OSError where the file does not load, CudaLibraryError where its version is another.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = place() if path is None else path
        self._library = ctypes.CDLL(str(self.path))
        self._library.kt_cuda_error.restype = ctypes.c_char_p
        found = self._library.kt_cuda_version()
        if found != VERSION:
            raise CudaLibraryError(
                f"{self.path} has version {found} of its functions, this program needs {VERSION}"
            )

    def call(self, name: str, *arguments) -> None:
        """kt_cuda_<name>(...). Integers pass as int, floats as float, None as a null pointer,
        memory (see above) and ctypes objects as pointers and themselves.

        Raises CudaLibraryError with the library's message.
        """
        function = getattr(self._library, f"kt_cuda_{name}")
        if function(*map(_converted, arguments)) != 0:
            raise CudaLibraryError(self._library.kt_cuda_error().decode())

    def address(self, name: str) -> int:
        """Of kt_cuda_<name>, for those who call it from C."""
        return ctypes.cast(getattr(self._library, f"kt_cuda_{name}"), ctypes.c_void_p).value

    def value(self, name: str) -> int:
        """A kt_cuda_<name>() that takes nothing and returns a number."""
        return getattr(self._library, f"kt_cuda_{name}")()


def _converted(argument):
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, bool | int):
        return ctypes.c_int(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if hasattr(argument, "data_ptr"):
        return ctypes.c_void_p(argument.data_ptr())
    return argument
