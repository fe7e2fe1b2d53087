"""Several processes: the losses of one, an error that names the one that died, and a restart from the checkpoint."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import NARROW, sanet_here
from forked import Forked, start_torchrun
from shuffle_attention.sanet.tasks.detection.samples import digits_coco

# With small steps: two orders of summation differ by 1e-7, and large steps make that grow from one to the next.
PROCESSES = (
    "train --recipe digits --model sa_resnet18 --img-size 32 --workers 0 --batch-size 16 --epochs 3 --device cpu "
    "--freeze-bn --lr 0.001 --warmup-epochs 0"
).split() + NARROW


DETECTOR = [
    *"detect train --recipe digits --arch retinanet --backbone resnet10t --frozen-norm --min-size 64".split(),
    *"--max-size 64 --anchor-sizes 8 16 24 32 48 --workers 0 --batch-size 4 --epochs 2 --warmup-epochs 0".split(),
    *("--lr", "1e-4", "--device", "cpu", "--detector-args", "{}"),
]


def rows(folder: Path) -> list[dict[str, float]]:
    with open(folder / "metrics.csv") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def one_process(shared_tree, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    assert sanet_here(*PROCESSES, "--data", shared_tree, "--output", folder) == 0
    return folder


def test_two_processes_have_the_losses_of_one(one_process, shared_tree, tmp_path):
    """Started as a user does; the tests below start torchrun's agent and its workers without new interpreters."""
    launcher = [
        sys.executable,
        *"-m torch.distributed.run --standalone --nproc-per-node 2 -m shuffle_attention".split(),
    ]
    command = [*launcher, *PROCESSES, "--data", shared_tree, "--output", tmp_path / "run"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)
    output = done.stdout
    assert done.returncode == 0, output
    assert "2 processes on cpu" in output
    assert output.count("epoch   1/3") == 1
    assert len(list((tmp_path / "run").glob("events.out.*"))) == 1  # the first process alone records
    for row, other in zip(rows(one_process), rows(tmp_path / "run"), strict=True):
        for figure in ("train_loss", "val_loss", "train_top1", "val_top1"):
            assert row[figure] == pytest.approx(other[figure], abs=1e-5)


def test_two_processes_train_and_evaluate_a_detector_as_one_does(tmp_path):
    for split, count in (("train", 8), ("val", 3)):  # an odd number: one image is dealt out twice
        digits_coco(split, count, size=64, digits=(1, 3)).write(tmp_path / "data", split)
    assert sanet_here(*DETECTOR, "--data", tmp_path / "data", "--output", tmp_path / "one") == 0
    arguments = [*DETECTOR, "--data", tmp_path / "data", "--output", tmp_path / "two"]
    process = start_torchrun(*arguments, output=tmp_path / "printed", workers=tmp_path / "workers")
    assert process.wait() == 0, process.printed()
    for row, other in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        row.pop("images_per_second")
        for figure, value in row.items():
            assert other[figure] == pytest.approx(value, abs=1e-4), figure


def test_a_broken_image_is_reported_once(tree, tmp_path):
    path = tree / "train/digit1/003.png"
    path.write_bytes(path.read_bytes()[:-60])
    arguments = [*PROCESSES, "--data", tree, "--output", tmp_path / "run"]
    process = start_torchrun(*arguments, output=tmp_path / "printed", workers=tmp_path / "workers")
    assert process.wait() != 0
    output = process.printed()
    assert output.count("1 of 64 images cannot be read") == 1
    assert "Connection closed" not in output
    assert not (tmp_path / "run").exists()


def test_a_signal_to_torchrun_saves(shared_tree, tmp_path):
    folder = tmp_path / "run"
    arguments = [*PROCESSES, "--data", shared_tree, "--output", folder, "--epochs", 100, "--workers", 1]
    process = start_torchrun(*arguments, output=tmp_path / "printed", workers=tmp_path / "workers")
    process.wait_for(folder / "best.pt")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() != 0
    assert "stopped by SIGTERM after step" in process.printed()


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="pending signals are in Linux's /proc")


def kill_a_worker(process: Forked, folder: Path, workers: Path) -> int:
    """Kill the second of the workers once a checkpoint is written, and return its number.

    The first one pauses until the agent has seen that and told it to end. Its own end, by the connection that it lost,
    could be seen before.
    """
    process.wait_for(folder / "last.pt")
    first, second = (int((workers / rank).read_text()) for rank in "01")
    os.kill(first, signal.SIGSTOP)
    os.kill(second, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while not pending_signals(first) >> (signal.SIGTERM - 1) & 1:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(first, signal.SIGCONT)
    return second


def pending_signals(process: int) -> int:
    """Return the signals that wait for a process to continue, as bits."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("ShdPnd:")[1].split()[0], 16)


@needs_proc
def test_a_killed_worker_ends_the_run_by_name(shared_tree, tmp_path):
    folder, workers = tmp_path / "run", tmp_path / "workers"
    arguments = [*PROCESSES, "--data", shared_tree, "--output", folder, "--checkpoint-steps", 1, "--epochs", 30]
    process = start_torchrun(*arguments, output=tmp_path / "printed", workers=workers)
    worker = kill_a_worker(process, folder, workers)
    assert process.wait() != 0
    output = process.printed()
    assert re.search(rf"rank\s*: 1.*\(local_rank: 1\)[\s\S]*exitcode\s*: -9 \(pid: {worker}\)", output), output


@needs_proc
def test_torchrun_restarts_from_the_last_checkpoint(one_process, shared_tree, tmp_path):
    folder, workers = tmp_path / "run", tmp_path / "workers"
    arguments = [*PROCESSES, "--data", shared_tree, "--output", folder, "--checkpoint-steps", 1]
    process = start_torchrun(*arguments, output=tmp_path / "printed", workers=workers, restarts=1)
    kill_a_worker(process, folder, workers)
    assert process.wait() == 0, process.printed()
    assert "continuing sa_resnet18" in process.printed()
    for row, other in zip(rows(one_process), rows(folder), strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)


def test_a_restart_needs_to_know_where_the_run_is(shared_tree, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    assert sanet_here(*PROCESSES, "--data", shared_tree) == 2
    assert "needs --output DIR" in capsys.readouterr().err
