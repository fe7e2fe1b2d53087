"""Every command and every piece of code in README and docs is run, on a few images where they say ImageNet."""

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torch.distributed.run import config_from_args, get_args_parser

import shuffle_attention.models  # noqa: F401 - registers the models
from conftest import NARROW, sanet_here, write_tree
from forked import start_sanet
from shuffle_attention.attention import spec
from shuffle_attention.errors import InputError
from shuffle_attention.sanet.cli import collect, parse
from shuffle_attention.sanet.tasks.detection.samples import digits_coco

ROOT = Path(__file__).parents[1]
TORCHCAM = find_spec("torchcam")  # which needs Python 3.11, and without which no maps are drawn
TABLES = (
    "kernels",
    "deploy",
    "results",
    "detection",
    "explain",
    "networks",
)  # pages with tables from benchmarks/results
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Options that shorten a run from hours to seconds; they follow those of the command.
SMALL = [
    *"--epochs 1 --batch-size 16 --img-size 32 --workers 0 --device cpu --model sa_resnet18 --warmup-epochs 0".split(),
    "--no-report",  # `sanet report` writes it
    *NARROW,
]
DETECT = "--workers 0 --device cpu".split()
DETECT_SMALL = [*DETECT, *"--data coco-small --min-size 64 --max-size 64".split()]
SMALL_FOR = {
    "detect train": [
        *DETECT_SMALL,
        *"--epochs 1 --batch-size 2 --warmup-epochs 0 --pyramid-channels 32 --no-report".split(),
    ],
    "detect eval": DETECT_SMALL,
    "detect predict": ["--device", "cpu"],
    "detect profile": "--arch fcos --size 64 64 --repetitions 1 --device cpu".split(),
    "detect compare": [
        *DETECT_SMALL,
        *"--epochs 1 --batch-size 2 --warmup-epochs 0 --pyramid-channels 32 --seeds 1 --no-report".split(),
        *("--backbone-args", NARROW[1]),
    ],
    "train": SMALL,
    # In place of a network that is trained first.
    "demo": "--checkpoint runs/imagenette/best.pt --device cpu --no-browser".split(),
    "explain": "--steps 4".split(),
    "profile": "--img-size 32 --batch-size 2 --repetitions 1 --device cpu".split(),
    "compare": [
        *"--epochs 1 --batch-size 16 --img-size 32 --workers 0 --device cpu --warmup-epochs 0 --seeds 1".split(),
        "--no-report",
        *("--attention", "none,shuffle", *NARROW),
    ],
}
# Fourteen networks of up to 50 million parameters, of which tests/test_profiling.py runs three, and many images.
LARGE = {
    "--paper": "resnet18 sa_resnet18",
    "--limit 1000": "--limit 2",
    "--limit 8": "--limit 2",
    "eval digits.onnx": "eval digits.onnx --data imagenette2",  # the model of the demo is trained on files here
    "profile resnet50 sa_resnet50": "profile resnet18 sa_resnet18",
    "profile resnet50 seresnet50 sa_resnet50": "profile resnet18 sa_resnet18",
}


# Nothing depends on what these write: with the same options as one that ran before, they are only parsed.
ALONE = ("eval", "inspect", "export", "explain", "predict")


