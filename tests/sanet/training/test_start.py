"""Runs that start from plain weights or with attached attention, as the commands start them."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from conftest import QUICK, sanet_here
from shuffle_attention import ShuffleAttention
from shuffle_attention.checkpoints import read_checkpoint
from shuffle_attention.errors import InputError
from shuffle_attention.sanet.cli import parse
from shuffle_attention.sanet.commands.train import Train
from shuffle_attention.sanet.network import create_network
from shuffle_attention.sanet.recipes.recipe import Recipe
from shuffle_attention.sanet.tasks.classification.predictor import restore_network
from shuffle_attention.sanet.tasks.detection.predictor import detector_of
from shuffle_attention.sanet.tasks.detection.recipe import DetectionRecipe

CHANNELS = {"channels": [8, 8, 16, 16]}
KEPT = [*QUICK, *"--epochs 1 --lr 0 --freeze-bn".split()]  # weights stay as they are loaded


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[nn.Module, Path]:
    """A plain ResNet-18 with four classes and norms that differ, and its file."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=4, **CHANNELS)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("plain") / "plain.pth"
    torch.save(model.state_dict(), path)
    return model.eval(), path


@pytest.mark.parametrize(
    "options",
    ["--model sa_resnet18", "--model cbam_resnet18"],
)
def test_plain_weights_start_a_run_that_computes_the_same_and_goes_on(options, plain, shared_tree, tmp_path):
    source, path = plain
    start = [*KEPT, *options.split(), "--data", shared_tree, "--initial", path, "--output", tmp_path / "run"]
    assert sanet_here("train", *start) == 0
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(restore_network(tmp_path / "run/best.pt").model.eval()(x), source(x))
    content = read_checkpoint(tmp_path / "run/last.pt")
    assert any(key.endswith((".gain", ".alpha")) for key in content["state_dict"])
    assert sanet_here("train", "--resume", tmp_path / "run", "--epochs", 2, "--lr", 0.01) == 0
    assert read_checkpoint(tmp_path / "run/last.pt")["state_dict"].keys() == content["state_dict"].keys()


def test_attention_by_name_is_a_mapping_in_the_recipe():
    assert parse(Train, ["--attach", "shuffle"]).overrides == {"attach": "shuffle"}
    assert Recipe(attach="shuffle").attach == {"name": "shuffle"}
    assert DetectionRecipe().replaced(attach="se").attach == {"name": "se"}
    with pytest.raises(ValueError, match="attach must be a name, or a mapping with a name"):
        Recipe(attach={"groups": 8})


def test_detectors_are_created_with_attached_attention_and_from_plain_weights(plain):
    options = {"arch": "fcos", "pyramid_channels": 64, "backbone_args": CHANNELS, "weights": str(plain[1])}
    for name, attention in (("resnet18", "shuffle"), ("sa_resnet18", {})):
        recipe = DetectionRecipe(backbone=name, attach=attention, **options)
        for restored in (False, True):
            model = detector_of(recipe, 3, restored=restored)
            assert sum(isinstance(module, ShuffleAttention) for module in model.modules()) == 8
            assert not model.backbone.body.layer1[0].sa.cweight.requires_grad  # its first stages are frozen


def test_memory_is_set_on_every_block_that_can_rebuild():
    model: Any = create_network(Recipe(memory="rebuild", small_stem=True), 3)
    assert all(block.memory == "rebuild" for block in (model, *model.layer1, *model.layer4))
    with pytest.raises(InputError, match="memory='rebuild' needs an SA-ResNet"):
        create_network(Recipe(memory="rebuild", model="resnet18"), 3)
    model = create_network(Recipe(memory="rebuild", model="resnet18", attach={"name": "none"}), 3)
    assert model.layer2[1].memory == "rebuild"
    detector: Any = detector_of(DetectionRecipe(memory="rebuild", backbone="sa_resnet18"), 3)
    assert detector.backbone.body.layer3[0].memory == "rebuild"
