"""``sanet detect`` as a user runs it: train, stop, go on, evaluate, draw, and what is said of bad input."""

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models.detection import roi_heads

from conftest import CPU, sanet_here
from pages import write_detector
from shuffle_attention.checkpoints import read_checkpoint
from shuffle_attention.deploy import load
from shuffle_attention.models.detectors import ARCHITECTURES, create_detector
from shuffle_attention.sanet.data.formats import read_data, require_data
from shuffle_attention.sanet.profile.costs import training_step
from shuffle_attention.sanet.profile.detectors import random_objects, work_alike
from shuffle_attention.sanet.recipes.recipe import load_recipe, recipe_names
from shuffle_attention.sanet.tasks.detection import choice
from shuffle_attention.sanet.tasks.detection.coco_scores import coco_scores
from shuffle_attention.sanet.tasks.detection.predictor import restore_detector
from shuffle_attention.sanet.tasks.detection.recipe import DetectionRecipe
from shuffle_attention.sanet.tasks.detection.samples import digits_coco
from shuffle_attention.sanet.tasks.detection.task import Detection
from shuffle_attention.sanet.training.loop import train
from shuffle_attention.sanet.training.progress import Progress

SMALL = [
    *"--recipe digits --backbone sa_resnet18 --min-size 64 --max-size 64 --anchor-sizes 8 16 24 32 48".split(),
    *"--workers 0 --batch-size 2 --epochs 2 --warmup-epochs 0 --pyramid-channels 64 --device cpu --no-report".split(),
    *("--backbone-args", "{channels: [8, 8, 16, 16]}"),
]
DENSE = ["--detector-args", "{}"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detect") / "data"
    for split, count in (("train", 6), ("val", 3)):
        digits_coco(split, count, size=64, digits=(1, 3)).write(folder, split)
    return folder


def options(arch: str, data: Path) -> list[str]:
    own = [] if arch in ("faster_rcnn", "mask_rcnn") else DENSE
    without = SMALL if arch != "fcos" else [*SMALL, "--anchor-sizes"]
    return [*without, *own, "--arch", arch, "--data", str(data)]


def rows(folder: Path) -> list[dict[str, float]]:
    with open(folder / "metrics.csv") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def trained(request, data, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    assert sanet_here("detect", "train", *options(request.param, data), "--output", folder) == 0
    return request.param, folder


def test_it_trains_evaluates_and_predicts(trained, data, tmp_path, capsys):
    arch, folder = trained
    history = rows(folder)
    assert [row["epoch"] for row in history] == [1, 2]
    parts = [f"train_{name}" for name in ARCHITECTURES[arch].losses]
    for row in history:
        assert sum(row[part] for part in parts) == pytest.approx(row["train_loss"], rel=1e-4)
    assert ("val_mask_AP" in history[0]) == (arch == "mask_rcnn")
    assert 0 < history[0]["gates_from_start"] < 0.1
    with Image.open(folder / "curves.png") as picture:
        picture.load()
    metrics, results = tmp_path / "metrics.json", tmp_path / "results.json"
    told = ["--data", data, "--workers", 0, "--device", "cpu", "--json", metrics, "--results", results]
    assert sanet_here("detect", "eval", folder / "best.pt", "--batch-size", 2, *told) == 0
    scores = json.loads(metrics.read_text())
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert {name: scores[name.removeprefix("val_")] for name in best if name.startswith("val_")} == pytest.approx(
        {name: value for name, value in best.items() if name.startswith("val_")}, abs=1e-6
    )
    # The results file says the same to anyone who evaluates it.
    again = coco_scores(read_data(require_data(data, "val"), masks=True), json.loads(results.read_text()))
    assert again["box_AP"] == pytest.approx(scores["box_AP"], abs=1e-9)
    capsys.readouterr()
    drawn = tmp_path / "drawn"
    found = ["--checkpoint", folder / "best.pt", "--output", drawn, "--threshold", 0, "--device", "cpu"]
    assert sanet_here("detect", "predict", data / "val", *found) == 0
    records = json.loads((drawn / "detections.json").read_text())
    assert [record["picture"] for record in records] == ["00001.png", "00002.png", "00003.png"]
    for record in records:
        with Image.open(drawn / record["picture"]) as picture:
            assert picture.width == 640
        for detection in record["detections"]:
            assert detection["name"] == str(detection["category_id"] - 1)
            assert ("segmentation" in detection) == (arch == "mask_rcnn")
    assert f"{sum(len(record['detections']) for record in records)} objects" in capsys.readouterr().out


def test_an_exported_file_is_evaluated_and_predicts_as_its_checkpoint(data, tmp_path, capsys):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    checkpoint, model = write_detector(tmp_path / "best.pt"), tmp_path / "model.onnx"
    assert sanet_here("detect", "export", checkpoint, "--output", model, "--data", data / "val", "--max-size", 96) == 0
    assert re.search(r"In 3 images, of \d+ objects 0 differ", capsys.readouterr().out)
    records = []
    for path in (checkpoint, model):
        size = ["--max-size", 96, "--device", "cpu"]
        results = ["--results", tmp_path / "results.json", "--json", tmp_path / "scores.json", "--batch-size", 1]
        assert sanet_here("detect", "eval", path, "--data", data, *size, *results, "--workers", 0) == 0
        records.append([json.loads((tmp_path / file).read_text()) for file in ("results.json", "scores.json")])
    drawn = [data / "val/00001.png", "--output", tmp_path / "drawn", "--threshold", 0.05]
    assert sanet_here("detect", "predict", model, *drawn) == 0
    (picture,) = json.loads((tmp_path / "drawn/detections.json").read_text())
    assert len(records[0][0]) > 10
    for one, other in zip(records[0][0], records[1][0], strict=True):
        assert one["category_id"] == other["category_id"]
        assert [*one["bbox"], one["score"]] == pytest.approx([*other["bbox"], other["score"]], abs=1e-3)
    assert records[0][1]["box_AP"] == pytest.approx(records[1][1]["box_AP"], abs=1e-3)
    assert len(picture["detections"]) == len([each for each in records[0][0] if each["image_id"] == 1])
    stored = load(model).metadata
    assert stored["checkpoint"] == "best.pt"
    assert len(stored["checkpoint_sha256"]) == 64
    # What is inside the file cannot be chosen, and it is no checkpoint.
    proto = onnx.load(model)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "stranger.onnx")
    (tmp_path / "half.onnx").write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    capsys.readouterr()
    for arguments, message in (
        (["eval", model, "--min-size", 96], "min_size cannot be chosen for .*model.onnx"),
        (["eval", model, "--ema"], "ema cannot be chosen for"),
        (["export", model, "--output", tmp_path / "other.onnx"], "is exported already"),
        (["eval", tmp_path / "stranger.onnx"], "does not say what it detects"),
        (["eval", tmp_path / "half.onnx"], "cannot be read as a file of the format onnx"),
        (["predict", model, "--output", tmp_path / "drawn"], "name images as well as the model"),
        (["export", checkpoint, "--output", tmp_path / "model.pt2"], "to ONNX only"),
    ):
        assert sanet_here("detect", *arguments) == 2, arguments
        assert re.search(message, capsys.readouterr().err), message


def test_it_goes_on(trained, capsys):
    _, folder = trained
    assert sanet_here("detect", "train", "--resume", folder, "--epochs", 3) == 0
    assert "epoch   3/3" in capsys.readouterr().out
    assert len(rows(folder)) == 3


def test_stopped_in_mid_epoch_it_ends_as_if_it_had_not_been(data, tmp_path, monkeypatch, capsys):
    """Proposals are drawn from at random, images mirrored and weights averaged: all of it goes on where it was."""
    eventful = [*options("mask_rcnn", data), "--hflip", 0.5, "--vflip", 0.5, "--ema-decay", 0.9]
    assert sanet_here("detect", "train", *eventful, "--output", tmp_path / "whole") == 0
    step = Progress.step

    def interrupted(self, number, sums):
        if self._epoch == 1 and number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, number, sums)

    monkeypatch.setattr(Progress, "step", interrupted)
    folder = tmp_path / "run"
    assert sanet_here("detect", "train", *eventful, "--output", folder) == 143
    assert f"Continue with: sanet detect train --resume {folder}" in capsys.readouterr().out
    monkeypatch.undo()
    assert read_checkpoint(folder / "last.pt")["step"] == 2
    assert sanet_here("detect", "train", "--resume", folder) == 0
    whole, resumed = (read_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "run"))
    for part in ("state_dict", "state_dict_ema"):
        assert not [key for key, value in whole[part].items() if not torch.equal(value, resumed[part][key])]


