"""The command as it is met: help, metrics, and errors that say what would work."""

import csv
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import get_args, get_type_hints

import pytest
import safetensors.torch
import timm
import torch

import shuffle_attention.models
from conftest import QUICK, sanet, sanet_here, write_tree
from shuffle_attention.explain.maps import METHODS
from shuffle_attention.sanet import cli, parser
from shuffle_attention.sanet.commands import Command, flag_of
from shuffle_attention.sanet.recipes.recipe import Recipe, load_recipe, recipe_about, recipe_fields, recipe_names
from shuffle_attention.sanet.recipes.settings import GROUPS, option
from shuffle_attention.sanet.tasks.detection.recipe import DetectionRecipe


def parse(*arguments):
    """Return the command with the options in ``arguments``, which is not run."""
    words = 2 if arguments[0] == "detect" else 1
    return cli.parse(cli.collect()[" ".join(arguments[:words])], [str(word) for word in arguments[words:]])


@pytest.mark.parametrize("arguments", [(), ("--help",), ("help",)])
def test_the_overview_names_each_command_and_shows_examples(capsys, arguments):
    assert sanet_here(*arguments) == 0
    overview = capsys.readouterr().out
    for name, command in cli.collect().items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", overview, re.MULTILINE)
    examples = [line.split()[1:] for line in overview.splitlines() if line.startswith("  sanet ")]
    assert len(examples) == 3
    for example in examples:
        assert parse(*example)


def test_a_group_has_an_overview(capsys):
    assert sanet_here("detect") == 0
    overview = capsys.readouterr().out
    assert "detect train" in overview
    assert not re.search("^  (?:sanet )?compare ", overview, re.MULTILINE)  # the command for classifiers


@pytest.mark.parametrize("name", cli.collect())
def test_help_has_groups_choices_and_defaults(capsys, name):
    with pytest.raises(SystemExit) as ended:
        sanet_here(*name.split(), "--help")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: sanet {name}")
    for field, (declared, hint) in cli.collect()[name].options().items():
        assert (parser.metavar_of(field, declared, hint) if declared.positional else flag_of(field)) in printed


def test_help_of_train_starts_each_group_with_the_common_options(capsys):
    with pytest.raises(SystemExit):
        sanet_here("train", "--help", "all")
    flags = re.findall(r"^(?:  (--[a-z-]+)|(\w+):$)", capsys.readouterr().out, re.MULTILINE)
    names = [flag or group for flag, group in flags]
    for group, first in (("data", "--data"), ("model", "--model"), ("optimisation", "--epochs")):
        assert names[names.index(group) + 1] == first
    assert names.index("--recipe") < names.index("data") < names.index("model") < names.index("machine")


def test_help_has_the_choices_and_defaults_of_the_recipe(capsys):
    with pytest.raises(SystemExit):
        sanet_here("train", "--help", "all")
    printed = " ".join(capsys.readouterr().out.split())
    assert "--weight-decay X weight decay (0.0001)" in printed
    assert "--precision {fp32,bf16,fp16} mixed precision, with loss scaling for fp16 (fp32)" in printed
    assert (
        "--recipe NAME cifar10, digits, finetune, imagenet, imagenet- modern, imagenette, photos, small, or" in printed
    )
    assert "--data DIR folder" in printed
    assert "examples: sanet train --data photos --output runs/photos" in printed
    assert "--report, --no-report" in printed


@pytest.mark.parametrize("name", ["train", "detect train", "compare"])
def test_help_fits_on_a_screen_and_names_the_groups_that_have_the_rest(capsys, name):
    printed = {}
    for group in ("", *GROUPS, "all"):
        with pytest.raises(SystemExit) as ended:
            sanet_here(*name.split(), "--help", *group.split())
        assert ended.value.code == 0
        printed[group] = capsys.readouterr().out
    assert printed[""].count("\n") <= 66
    assert f"more options: --help {' | '.join(GROUPS)} | all" in printed[""]
    for flag, group in (("--data", "data"), ("--epochs", "optimisation"), ("--output", "")):
        assert [shown for shown, text in printed.items() if f"\n  {flag} " in text] == [
            *dict.fromkeys(["", group]),
            "all",
        ]
    command = cli.collect()[name]
    for field, (declared, _) in command.recipe_type.options().items():
        assert re.search(rf"^  {flag_of(field)}\b", printed["all"], re.MULTILINE)
        assert re.search(rf"^  {flag_of(field)}\b", printed[declared.group], re.MULTILINE)
    with pytest.raises(SystemExit):
        sanet_here(*name.split(), "--help", "speed")
    assert "invalid choice: 'speed'" in capsys.readouterr().err


