"""Check, time and train on a GPU, in calls of limited time.

    python benchmarks/device.py check --out FOLDER     the kernels against float64 on the CPU, case by case
    python benchmarks/device.py measure --out FOLDER   the kernels beside a copy, models beside the plain ResNet-50
    python benchmarks/device.py train --out FOLDER --data cifar10.tar.gz    ResNet-18 with and without attention

Each part writes a row of JSON to FOLDER/PART.jsonl as soon as it has one. A call ends when its time is over; the next
one with the same folder does what is missing or was wrong, and continues the training that was interrupted. Rows of
another commit do not count as done, nor do dry runs, nor measurements on another device.

The exit code is 0 if every row is there and right, and otherwise the sum of 1 if a row is wrong and 4 if one is
missing. It needs PyTorch, torchvision and timm, ``check`` also pytest, pytest-xdist and
pytest-timeout; the package need not be
installed if PYTHONPATH names ``src``.
"""

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shuffle_attention.files import write_text
from shuffle_attention.kernels import has_kernels
from shuffle_attention.sanet.environment import environment

TESTS = Path(__file__).parents[1] / "tests"
WRONG, MISSING = 1, 4  # bits of the exit code
Row = dict[str, Any]
SAME = {"check": (), "measure": ("accelerator", "torch"), "train": ("torch",)}  # fields in which rows must agree


class Rows:
    """The rows of one part in its file, and the time that is left for others.

    Args:
        path: File with a JSON object per line.
        about: Machine, software and commit, for every new row.
        same: Keys of ``about`` in which a row must agree to count.
        until: Time of the monotonic clock at which to end.
    """

    def __init__(self, path: Path, about: Row, same: tuple[str, ...], until: float):
        self.path, self.about, self.same, self.until = path, about, same, until
        self.rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def current(self) -> dict[str, Row]:
        """Return the rows that count, by job."""
        return {row["job"]: row for row in self.rows if all(row.get(key) == self.about[key] for key in self.same)}

    def right(self) -> list[str]:
        return [job for job, row in self.current().items() if not row["wrong"]]

    def add(self, job: str, row: Row) -> None:
        before = self.current().get(job)
        row = {"job": job, "wrong": "", **row, **self.about}
        self.rows = [other for other in self.rows if other is not before] + [row]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        print(job, *(["WRONG", row["wrong"]] if row["wrong"] else []), row.get("text", ""), sep=": ", flush=True)

    def run(self, jobs: dict[str, tuple[float, Callable[[], Row | None]]]) -> list[str]:
        """Run jobs that are not done; an error does not end the others.

        Args:
            jobs: By name, the seconds that a job needs at least, and the job; it returns None if time was over.

        Returns:
            The names of all jobs.
        """
        right = self.right()
        for name, (needs, job) in jobs.items():
            if name in right or time.monotonic() + needs > self.until:
                continue
            try:
                row = job()
            except Exception as error:
                traceback.print_exc()
                row = {"wrong": f"{type(error).__name__}: {str(error)[:1000]}"}
            if row is not None:
                self.add(name, row)
        return list(jobs)


class Recorder:
    """Plugin of pytest that adds a row for each test, and ends the session when the time is over."""

    def __init__(self, rows: Rows):
        self.rows, self.names = rows, []

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            print(report.longreprtext, flush=True)

    def pytest_collection_finish(self, session: Any) -> None:
        self.names = self.names or [item.nodeid for item in session.items]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed or report.skipped or report.when == "call":
            wrong = report.longreprtext[-1500:] if report.failed else ""
            self.rows.add(report.nodeid, {"wrong": wrong, "text": report.outcome, "seconds": round(report.duration, 2)})
        if time.monotonic() > self.rows.until:
            importlib.import_module("pytest").exit("the time is over")


def check(rows: Rows, options: argparse.Namespace) -> list[str]:
    """Run the tests of the kernels on the device, side by side, and return their names."""
    import pytest

    os.environ["KERNEL_TEST_DEVICE"] = options.device
    sys.path.insert(0, str(TESTS))  # and so of the workers
    keyword = options.only
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
        keyword = keyword or "one-pixel-contiguous or (3x12x5x3-2-channels_last and bfloat16)"
    common = [str(TESTS / "kernels/test_on_device.py"), f"--rootdir={TESTS}", "-c", os.devnull, "--noconftest"]
    common += ["-p", "no:cacheprovider", "-p", "no:terminal", "-k", keyword]
    common += ["--timeout=150", "--timeout-method=thread"]  # a kernel that hangs ends its worker, not the session
    recorder = Recorder(rows)
    pytest.main([*common, "--collect-only"], plugins=[recorder])
    pytest.main([*common, "-n", str(options.workers), *(f"--deselect={name}" for name in rows.right())], [recorder])
    return recorder.names


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=SAME)
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows and of an unfinished training")
    parser.add_argument("--budget", type=float, default=540, help="seconds after which this call ends (default: 540)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dry-run", action="store_true", help="everything in small, to see that it runs")
    parser.add_argument("--only", default="", help="only rows whose names contain this")
    parser.add_argument("--commit", help="commit of the rows, where the repository is not at hand")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="check: processes (default: one per core)")
    parser.add_argument("--repetitions", type=int, default=21, help="measure: repetitions of a comparison")
    parser.add_argument("--data", type=Path, help="train: archive or folder of train/CLASS/IMAGE and test/CLASS/IMAGE")
    parser.add_argument("--seeds", type=int, default=3, help="train: seeds of each variant")
    parser.add_argument("--epochs", type=int, default=30, help="train: epochs of each run")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device was found; --device cpu --dry-run runs everything in small")
    if options.part == "train" and not options.dry_run and not (options.data and options.data.exists()):
        parser.error(f"train needs --data, an archive or a folder of images, got {options.data}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run one part and return the exit code."""
    began = time.monotonic()
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    about = {"cuda": torch.version.cuda, "dry_run": options.dry_run, **environment("torchvision")}
    about["commit"] = options.commit or about["commit"]
    about["kernels"] = has_kernels(torch.empty(0, device=options.device))
    same = ("commit", "dry_run", *SAME[options.part])
    rows = Rows(options.out / f"{options.part}.jsonl", about, same, began + options.budget)
    print(f"{about['accelerator'] or about['cpu']}, PyTorch {about['torch']}, kernels: {about['kernels']}", flush=True)
    part = check if options.part == "check" else importlib.import_module(f"device_{options.part}").run
    names = part(rows, options)
    current = {name: row for name, row in rows.current().items() if name in names}
    wrong = [name for name in names if name in current and current[name]["wrong"]]
    missing = [name for name in names if name not in current]
    print(f"{len(current) - len(wrong)} of {len(names)} rows are right, {len(wrong)} wrong, {len(missing)} missing")
    return WRONG * bool(wrong) + MISSING * (bool(missing) or not names)


if __name__ == "__main__":
    raise SystemExit(main())