def test_the_backbone_starts_from_a_classifier_which_continuing_does_not_need(run, data, tmp_path):
    weights = shutil.copy(run / "best.pt", tmp_path / "classifier.pt")
    folder = tmp_path / "run"
    frozen = ["--weights", weights, "--trainable-layers", 0, "--epochs", 1]
    assert sanet_here("detect", "train", *options("retinanet", data), *frozen, "--output", folder) == 0
    classifier = read_checkpoint(weights)["state_dict"]
    state = read_checkpoint(folder / "last.pt")["state_dict"]
    body = [key for key in state if key.startswith("backbone.body.")]
    assert len(body) > 100
    assert not [key for key in body if not torch.equal(state[key], classifier[key.removeprefix("backbone.body.")])]
    os.remove(weights)
    assert sanet_here("detect", "train", "--resume", folder, "--epochs", 2) == 0
    restored = restore_detector(folder / "best.pt")
    assert restored.model.backbone.frozen_norm
    assert restored.names == [str(digit) for digit in range(10)]


def test_mixed_precision(data, tmp_path):
    """In bfloat16; the loss scaling of float16 is the loop's, and tested with it.

    At 128 pixels: PyTorch 2.14's bfloat16 convolution on a CPU may leave NaN in the weight's gradient where a
    3 x 3 kernel of stride 2 meets a map of 1 x 1, as the coarsest level of the pyramid does at 64 pixels.
    """
    fields = {
        "data": str(data),
        "arch": "retinanet",
        "backbone": "resnet10t",
        "min_size": [128],
        "max_size": 128,
        "anchor_sizes": [8, 16, 24, 32, 48],
        "workers": 0,
        "epochs": 1,
        "batch_size": 6,
        "device": "cpu",
        "opt": "adamw",
        "lr": 0.0,
        "hflip": 0.0,
    }
    found = {
        kind: train(DetectionRecipe(**fields, precision=kind), tmp_path / kind, CPU, task=Detection).best
        for kind in ("fp32", "bf16")
    }
    assert found["bf16"]["train_loss"] == pytest.approx(found["fp32"]["train_loss"], rel=0.05)


