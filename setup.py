"""Build the CPU kernels: a shared library on PyTorch's stable C++ interface. Everything else is in pyproject.toml.

It has no Python binding and uses only PyTorch's stable interface, so that one binary serves every later PyTorch and
Python. Without a suitable compiler the package is installed without it, and the layer runs on PyTorch's operators.
"""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = Path("src/shuffle_attention/kernels/csrc")


def torch_directory() -> Path | None:
    """Return the folder of PyTorch in the build environment, or else in the environment installed into.

    An isolated build cannot import the latter, but its headers are enough, and they are those of the PyTorch that
    the kernels will run with; PyTorch need not be downloaded to build a few files.
    """
    spec = find_spec("torch")
    places = [Path(spec.origin).parent] if spec and spec.origin else []
    places += [Path(sysconfig.get_path(name)) / "torch" for name in ("purelib", "platlib")]
    return next((place for place in places if (place / "include/torch/csrc/stable").is_dir()), None)


class BuildKernels(build_ext):
    def build_extension(self, ext: Extension) -> None:
        if TORCH is None:
            raise CompileError("PyTorch, whose headers the kernels need, was not found")
        ext.include_dirs = [str(TORCH / "include")]
        ext.library_dirs = [str(TORCH / "lib")]
        super().build_extension(ext)

    def get_ext_filename(self, fullname: str) -> str:
        """Return the name without a Python tag, since the library does not depend on Python."""
        return str(Path(*fullname.split("."))) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return none: the library registers its kernels when it is loaded."""
        return []


class AnyPython(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


KERNELS = Extension(
    "shuffle_attention.kernels._C",
    sources=sorted(str(path) for path in SOURCES.glob("*.cpp")),
    depends=sorted(str(path) for path in SOURCES.glob("*.h")),
    libraries=["torch_cpu"],
    define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000")],  # 2.10
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fvisibility=hidden",
        "-Wno-psabi",
        "-Wno-uninitialized",  # false alarms in the headers of GCC's own intrinsics
        "-Wno-maybe-uninitialized",
        "-g0",
    ],
    language="c++",
    optional=True,
)
TORCH = torch_directory()
# The kernels are written for GCC and Clang. SHUFFLE_ATTENTION_KERNELS=0 builds the wheel for systems without either.
WANTED = sys.platform != "win32" and os.environ.get("SHUFFLE_ATTENTION_KERNELS") != "0"
CAN_BUILD = WANTED and any(shutil.which(name) for name in ("c++", "g++", "clang++"))

setup(
    ext_modules=[KERNELS] if WANTED else [],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython},
    setup_requires=["torch>=2.11"] if TORCH is None and CAN_BUILD else [],
)
