"""Recipes: what ships is what the paper says, and a slip of the pen is told at once."""

import re

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from shuffle_attention.sanet.recipes.recipe import Recipe, load_recipe, recipe_names


def test_the_shipped_recipes_load():
    assert recipe_names() == ["cifar10", "digits", "imagenet", "imagenet-modern", "imagenette"]
    for name in recipe_names():
        load_recipe(name)


def test_imagenet_is_the_papers():
    """Section 4.1: SGD with momentum 0.9, weight decay 1e-4, batch 256, 0.1 divided by 10 every 30 of 100 epochs."""
    recipe = load_recipe("imagenet")
    optimizer = create_optimizer_v2(nn.Linear(2, 2), recipe.opt, lr=recipe.lr, momentum=recipe.momentum)
    assert (type(optimizer), optimizer.defaults["nesterov"]) == (torch.optim.SGD, False)
    assert (recipe.momentum, recipe.weight_decay, recipe.batch_size) == (0.9, 1e-4, 256)
    assert (recipe.lr, recipe.decay_rate, recipe.decay_epochs, recipe.epochs) == (0.1, 0.1, 30, 100)
    assert (recipe.img_size, recipe.img_size / recipe.crop_pct, recipe.hflip) == (224, 256, 0.5)


def test_a_file_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("lr: 1e-3\nepochs: 7\nmodel_args: {groups: 8}\n")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert (recipe.lr, recipe.epochs, recipe.model_args) == (1e-3, 7, {"groups": 8})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1", "no field 'learning_rate'"),
        ("epoch: 3", "no field 'epoch'; did you mean .*epochs"),
        ("epochs: many", "epochs must be of type int, got 'many'"),
        ("epochs: 0", "epochs must be at least 1, got 0"),
        ("lr: fast", "lr must be a finite number, got fast"),
        ("lr: .nan", "lr must be a finite number, got nan"),
        ("hflip: 2", "hflip must be between 0 and 1, got 2"),
        ("precision: fp8", "precision must be one of fp32, bf16, fp16, got fp8"),
        ("compile: 1", "compile must be of type bool, got 1"),
        ("scale: [1.0, 0.5]", re.escape("scale must be two rising numbers above 0, got [1.0, 0.5]")),
        ("mean: [0.5, 0.5]", re.escape("mean must be one number per channel, 3 or 1, got [0.5, 0.5]")),
        ("std: [0.2, 0.2, 0]", "std must be above 0"),
        ("model_args: {num_classes: 3}", "model_args must be without num_classes"),
        ("seed: 4294967296", "seed must be at least 0 and below 4294967296"),
        ("- a list", "must hold 'field: value' lines, got list"),
        ("{", "is not YAML"),
    ],
)
def test_what_cannot_be_is_refused_with_its_name(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"bad.yaml.*{message}"):
        load_recipe(tmp_path / "bad.yaml")


def test_an_unknown_recipe_names_the_known():
    with pytest.raises(
        ValueError, match="no recipe or YAML file 'imagnet'; did you mean imagenet.*there are cifar10, digits"
    ):
        load_recipe("imagnet")


def test_a_recipe_survives_being_written_down():
    recipe = load_recipe("imagenet-modern")
    assert Recipe().replaced(**recipe.to_dict()) == recipe
