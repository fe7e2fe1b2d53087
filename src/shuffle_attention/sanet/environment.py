"""What figures were measured with: the machine, the software and the source."""

import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch


def versions() -> dict[str, Any]:
    """Returns the software and the machine that figures were measured with."""
    import timm

    from .. import __version__

    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    return {
        "shuffle_attention": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "machine": machine,
        "threads": torch.get_num_threads(),
    }


def machine() -> dict[str, object]:
    """Returns what a reader needs to know of the machine, the versions and the source measured.

    ``commit`` is empty where the package does not lie in its own repository.
    """
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    return {
        "cpu": cpu,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        # Whether large maps are allocated anew, page by page, decides what a copy of one costs.
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str:
    here = Path(__file__)
    if shutil.which("git") is None:
        return ""

    def git(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(here.parent), *arguments], capture_output=True, text=True)

    # Installed into an environment inside another repository, the package has no commit of that one.
    if git("ls-files", "--error-unmatch", here.name).returncode:
        return ""
    changed = git("status", "--porcelain", "-uno", "--", ":/src", ":/benchmarks/*.py").stdout.strip()
    return git("rev-parse", "HEAD").stdout.strip() + ("+changes" if changed else "")
