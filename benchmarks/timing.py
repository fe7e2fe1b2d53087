"""Shared by the benchmarks: interleaved times, rows of ratios, and a file of results per benchmark.

A file of results has one section per instruction set, because processors differ: ``{"AVX512": {"machine": {...},
"rows": [...]}, "AVX2": {...}}``. A run replaces the section of the instruction set that it ran on.
"""

import argparse
import getpass
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shuffle_attention.sanet.environment import environment
from shuffle_attention.sanet.timing import Times, interleaved

__all__ = ["FORMATS", "STAGES", "Times", "interleaved", "judged", "line", "measure", "options", "read", "write"]

RESULTS = Path(__file__).parent / "results"
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
STAGES = [(256, 56), (512, 28), (1024, 14), (2048, 7)]  # maps of ResNet-50: channels, and height or width
# PyTorch's variable limits its own kernels and ours, but neither oneDNN's convolutions nor MKL's matrix products.
# Inductor's cache does not know for which instruction set a graph was compiled.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "TORCHINDUCTOR_CACHE_DIR": f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}_avx2",
}

SETS = {"AVX512": "AVX-512"}  # how they are printed, where that differs

Row = dict[str, Any]


def instruction_sets() -> dict[str, dict[str, str]]:
    """Return the variables to set for each instruction set to measure: the processor's best one, and AVX2 below it."""
    best = torch.backends.cpu.get_cpu_capability()
    return {"AVX2": AVX2} if best == "AVX2" else {best: {}} | ({"AVX2": AVX2} if best == "AVX512" else {})


def options(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", help="write results/NAME.json")
    return parser


def ratio(times: dict[str, Times], name: str, baseline: str) -> list[float]:
    """Return median, lower and upper quartile of the ratios of two calls."""
    return [round(value, 3) for value in times[name].over(times[baseline])]


def measure(
    about: Row,
    calls: dict[str, Callable[[], object]],
    baseline: Callable[[str], str],
    repetitions: int,
    targets: dict[str, float] | None = None,
) -> Row:
    """Return a row with the ratios of all calls to their baselines.

    Args:
        about: The conditions, which begin the row.
        calls: What to time, by name.
        baseline: Returns the name of the baseline of a call.
        repetitions: Number of repetitions.
        targets: Largest ratio to reach, by name of the call.
    """
    times = interleaved(calls, repetitions)
    pairs = {name: baseline(name) for name in calls if baseline(name) != name}
    return about | {
        "us": {name: round(times[name].median * 1e6, 1) for name in dict.fromkeys(pairs.values())},
        "ratios": {name: ratio(times, name, of) for name, of in pairs.items()},
        "targets": targets or {},
    }


def line(row: Row) -> str:
    """Return a row of :func:`measure` as printed: conditions, baselines, medians [quartiles] and targets."""
    about = [str(value) for name, value in row.items() if name not in ("us", "ratios", "targets")]
    columns = [f"{name} {us:.0f} us" for name, us in row["us"].items()]
    for name, (middle, low, high) in row["ratios"].items():
        columns.append(
            f"{name} {middle:.2f} [{low:.2f}, {high:.2f}] {judged(middle, row['targets'].get(name))}".strip()
        )
    return "  ".join([" ".join(about), *columns])


def judged(value: float, target: float | None) -> str:
    """Return ``<= target`` and whether the unrounded ``value`` meets it; empty if there is no target."""
    if target is None:
        return ""
    return f"<= {target:g} {'met' if value <= target else 'MISSED'}"


def read(name: str) -> dict[str, Row]:
    """Return the sections of a file of results by instruction set, the best first; empty if there is no file."""
    path = RESULTS / f"{name}.json"
    sections = json.loads(path.read_text()) if path.exists() else {}
    return dict(sorted(sections.items(), key=lambda section: section[0] != "AVX512"))


def write(name: str, rows: list[Row], *packages: str) -> Path:
    """Write the rows and :func:`environment` as a section of ``results/<name>.json``, and return its path."""
    machine = environment(*packages) | {
        "limits": {key: os.environ[key] for key in AVX2 if key[:2] != "TO" and key in os.environ}
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    sections = read(name) | {machine["instruction_set"]: {"machine": machine, "rows": rows}}
    path.write_text(json.dumps(sections, indent=1) + "\n")
    return path