def test_the_recipes():
    """Goyal et al., arXiv:1706.02677, section 2.1: the rate is in proportion to the batch."""
    assert recipe_names(DetectionRecipe) == ["coco-1x", "coco-2x", "digits", "nuclei", "objects"]
    for name in recipe_names(DetectionRecipe):
        load_recipe(name, DetectionRecipe)
    recipe = load_recipe("coco-1x", DetectionRecipe)
    assert (recipe.peak_lr, recipe.epochs, recipe.decay_milestones) == (0.02, 12, [8, 11])
    assert recipe.replaced(batch_size=2).peak_lr == pytest.approx(0.0025)
    assert load_recipe("coco-2x", DetectionRecipe).decay_milestones == [16, 22]


@pytest.mark.parametrize("why_not", ["", "no hub"])
def test_a_recipe_is_chosen_for_the_data(why_not, data, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "why_not_pretrained", lambda model: why_not)
    recipe, why = Detection.choose_recipe({"data": str(data)})
    assert "6 training images with 15 objects: recipe objects, mask_rcnn-sa_resnet18 at 160 pixels, 60 epochs" in why
    assert ("from scratch (no hub)" in why) == (not recipe.pretrained) == bool(why_not)
    assert (recipe.batch_size, recipe.vflip, recipe.anchor_sizes) == (1, 0, [16, 32, 64, 128, 256])
    voc = tmp_path / "voc"
    assert sanet_here("detect", "convert", data, "--to", "voc", "--output", voc) == 0
    (voc / "ImageSets/Main/val.txt").unlink()
    given = {"data": str(voc), "min_size": [64], "batch_size": 4, "weights": "a.pt"}
    recipe, why = Detection.choose_recipe(given)
    assert "without masks: recipe objects, faster_rcnn-sa_resnet18 at 64 pixels" in why
    assert "20% of the images held out for validation" in why
    assert (recipe.val_fraction, recipe.batch_size, recipe.pretrained) == (0.2, 4, False)
    recipe, _ = Detection.choose_recipe({**given, "arch": "fcos"})
    assert (recipe.arch, recipe.anchor_sizes) == ("fcos", [])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "yolo"}, "arch must be one of faster_rcnn, mask_rcnn, retinanet, fcos, got yolo"),
        ({"min_size": [800], "max_size": 600}, "max_size must be at least the largest min_size, got 600"),
        ({"min_size": []}, "min_size must be lengths of at least 1"),
        ({"weights": "a.pt", "pretrained": True}, "pretrained must be false where weights are named"),
        ({"train_images": "images"}, "train_annotations and train_images must be given together"),
        ({"detector_args": {"min_size": 3}}, "detector_args must be without min_size"),
        ({"decay_milestones": [3, 2]}, "decay_milestones must be rising epochs"),
        ({"sched": "multistep"}, "decay_milestones must be given with sched multistep"),
    ],
)
def test_settings_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        DetectionRecipe(**fields)