HELP = """
import contextlib, sys
from shuffle_attention.sanet.cli import main
main([])
for command in ("train", "explain"):
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
print([name for name in ("torch", "timm", "torchvision", "numpy", "rich", "matplotlib") if name in sys.modules])
"""


def test_help_loads_nothing_of_weight():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: sanet COMMAND")
    assert "usage: sanet train" in done.stdout
    assert "usage: sanet explain" in done.stdout
    assert done.stdout.endswith("[]\n")


BARE = """
import sys
for name in ("rich", "matplotlib", "jinja2", "sklearn", "scipy"):
    sys.modules[name] = None
from shuffle_attention.sanet.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_the_extra_help_comes_and_train_names_the_extra(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-c", BARE, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert run("--help").returncode == 0
    done = run("train")
    assert done.returncode == 2
    assert done.stderr == (
        "error: rich, matplotlib, jinja2, sklearn, scipy are not installed: pip install 'shuffle-attention[sanet]'\n"
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("trian", "no command 'trian'; did you mean train?"),
        ("detect evl", "no command 'detect evl'; did you mean detect eval"),
        ("abacus", "no command 'abacus'; there are average, compare, completion"),
    ],
)
def test_an_unknown_command_gets_the_closest(capsys, command, message):
    assert sanet_here(*command.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "usage", "message"),
    [
        ("train --presision fp16", "usage: sanet train [OPTIONS]", "no option --presision; did you mean --precision?"),
        ("train --learning-rate=1", "usage: sanet train", "no option --learning-rate; did you mean --lr"),
        ("compare --outptu x", "usage: sanet compare --output DIR [OPTIONS]", "did you mean --output"),
        ("detect train --epoch 3", "usage: sanet detect train", "did you mean --epochs"),
        ("eval", "usage: sanet eval CHECKPOINT [OPTIONS]", "required: CHECKPOINT"),
        ("eval a.pt b.pt", "usage: sanet eval", "unrecognized arguments: b.pt"),
        ("train photos", "usage: sanet train", "unrecognized arguments: photos; did you mean --data photos?"),
        ("export a.pt", "usage: sanet export CHECKPOINT --output FILE", "required: --output"),
    ],
)
def test_an_unknown_option_gets_the_usage_and_the_closest(capsys, command, usage, message):
    with pytest.raises(SystemExit) as ended:
        sanet_here(*command.split())
    assert ended.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(usage)
    assert message in second


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("eval a.pt --batch-size 0", "--batch-size must be at least 1, got 0"),
        ("eval a.pt --batch-size many", "--batch-size must be of type int, got 'many'"),
        ("explain a.png --method gradcan", "--method must be one of gradcam, gradcam++"),
        ("explain a.png --tolerance -1", "--tolerance must be at least 0, got -1.0"),
        ("explain a.png --gates --scores", "--gates and --scores cannot be given together"),
        ("demo --port 70000", "--port must be between 1 and 65535, got 70000"),
        (
            "detect predict a.png --checkpoint a --output b --threshold 2",
            "--threshold must be between 0 and 1, got 2.0",
        ),
        ("detect profile resnet18 --size 800 0", "--size must be at least 1, got [800, 0]"),
        ("compare --output a --preserve maybe", "--preserve must be one of both, yes, no, got maybe"),
    ],
)
def test_options_are_held_to_their_type_and_range(capsys, command, message):
    assert sanet_here(*command.split()) == 2
    assert message in capsys.readouterr().err


def test_options_are_read_by_their_type():
    compare = parse(
        "compare", "--output", "a", "--attention", "none, se,", "--from", "b.pt", "--lr", "0.001", "--no-report"
    )
    assert (compare.attention, compare.from_, compare.seeds) == (["none", "se"], "b.pt", None)
    assert compare.overrides == {"lr": 1e-3, "report": False}
    train = parse("train", "--resume", "--mean", "0.5", "1", "--clip-grad", "none", "--model-args", "{groups: 8}")
    assert train.resume == ""
    assert train.overrides == {"mean": [0.5, 1], "clip_grad": None, "model_args": {"groups": 8}}
    explain = parse("explain", "a.png", "b.png", "--target", "none", "--channels", "3,4")
    assert (explain.images, explain.target, explain.channels) == (["a.png", "b.png"], "none", [3, 4])
    evaluate = parse("eval", "a.pt", "--no-ema", "--data", "1234")
    assert (evaluate.ema, evaluate.batch_size, evaluate.overrides) == (False, 128, {"data": "1234"})


def test_an_old_flag_is_accepted_and_not_shown(capsys):
    assert parse("profile", "resnet18", "--picture", "a.png").chart == "a.png"
    with pytest.raises(SystemExit):
        sanet_here("profile", "--help")
    assert "--picture" not in capsys.readouterr().out


def test_a_command_is_one_class(monkeypatch, capsys):
    monkeypatch.setattr(Command, "known", dict(cli.collect()))

    @dataclass(kw_only=True)
    class Greet(Command):
        """Greet someone."""

        name = "greet"
        summary = "greet someone"
        whom: str = option("world", "who is greeted", positional=False, aliases=("--who",))

        def run(self):
            print(f"hello, {self.whom}")
            return 0

    assert sanet_here("greet", "--who", "you") == 0
    assert capsys.readouterr().out == "hello, you\n"
    assert sanet_here() == 0
    assert "greet someone" in capsys.readouterr().out


def test_the_methods_of_explain_are_those_of_the_library():
    assert get_args(get_type_hints(cli.collect()["explain"])["method"]) == METHODS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "imagnet"], "no recipe or YAML file 'imagnet'; did you mean imagenet"),
        (["--recipe", "imagenette"], "recipe imagenette does not name images; give their folder: --data DIR"),
        (["--model", "sa_resnet5"], "no model 'sa_resnet5'; did you mean sa_resnet50"),
        (["--data", "nowhere"], "no folder nowhere"),
        (["--data", "nowhere", "--model", "sa_resnet5"], "no model 'sa_resnet5'; did you mean sa_resnet50"),
        (["--data", "nowhere", "--recipe", "cifar10", "--model", "sa_resnet5"], "no model 'sa_resnet5'"),
        (["--data", "nowhere", "--lr", "fast"], "lr must be a finite number, got fast"),
        (["--recipe", "cifar10", "--data", "nowhere"], "no folder nowhere"),
        (["--lr", "fast"], "lr must be a finite number, got fast"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--epochs", "1.5"], "epochs must be of type int, got 1.5"),
        (["--model-args", "{groups: 0}"], "groups must be at least 1, got 0"),
        (["--model-args", "{nonsense: 1}"], "nonsense=1 cannot be used"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--device", "cuda:77"], "device 'cuda:77' cannot be used"),
        (["--device", "meta"], "device 'meta' cannot be used"),
        (["--precision", "fp8"], "precision must be one of fp32, bf16, fp16, got fp8"),
        (["--opt", "sdg"], "opt='sdg' cannot be used: Optimizer sdg not found"),
        (["--sched", "stairs"], "sched='stairs' cannot be used"),
        (["--auto-augment", "nonsense"], "auto_augment='nonsense', color_jitter=0.0 cannot be used"),
        (["--interpolation", "nonsense"], "interpolation must be one of bilinear, bicubic"),
        (["--batch-size", "1"], "more than 1 value per channel"),
        (["--model", "vit_tiny_patch16_224"], "model='vit_tiny_patch16_224', img_size=32"),
        (["--grad-checkpointing", "--model", "vgg11"], "grad_checkpointing=True cannot be used"),
        (["--resume", "auto"], "--output DIR --resume auto"),
        (["--resume"], "--resume needs the folder of a run"),
        (["--resume", "a", "--output", "b"], "name two folders"),
        (["--batch-size", "5000"], "batch_size 5000 exceeds the 1437 training images"),
        (["--num-classes", "3"], "num_classes is 3 and digits has 10 classes"),
        (["--initial", "nowhere.pt"], "no checkpoint at nowhere.pt"),
        (["--model", "vit_tiny_patch16_224", "--small-stem"], "does not have both"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, list) else "",
)
def test_bad_arguments_are_refused_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    recipe = () if {"--recipe", "--data", "--resume"} & {*arguments} else ("--recipe", "digits")
    assert sanet_here("train", "--workers", 0, *recipe, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("command", "needs"), [("train", "CLASS"), ("detect train", "COCO, YOLO or Pascal VOC")])
def test_train_alone_explains_itself_and_starts_nothing(tmp_path, monkeypatch, capsys, command, needs):
    monkeypatch.chdir(tmp_path)
    assert sanet_here(*command.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"sanet {command} needs images: a folder with ")
    assert needs in output.err
    examples = [line.split()[1:] for line in output.err.splitlines() if line.startswith("  sanet ")]
    assert [parse(*example).recipe for example in examples] == [None, "digits"]
    assert os.listdir(tmp_path) == []


def test_recipes_are_listed_with_their_purpose(capsys):
    assert sanet_here("recipes") == 0
    listed = capsys.readouterr().out
    assert re.search(r"recipes of sanet train:\n  cifar10 +CIFAR-10, ", listed)
    assert re.search(r"recipes of sanet detect train:\n  coco-1x +COCO, 12 epochs", listed)
    assert sanet_here("recipes", "imagnet") == 2
    assert "no recipe 'imagnet'; did you mean imagenet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in (Recipe, DetectionRecipe) for name in recipe_names(kind)]
)
def test_a_recipe_is_shown_as_a_recipe_with_comments(tmp_path, capsys, kind, name):
    assert sanet_here("recipes", name, *["--detect"] * (kind is DetectionRecipe)) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"# {recipe_about(name, kind)[0]}\n")
    assert "learning rate" in re.search(r"^lr: .*# (.*)$", shown, re.MULTILINE)[1]
    (tmp_path / "shown.yaml").write_text(shown)
    assert load_recipe(tmp_path / "shown.yaml", kind) == load_recipe(name, kind)
    assert ("data" in recipe_fields(tmp_path / "shown.yaml", kind)[0]) == (name == "digits")


def test_eval_prints_and_writes_the_metrics(run, tmp_path, capsys):
    files = ("--json", tmp_path / "metrics.json", "--predictions", tmp_path / "predictions.csv")
    assert sanet_here("eval", run / "best.pt", "--workers", 0, *files) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    reported = json.loads((run / "summary.json").read_text())["best"]
    assert metrics["top1"] == pytest.approx(reported["val_top1"])
    assert (metrics["classes"], metrics["img_size"], metrics["images"]) == (4, 32, 32)
    assert {"top5", "loss", "images_per_second", "torch", "machine", "weights"} <= metrics.keys()
    printed = capsys.readouterr().out
    assert f"{metrics['top1']:.3f}" in printed
    assert "images/s" in printed
    assert metrics["rewritten"]["folded"]
    assert sanet_here("eval", run / "best.pt", "--workers", 0, "--no-rewrite", *files[:2]) == 0
    as_trained = json.loads((tmp_path / "metrics.json").read_text())
    assert as_trained["rewritten"] is None
    assert (as_trained["top1"], as_trained["loss"]) == pytest.approx((metrics["top1"], metrics["loss"]), rel=1e-5)
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    right = [row["label"] == row["predicted"] for row in rows]
    assert (len(rows), 100 * sum(right) / len(rows)) == (32, pytest.approx(metrics["top1"]))
    assert all(row["file"].split("/")[-2] == row["label"] for row in rows)
    assert all(0.25 <= float(row["probability"]) <= 1 for row in rows)
    for each in metrics["by_class"]:
        own = [good for good, row in zip(right, rows, strict=True) if row["label"] == each["name"]]
        predicted = [good for good, row in zip(right, rows, strict=True) if row["predicted"] == each["name"]]
        assert (each["images"], each["recall"]) == (8, pytest.approx(100 * sum(own) / 8))
        precision = pytest.approx(100 * sum(predicted) / len(predicted)) if predicted else None
        assert each["precision"] == precision
        assert each["name"] in printed
    recalls = [each["recall"] for each in metrics["by_class"]]
    assert recalls == sorted(recalls)
    assert metrics["mean_recall"] == pytest.approx(sum(recalls) / 4)


def test_eval_finds_classes_by_name_not_by_place(run, tmp_path, capsys):
    """A folder with some of the classes is scored with the labels that the network has for them."""
    write_tree(tmp_path)
    shutil.rmtree(tmp_path / "val/digit0")
    arguments = ("--workers", 0, "--json", tmp_path / "metrics.json")
    assert sanet_here("eval", run / "best.pt", "--data", tmp_path, *arguments) == 0
    some = json.loads((tmp_path / "metrics.json").read_text())
    assert some["images"] == 24
    assert sanet_here("eval", run / "best.pt", "--data", tmp_path / "val", *arguments) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["top1"] == some["top1"]
    (tmp_path / "val/digit3").rename(tmp_path / "val/letterX")
    assert sanet_here("eval", run / "best.pt", "--data", tmp_path) == 2
    assert "not trained on: letterX; known are 4: digit0" in capsys.readouterr().err


def test_eval_counts_what_it_cannot_read(run, tmp_path, capsys):
    write_tree(tmp_path)
    broken = tmp_path / "val/digit1/003.png"
    broken.write_bytes(broken.read_bytes()[:-60])
    arguments = ("eval", run / "best.pt", "--data", tmp_path, "--workers", 0, "--json", tmp_path / "metrics.json")
    assert sanet_here(*arguments) == 2
    assert not (tmp_path / "metrics.json").exists()
    assert sanet_here(*arguments, "--no-check-images") == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["images"], metrics["unreadable"]) == (31, 1)
    assert "1 image could not be read and not counted" in capsys.readouterr().out


def test_eval_reads_published_files_alone(tmp_path, capsys):
    """Network, classes and image size are known from the weights; ImageNet's classes by their names."""
    torch.manual_seed(0)
    model = timm.create_model("sa_resnet18")
    model.fc.bias.data[482] = 100.0  # n02979186 is ImageNet's class 482
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 100, "best_acc": 70.0}, tmp_path / "published.pth.tar")
    write_tree(tmp_path, 2, ("n01440764", "n02979186", "n03888257"))
    arguments = ("--workers", 0, "--json", tmp_path / "metrics.json")
    assert sanet_here("eval", tmp_path / "published.pth.tar", "--data", tmp_path, *arguments) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["model"], metrics["classes"], metrics["img_size"]) == ("sa_resnet18", 1000, 224)
    assert metrics["top1"] == pytest.approx(100 / 3)


