"""Times of functions measured side by side, and a record of where they were measured."""

import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Times:
    """Seconds a call took in each repetition, in the order they were taken."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, other: "Times") -> tuple[float, float, float]:
        """Median and quartiles of the ratios to ``other``, each taken within one repetition; the ends of one or two."""
        ratios = [a / b for a, b in zip(self.seconds, other.seconds, strict=True)]
        if len(ratios) < 3:  # quartiles of two would lie beyond them
            return statistics.median(ratios), min(ratios), max(ratios)
        low, middle, high = statistics.quantiles(ratios, n=4)
        return middle, low, high


def interleaved(functions: dict[str, Callable[[], object]], repetitions: int, least: float = 2e-3) -> dict[str, Times]:
    """Returns the times of each function, one after the other in every repetition.

    What else the machine does then falls on all of them alike, and their ratios hold where the times
    themselves do not. A repetition calls a function as often as fills ``least`` seconds.
    """
    calls = {}
    for name, function in functions.items():
        function()
        function()
        start = time.perf_counter()
        function()
        calls[name] = max(1, round(least / (time.perf_counter() - start)))
    seconds = {name: [] for name in functions}
    for _ in range(repetitions):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                function()
            seconds[name].append((time.perf_counter() - start) / calls[name])
    return {name: Times(values) for name, values in seconds.items()}


def wait_for(device: torch.device) -> None:
    """Waits until a device has done what it was given; the CPU has when a call returns."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


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