def blocks(language: str) -> list[str]:
    return [found for page in PAGES for found in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def desk(tmp_path_factory, run) -> Path:
    """A folder with what the commands of the pages speak of."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "runs/demo").mkdir(parents=True)  # `make demo` makes it
    shutil.copy(run / "best.pt", folder / "runs/demo/best.pt")
    Image.new("L", (8, 8), 200).save(folder / "digit.png")
    write_tree(folder / "imagenette2")
    for name in ("cifar10", "cifar10-small"):
        write_tree(folder / name)
    shutil.move(write_tree(folder / "undivided") / "train", folder / "photos")
    write_tree(folder / "imagenet", 8, ("n01440764", "n02979186", "n03888257"))
    for name, split in product(("coco", "coco-small"), ("train", "val")):
        digits_coco(split, 2, size=64).write(folder / name, split)
    shutil.copy(folder / "coco/val/00001.png", folder / "photo.jpg")
    for name in ("sa_resnet18", "sa_resnet50"):
        state = {f"module.{key}": value for key, value in timm.create_model(name).state_dict().items()}
        torch.save({"state_dict": state, "epoch": 100}, folder / f"{name}.pth.tar")
    return folder


def test_the_pages_have_commands():
    assert len(commands()) > 10
    assert len(blocks("python")) >= 3


def run_command(command: str, desk: Path, seen: set[tuple[str, ...]]) -> None:
    for said, small in LARGE.items():
        command = command.replace(said, small)
    words = shlex.split(command)
    if words[0] == "make":  # the suite cannot run itself; CI runs both of the targets whole
        done = subprocess.run(["make", "--dry-run", words[1]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    if words[0] == "export":
        name, value = words[1].split("=")
        assert (name, value) == ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        return
    if words[0] == "torchrun":  # its own options are parsed; tests/sanet/training/test_distributed.py runs it
        launched = get_args_parser().parse_args(words[1:])
        assert config_from_args(launched)[0].nproc_per_node == 8
        assert (launched.module, launched.training_script) == (True, "shuffle_attention")
        words = ["sanet", *launched.training_script_args]
    assert words[0] == "sanet"
    if ">" in words:  # a redirection of the shell
        words = words[: words.index(">")]
    goes_on = "--resume" in words or "--report-only" in words
    small = next((options for job, options in SMALL_FOR.items() if f" {job} " in command and not goes_on), [])
    if {"--from", "--initial", "--model-args"} & set(words) and "--model-args" in small:  # the model is given
        small = small[: small.index("--model-args")]
    if "--model" in words and "--model" in small:
        small = [*small[: small.index("--model")], *small[small.index("--model") + 2 :]]
    last = words[-1] if words[1] == "export" else Path(words[-1]).suffix  # later commands read what it writes
    options = (words[1], *sorted(word for word in words if word.startswith("--")), last)
    without_maps = words[1] == "explain" and TORCHCAM is None
    if without_maps or (words[1] in ALONE and options in seen):
        parse(collect()[words[1]], words[2:])
        return
    seen.add(options)
    if words[1] == "demo":
        answers([*words[1:], *small], desk)
        return
    assert sanet_here(*words[1:], *small) == 0, command


def answers(arguments: list[str], desk: Path) -> None:
    """Start a page, ask it for its first file, and stop it."""
    server = start_sanet(*arguments, output=desk / "demo.txt")
    server.wait_for(desk / "demo.txt", "until Ctrl-C\n")
    address = re.match(r"the page is at (\S+), until Ctrl-C\n", server.printed())
    assert address, server.printed()
    with urllib.request.urlopen(address[1]) as answer:
        assert b"shuffle-attention" in answer.read()
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait() == 128 + signal.SIGTERM


def remove_runs(desk: Path, but: list[str]) -> None:
    """Remove the runs that no later command names; all of them together would have gigabytes."""
    for folder in desk.glob("runs/*"):
        if f"runs/{folder.name}" not in "\n".join(but):
            shutil.rmtree(folder)


def test_every_command_runs(desk, monkeypatch):
    """In the order in which they are read: some continue or evaluate what those before them made."""
    monkeypatch.chdir(desk)
    all_commands, seen = commands(), set()
    for number, command in enumerate(all_commands):
        run_command(command, desk, seen)
        remove_runs(desk, but=all_commands[number + 1 :])
    assert (desk / "metrics.json").exists()


def test_the_options_of_commands_that_are_not_run_exist():
    """Indented commands take long, or need what the desk does not have."""
    known = collect()
    for page in PAGES:
        for line in re.findall(r"^    sanet (.*)", page.read_text(), re.MULTILINE):
            words = shlex.split(line, comments=True)
            name = next(name for name in (" ".join(words[:2]), words[0]) if name in known)
            parse(known[name], words[len(name.split()) :])


def test_the_exported_model_of_the_demo_has_the_accuracy_of_its_checkpoint(run, shared_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8), 200).save("digit.png")
    assert sanet_here("export", run / "best.pt", "--format", "onnx", "--output", "digits.onnx") == 0
    shown = {}
    for file in (run / "best.pt", Path("digits.onnx")):
        assert sanet_here("eval", file, "--data", shared_tree, "--json", "scores.json") == 0
        shown[file.suffix] = json.loads(Path("scores.json").read_text())
    first, second = shown.values()
    assert first["top1"] == second["top1"]
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
    assert sanet_here("predict", "digits.onnx", "digit.png", "--output", "rows.csv") == 0
    assert Path("rows.csv").read_text().splitlines()[1].startswith("digit.png")


def test_the_code_of_each_page_runs(desk, monkeypatch):
    monkeypatch.chdir(desk)
    monkeypatch.setattr(spec, "_SPECS", dict(spec._SPECS))  # pages register attention layers
    for page in PAGES:
        code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
        try:
            exec(compile(code, page.name, "exec"), {})
        except InputError as error:
            if TORCHCAM is not None or "torchcam is not installed" not in str(error):
                raise


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_figures_of_a_run_are_those_of_its_file():
    figures = json.loads((ROOT / "benchmarks/results/imagenette-64.json").read_text())
    page = (ROOT / "docs/training.md").read_text()
    assert f"{figures['top1']:.2f} %" in page
    assert f"{figures['top5']:.2f} %" in page


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{page}.md" for page in TABLES)])
def test_the_tables_of_a_page_are_those_of_the_files(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("tables")
    assert tables.written(name) == (ROOT / name).read_text(), "run python benchmarks/tables.py"


def test_installed_without_a_compiler_it_has_all_but_the_kernels_and_says_so_once(tmp_path):
    """``pip install .`` where there is no compiler, without the dependencies, which are here already."""
    # A tree in which nothing has been built before.
    built = shutil.ignore_patterns(".git", ".venv*", "build", "runs", "node_modules", "*.so", "*.egg-info")
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=built)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", tmp_path / "site"]
    bare = {**os.environ, "PATH": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, source], check=True, capture_output=True, env=bare
    )
    installed = tmp_path / "site/shuffle_attention"
    assert (installed / "py.typed").exists()
    assert {path.stem for path in (installed / "sanet/recipes").glob("*.yaml")} >= {"imagenet", "digits"}
    assert (installed / "sanet/report/templates/base.html").exists()
    assert (installed / "sanet/profile/published.yaml").exists()
    packages = {path.parent.name for path in (ROOT / "src/shuffle_attention").rglob("__init__.py")}
    assert {path.parent.name for path in installed.rglob("__init__.py")} == packages
    assert not list(installed.glob("*.so"))
    code = """
import torch, shuffle_attention, timm, shuffle_attention.models
from shuffle_attention.sanet.recipes.recipe import load_recipe
load_recipe("digits")
timm.create_model("sa_resnet18")(torch.randn(2, 3, 64, 64)).sum().backward()
print(shuffle_attention.__file__)
"""
    paths = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=paths, capture_output=True, text=True)
    assert done.stdout.startswith(str(installed))
    assert done.stderr.count("the CPU kernels were not built") == 1