def test_eval_reads_safetensors_and_what_stands_under_other_names(run, tmp_path, shared_tree):
    """Neither the order of the entries nor a prefix hides how many classes there are, and the stem tells its input."""
    model = timm.create_model("sa_resnet18", num_classes=4, in_chans=1)
    shuffle_attention.models.small_input_stem(model)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "sorted.safetensors")
    safetensors.torch.save_file(state, tmp_path / "misnamed.pt")
    torch.save({f"module._orig_mod.{key}": value for key, value in state.items()}, tmp_path / "prefixed.pt")
    for name in ("sorted.safetensors", "misnamed.pt", "prefixed.pt"):
        arguments = ("--data", shared_tree, "--img-size", 32, "--workers", 0, "--json", tmp_path / "metrics.json")
        assert sanet_here("eval", tmp_path / name, *arguments) == 0
        assert json.loads((tmp_path / "metrics.json").read_text())["classes"] == 4
    other = timm.create_model("sa_resnet18", num_classes=4, groups=8)
    torch.save(other.state_dict(), tmp_path / "groups.pt")
    special = ("--model", "sa_resnet18", "--model-args", "{groups: 8}", "--img-size", 32, "--workers", 0)
    assert sanet_here("eval", tmp_path / "groups.pt", "--data", shared_tree, *special) == 0


