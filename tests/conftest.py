"""Shared fixtures: real images in ImageNet's layout, and a small model trained on them."""

import gc
import getpass
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import shuffle_attention.models  # noqa: F401 - registers the models with timm
from shuffle_attention.sanet.cli import main
from shuffle_attention.sanet.data.datasets import load_digits
from shuffle_attention.sanet.device import Process

# The signals, the terminal and the proxies that the suite was started with would change what its commands do.
for name, handler in (("SIGHUP", signal.SIG_DFL), ("SIGTERM", signal.SIG_DFL), ("SIGINT", signal.default_int_handler)):
    if hasattr(signal, name):
        signal.signal(getattr(signal, name), handler)
for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "ALL_PROXY", "all_proxy"):
    os.environ.pop(name, None)
# One thread: results and times do not depend on the machine, and `make test` has a process for each core.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# Inductor's cache does not tell instruction sets apart, and gives to one what was compiled for another.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(
    Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}_{torch.backends.cpu.get_cpu_capability()}")
)
# ultralytics writes its settings where it is told to, or into the home folder.
YOLO_SETTINGS = tempfile.TemporaryDirectory(prefix="yolo-settings-")
os.environ.setdefault("YOLO_CONFIG_DIR", YOLO_SETTINGS.name)
os.environ["YOLO_AUTOINSTALL"] = "false"

OPEN = Image.open


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest test, so that it does not run alone at the end; the others keep their order."""
    items.sort(key=lambda item: item.name != "test_every_command_runs")


def pytest_collection_finish() -> None:
    """Leave what has been imported out of every later garbage collection, of which each took half a second for it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    YOLO_SETTINGS.cleanup()


@pytest.fixture(autouse=True)
def pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow as it is: ultralytics, once imported, has a function of its own open all images of the process."""
    monkeypatch.setattr(Image, "open", OPEN)


CPU = Process(torch.device("cpu"))
# A short training of a small model; what a test checks does not depend on them.
NARROW = ["--model-args", "{channels: [8, 8, 16, 16]}"]
QUICK = [
    *"--recipe digits --model resnet10t --img-size 32 --workers 0 --batch-size 32 --epochs 2 --warmup-epochs 0".split(),
    *("--device", "cpu", "--no-report", *NARROW),
]


DIGITS = tuple(f"digit{label}" for label in range(4))


def write_tree(root: Path, per_class: int = 16, names: tuple[str, ...] = DIGITS) -> Path:
    """Write real digits as ``train/NAME/n.png`` and ``val/NAME/n.png``, one class for each name."""
    for split, count in (("train", per_class), ("val", per_class // 2)):
        images, _ = load_digits(split)
        for label, name in enumerate(names):
            folder = root / split / name
            folder.mkdir(parents=True)
            chosen = [image for image, digit in images if digit == label][:count]
            for number, image in enumerate(chosen):
                image.convert("RGB").save(folder / f"{number:03}.png")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of digits that the test may spoil."""
    return write_tree(tmp_path / "data")


@pytest.fixture(scope="session")
def shared_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of digits that no test changes."""
    return write_tree(tmp_path_factory.mktemp("shared") / "data")


def sanet(*arguments: object, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess:
    """Run the command in another process, as a user does."""
    command = [sys.executable, "-m", "shuffle_attention", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} gave {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def sanet_here(*arguments: object) -> int:
    """Run the command in this process, which saves the seconds of the imports."""
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def run(shared_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short finished run of sa_resnet18."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert sanet_here("train", *QUICK, "--model", "sa_resnet18", "--data", shared_tree, "--output", folder) == 0
    return folder


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task of brightness.py, and a command that trains it."""
    from brightness import register

    register(monkeypatch)
