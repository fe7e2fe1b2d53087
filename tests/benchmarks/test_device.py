"""The dry run of the benchmarks for a GPU, on the CPU."""

import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Run = Callable[..., tuple[int, dict[str, dict]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a function that runs a part in small, and returns its exit code and its rows by job."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from device import main

    def run(part: str, *arguments: object, out: str = "out") -> tuple[int, dict[str, dict]]:
        code = main([part, "--device=cpu", "--dry-run", f"--out={tmp_path / out}", *map(str, arguments)])
        return code, rows_of(tmp_path / out / f"{part}.jsonl")

    return run


def rows_of(path: Path) -> dict[str, dict]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["job"]: row for row in map(json.loads, lines)}


def test_check_runs_the_tests_of_the_kernels(tmp_path: Path):
    command = [sys.executable, BENCHMARKS / "device.py", "check", "--device=cpu", "--dry-run", "--workers=0"]
    command += [f"--out={tmp_path}", "--only=one-pixel-contiguous"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["text"] for row in rows_of(tmp_path / "check.jsonl").values()] == ["passed"] * 3


def test_failures_of_tests_are_rows_and_the_session_ends_with_the_time(run: Run, tmp_path: Path):
    from device import Recorder, Rows

    rows = Rows(tmp_path / "rows.jsonl", {}, (), time.monotonic() + 1000)
    report = {"failed": False, "skipped": False, "outcome": "passed", "duration": 0.1, "longreprtext": ""}
    for when in ("setup", "call", "teardown"):
        Recorder(rows).pytest_runtest_logreport(SimpleNamespace(nodeid="right", when=when, **report))
    report |= {"failed": True, "outcome": "failed", "longreprtext": "worker 'gw1' crashed"}
    rows.until = 0
    with pytest.raises(pytest.exit.Exception, match="time is over"):
        Recorder(rows).pytest_runtest_logreport(SimpleNamespace(nodeid="crashed", when="???", **report))
    rows = rows_of(tmp_path / "rows.jsonl")
    assert {name: row["wrong"] for name, row in rows.items()} == {"right": "", "crashed": "worker 'gw1' crashed"}


def test_rows_are_written_as_they_come_and_count_for_their_commit_alone(run, tmp_path: Path):
    from device import Rows

    calls = []

    def job(name: str, result: object) -> Callable[[], object]:
        def call() -> object:
            calls.append(name)
            if isinstance(result, Exception):
                raise result
            return result

        return call

    def go(commit: str, until: float = time.monotonic() + 1000) -> dict[str, bool]:
        calls.clear()
        rows = Rows(tmp_path / "rows.jsonl", {"commit": commit}, ("commit",), until)
        jobs = {
            "good": (1.0, job("good", {"ms": 3})),
            "bad": (1.0, job("bad", OSError("no"))),
            "over": (1.0, job("over", None)),
        }
        assert rows.run({**jobs, "long": (1e6, job("long", {}))}) == ["good", "bad", "over", "long"]
        return {name: bool(row["wrong"]) for name, row in rows.current().items()}

    assert go("a", until=0) == {}
    assert calls == []
    assert go("a") == {"good": False, "bad": True}
    assert calls == ["good", "bad", "over"]
    assert go("a") == {"good": False, "bad": True}
    assert calls == ["bad", "over"]
    assert go("b") == {"good": False, "bad": True}
    assert calls == ["good", "bad", "over"]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 4


def test_measures_maps_and_models(run: Run):
    code, rows = run("measure", "--only=map float32 NCHW")
    assert code == 0
    assert all(rows["map float32 NCHW 2x128x7x7"][f"{part} share"] > 0 for part in ("layer forward", "tail backward"))
    code, rows = run("measure", "--only=models float32 eager training", out="models")
    (row,) = rows.values()
    assert code == 0
    assert set(row["ms"]) >= {"plain", "sa", "se", "rebuild", "rebuild-all", "torchvision", "attached"}
    assert set(row["over_baseline"]) == set(row["ms"]) - {"plain", "torchvision"}
    assert row["kept_bytes"]["sa"] < 1.05 * row["kept_bytes"]["plain"]


def test_trains_the_variants_by_seed(run: Run):
    code, rows = run("train", "--epochs=1", "--seeds=2")
    assert code == 0
    assert [(row["variant"], row["seed"]) for row in rows.values()][3:6] == [("se", 0), ("none", 1), ("shuffle", 1)]
    assert {"accuracy", "seconds", "epochs", "commit", "torch", "machine"} < set(rows["se, seed 1, 1 epochs"])


def test_interrupted_training_goes_on_to_the_same_end(run: Run, monkeypatch: pytest.MonkeyPatch):
    import device_train

    job, ends, epochs = "shuffle, seed 1, 3 epochs", [], []
    evaluate, batches = device_train.evaluate, device_train.batches

    def kept(model, *arguments):
        ends.append([value.clone() for value in model.state_dict().values()])
        return evaluate(model, *arguments)

    def watched(*arguments):
        epochs.append(arguments[2])
        yield from batches(*arguments)

    def train(out: str) -> tuple[int, dict]:
        epochs.clear()
        code, rows = run("train", "--epochs=3", "--seeds=2", "--only=shuffle, seed 1", out=out)
        return code, {key: rows[job][key] for key in ("accuracy", "loss")} if job in rows else {}

    def interrupted(interruption: Callable[[], None]) -> Callable:
        def broken(*arguments):
            for number, batch in enumerate(batches(*arguments)):
                if (arguments[2], number) == (1001, 3):  # in the middle of the second epoch
                    interruption()
                yield batch

        return broken

    def kill() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(device_train, "evaluate", kept)
    monkeypatch.setattr(device_train, "batches", watched)
    code, whole = train("whole")
    assert (code, epochs) == (0, [1000, 1001, 1002])
    with monkeypatch.context() as patch:
        patch.setattr(device_train, "SAVE_EVERY", 0.0)
        patch.setattr(device_train, "batches", interrupted(kill))
        with pytest.raises(KeyboardInterrupt):
            train("killed")
        late = SimpleNamespace(monotonic=lambda: 1e9)
        patch.setattr(device_train, "SAVE_EVERY", 1e9)
        patch.setattr(device_train, "batches", interrupted(lambda: setattr(device_train, "time", late)))
        assert train("late") == (4, {})
        device_train.time = time
    for out, left in (("killed", [1001, 1002]), ("late", [1002])):
        assert train(out) == (0, whole)
        assert epochs == left
        assert all(torch.equal(a, b) for a, b in zip(ends[0], ends.pop(), strict=True))


def test_reads_images_from_a_folder_and_from_its_archive(run: Run, tmp_path: Path):
    from device_train import read_images

    for split, label, number in ((s, c, n) for s in ("train", "test") for c in ("cat", "ant") for n in range(2)):
        folder = tmp_path / "images" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 200 * (label == "cat"))).save(folder / f"{number}.png")
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "images", "images")
    for path in (tmp_path / "images", tmp_path / "images.tar.gz"):
        for images, labels in read_images(path).values():
            assert labels.tolist() == [0, 0, 1, 1]
            assert images[:, 3, 5].tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 200], [1, 0, 200]]
    (tmp_path / "images/test/cat").rename(tmp_path / "images/test/dog")
    with pytest.raises(ValueError, match="same classes"):
        read_images(tmp_path / "images")


def test_crops_and_flips_are_windows_of_the_padded_image(run: Run):
    from device_train import PAD, batches

    images = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 8, 8, 1) + torch.tensor([0, 64, 128], dtype=torch.uint8)
    images = torch.stack([images[0], images[0].flip(0)] * 10)
    padded = torch.nn.functional.pad(images, (0, 0, PAD, PAD, PAD, PAD))
    labels = torch.arange(20)
    seen, flipped = [], 0
    for batch, numbers in batches((padded, labels, images, labels), 6, 3):
        for image, number in zip(batch, numbers.tolist(), strict=True):
            windows = padded[number].unfold(0, 8, 1).unfold(1, 8, 1).permute(0, 1, 3, 4, 2).flatten(0, 1)
            straight, turned = ((windows == candidate).flatten(1).all(1).any() for candidate in (image, image.flip(1)))
            assert straight or turned
            flipped += int(not straight)
            seen.append(number)
    assert len(set(seen)) == len(seen) == 18
    assert 3 < flipped < 15