def test_places_that_cannot_be_written_are_one_line(run, tmp_path, shared_tree, capsys):
    (tmp_path / "file").touch()
    quick = (*QUICK, "--data", shared_tree, "--output", tmp_path / "file" / "run")
    assert sanet_here("train", *quick) == 2
    assert "file" in capsys.readouterr().err
    assert sanet_here("eval", run / "best.pt", "--json", tmp_path / "nowhere/metrics.json") == 2
    assert "there is no folder" in capsys.readouterr().err
    assert sanet_here("eval", run) == 2
    assert f"did you mean {run / 'best.pt'}?" in capsys.readouterr().err


def test_eval_refuses_data_of_other_classes(tmp_path, shared_tree, capsys):
    torch.save(timm.create_model("sa_resnet18", num_classes=7).state_dict(), tmp_path / "bare.pt")
    assert sanet_here("eval", tmp_path / "bare.pt", "--data", shared_tree) == 2
    assert "tells 7 classes apart" in capsys.readouterr().err


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_bad_checkpoints_end_with_one_line_and_a_code(run, tmp_path, capsys):
    """One in a process of its own: the exit code that a shell sees, no traceback, no file, no code run."""
    (tmp_path / "cut.pt").write_bytes((run / "best.pt").read_bytes()[:100_000])
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Payload(tmp_path / "ran")}))
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "other.pt")
    done = sanet("eval", tmp_path / "evil.pt", "--json", tmp_path / "metrics.json", check=False)
    results = [("written by pickle", done.returncode, done.stderr)]
    for name, message in (("cut", "is damaged or cut off"), ("other", "name the model with --model")):
        code = sanet_here("eval", tmp_path / f"{name}.pt", "--json", tmp_path / "metrics.json")
        results.append((message, code, capsys.readouterr().err))
    for message, code, printed in results:
        assert code == 2
        assert printed.startswith("error: ")
        assert message in printed
        assert printed.count("\n") == 1
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "metrics.json").exists()