def test_bad_data_stop_it_before_anything_is_written(data, tmp_path, capsys):
    spoilt = Path(shutil.copytree(data, tmp_path / "data"))
    (spoilt / "train/00002.png").write_text("no image")
    folder = tmp_path / "run"
    begin = ["detect", "train", *options("faster_rcnn", spoilt), "--epochs", 1, "--output", folder]
    assert sanet_here(*begin) == 2
    assert "images that cannot be read (1: 00002.png: not an image)" in capsys.readouterr().err
    assert not folder.exists()
    assert sanet_here(*begin, "--skip-bad-images") == 0
    assert "left out are images that cannot be read (1: " in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "val"])
def test_data_without_objects_are_refused_before_anything_is_written(split, data, tmp_path, capsys):
    emptied = Path(shutil.copytree(data, tmp_path / "data"))
    path = emptied / f"annotations/instances_{split}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    begin = ["detect", "train", *options("faster_rcnn", emptied), "--output", tmp_path / "run"]
    assert sanet_here(*begin) == 2
    assert f"instances_{split}.json has no object" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_boxes_without_masks_train_no_masks_and_are_not_dropped_silently(data, tmp_path, capsys):
    boxes = Path(shutil.copytree(data, tmp_path / "data"))
    for path in boxes.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        for number, annotation in enumerate(content["annotations"]):
            annotation["segmentation"] = [[], [[]], None, [[1, 1, 3, 3]]][number % 4]
        path.write_text(json.dumps(content))
    begin = ["detect", "train", *options("mask_rcnn", boxes), "--epochs", 1, "--output", tmp_path / "run"]
    for skip, message in (([], "annotations without a mask"), (["--skip-bad-images"], "has no object")):
        assert sanet_here(*begin, *skip) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert "--arch faster_rcnn" in printed
        assert not (tmp_path / "run").exists()
    assert sanet_here(*begin, "--arch", "faster_rcnn") == 0
    assert "broken masks, which boxes do not need" in capsys.readouterr().err


def test_yolo_without_validation_images_is_trained_and_evaluated_on(data, tmp_path, capsys):
    """A run records the fraction, and its evaluation draws the same images."""
    yolo, folder = tmp_path / "yolo", tmp_path / "run"
    assert sanet_here("detect", "convert", data, "--to", "yolo", "--output", yolo) == 0
    (yolo / "data.yaml").write_text((yolo / "data.yaml").read_text().replace("val:", "# val:"))
    begin = ["detect", "train", *options("faster_rcnn", yolo / "data.yaml"), "--epochs", 1, "--output", folder]
    assert sanet_here(*begin) == 2
    assert "has no val images with annotations; --val-fraction 0.2 draws them" in capsys.readouterr().err
    assert sanet_here(*begin, "--val-fraction", 0.3) == 0
    held_out = read_data(require_data(yolo, "train")).parted(0.3)["val"]
    results = tmp_path / "results.json"
    assert sanet_here("detect", "eval", folder / "best.pt", "--workers", 0, "--results", results) == 0
    images = {record["image_id"] for record in json.loads(results.read_text())}
    assert images <= {image["id"] for image in held_out.images}
    assert f"{len(held_out)} images" in capsys.readouterr().out
    (yolo / "images/train" / held_out.images[0]["file_name"]).unlink()
    assert sanet_here("detect", "eval", folder / "best.pt", "--workers", 0) == 2
    assert "are not those that the run divided" in capsys.readouterr().err


