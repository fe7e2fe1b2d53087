"""Times of functions measured side by side, and a record of where they were measured."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Times:
    """Seconds a call took in each repetition, in the order they were taken."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, other: "Times") -> tuple[float, float, float]:
        """Median and quartiles of the ratios to ``other``, each taken within one repetition."""
        ratios = [a / b for a, b in zip(self.seconds, other.seconds, strict=True)]
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


def judged(value: float, target: float | None) -> str:
    """Returns ``<= target`` with whether ``value`` meets it, unrounded; nothing where there is no target."""
    if target is None:
        return ""
    return f"<= {target:g} {'met' if value <= target else 'MISSED'}"


def machine() -> dict[str, object]:
    """Returns what a reader needs to know of the machine, the versions and the source measured."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "-uno")
    return {
        "cpu": cpu,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        # Whether large maps are allocated anew, page by page, decides what a copy of one costs.
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit + ("+changes" if changed else ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def _git(*arguments: str) -> str:
    """What git says of the source, or nothing where there is no git."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def write(name: str, rows: list[dict[str, object]]) -> Path:
    """Writes the rows with :func:`machine` to ``results/<name>.json`` and returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    return path
