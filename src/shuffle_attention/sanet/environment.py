"""The machine, the software and the commit that a result was measured with."""

import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def environment(*packages: str) -> dict[str, Any]:
    """Return the machine, its load, the versions of the software and the commit, for the files of results.

    ``commit`` is empty unless the package runs from its own repository, and the version of a package that is not
    installed, such as this one in a source tree, is None.

    Args:
        packages: Further packages whose versions to add.
    """
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores" + (f", {accelerator}" if accelerator else ""),
        "cpu": _cpu(),
        "accelerator": accelerator,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        # They decide whether large tensors get new pages for each allocation, and so what a copy of one costs.
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "shuffle_attention": _version("shuffle-attention"),
        "torch": torch.__version__,
        **{package: _version(package) for package in ("timm", *packages)},
        "python": platform.python_version(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def _commit() -> str:
    here = Path(__file__)
    if shutil.which("git") is None:
        return ""

    def git(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(here.parent), *arguments], capture_output=True, text=True)

    # The repository may be another project's, whose environment the package is installed in.
    if git("ls-files", "--error-unmatch", here.name).returncode:
        return ""
    changed = git("status", "--porcelain", "-uno", "--", ":/src", ":/benchmarks/*.py").stdout.strip()
    return git("rev-parse", "HEAD").stdout.strip() + ("+changes" if changed else "")