def test_a_recipe_for_another_detector_says_what_to_leave_out(capsys):
    for arch, *messages in (
        ("retinanet", "did you mean detections_per_img? there are", "; for none of the recipe's: --detector-args '{}'"),
        ("fcos", "fcos has no anchors, and the recipe gives some: --anchor-sizes without values"),
    ):
        assert sanet_here("detect", "train", "--recipe", "digits", "--arch", arch, "--device", "cpu") == 2
        printed = capsys.readouterr().err
        assert all(message in printed for message in messages)


@pytest.mark.parametrize("trained", ["fcos"], indirect=True)
def test_each_command_says_whose_checkpoint_it_got(trained, run, tmp_path, capsys):
    _, folder = trained
    assert sanet_here("eval", folder / "best.pt") == 2
    assert "best.pt holds a detector, not a classifier of sanet train" in capsys.readouterr().err
    assert sanet_here("detect", "eval", run / "best.pt") == 2
    assert "best.pt holds a classifier, not a detector of sanet detect train" in capsys.readouterr().err


@pytest.mark.parametrize("trained", ["fcos"], indirect=True)
def test_what_cannot_be_predicted(trained, tmp_path, capsys):
    _, folder = trained
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    tell = ["--checkpoint", folder / "best.pt", "--output", tmp_path / "drawn"]
    for image, message in (
        (tmp_path / "text.png", "1 of 1 images cannot be read"),
        (tmp_path / "empty", "has no images"),
        (tmp_path / "none.png", "no file or folder"),
    ):
        assert sanet_here("detect", "predict", image, *tell) == 2
        assert message in capsys.readouterr().err
    Image.new("RGB", (3000, 16)).save(tmp_path / "narrow.png")
    assert sanet_here("detect", "predict", tmp_path / "narrow.png", *tell[:2], "--output", tmp_path / "narrow") == 2
    assert "narrow.png of 3000 x 16 pixels cannot be processed" in capsys.readouterr().err
    assert sanet_here("detect", "predict", tmp_path / "narrow.png", *tell[:2], "--output", tmp_path) == 2
    assert "lies among the images" in capsys.readouterr().err
    assert sanet_here("detect", "predict", tmp_path, *tell, "--threshold", 7) == 2
    assert "--threshold must be between 0 and 1, got 7" in capsys.readouterr().err
    assert not (tmp_path / "drawn").exists()


def test_profile(tmp_path, capsys):
    small = ["--size", 64, 96, "--repetitions", 1, "--device", "cpu", "--num-classes", 3]
    path = tmp_path / "cost.json"
    assert sanet_here("detect", "profile", "resnet18", "sa_resnet18", "--arch", "fcos", *small, "--json", path) == 0
    costs = json.loads(path.read_text())["detectors"]
    assert costs["sa_resnet18"]["parameters"] - costs["resnet18"]["parameters"] == 96
    assert costs["resnet18"]["training step"]["over_first"] == [1, 1, 1]
    assert {"macs", "trainable", "by_part", "kept_bytes", "inference"} <= costs["resnet18"].keys()
    assert "over resnet18, times with quartiles" in capsys.readouterr().out


def test_what_is_profiled_learns_from_as_many_proposals_whatever_the_backbone(monkeypatch):
    learnt_from, loss = [], roi_heads.fastrcnn_loss

    def counted(scores, boxes, labels, targets):
        learnt_from.append([len(label) for label in labels] + [int((label > 0).sum()) for label in labels])
        return loss(scores, boxes, labels, targets)

    monkeypatch.setattr(roi_heads, "fastrcnn_loss", counted)
    for backbone in ("resnet18", "sa_resnet18"):
        options = {"min_size": 128, "max_size": 192, "backbone_options": {"channels": [8, 8, 16, 16]}}
        detector = create_detector("faster_rcnn", backbone, 3, frozen_norm=True, pyramid_channels=32, **options)
        work_alike(detector, (128, 192))
        targets = random_objects((128, 192), 1, masks=False)
        step = training_step(detector, [torch.rand(3, 128, 192)], targets)
        for _ in range(3):
            step()
    assert len(learnt_from) == 6
    assert learnt_from[0][1] > 0
    assert all(counts == learnt_from[0] for counts in learnt_from)
