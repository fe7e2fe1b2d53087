"""Recipes: the shipped ones, mistakes in files, and files made to exhaust the reader."""

import re
from collections import OrderedDict

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from shuffle_attention.checkpoints import CheckpointError
from shuffle_attention.errors import InputError, brief
from shuffle_attention.sanet.network import recipe_of
from shuffle_attention.sanet.recipes.recipe import Recipe, load_recipe, recipe_names
from shuffle_attention.sanet.tasks.detection.recipe import DetectionRecipe


def test_the_shipped_recipes_load():
    names = ["cifar10", "digits", "finetune", "imagenet", "imagenet-modern", "imagenette", "photos", "small"]
    assert recipe_names() == names
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


def repeated(first: str, each: str) -> str:
    """Return a list with ten aliases of a list with ten aliases, and so on: ten lines, 10^9 values."""
    lines = [f"  - &a {first}"]
    lines += [
        f"  - &{new} {each % ', '.join([f'*{old}'] * 10)}" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return "\n".join(lines)


BOMB = f"model:\n{repeated('[x]', '[%s]')}"
MERGES = f"model:\n{repeated('{' + ', '.join(f'k{n}: 1' for n in range(10)) + '}', '{<<: [%s]}')}"


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
        ("img_size: 100000", "img_size must be between 1 and 4096, got 100000"),
        (
            "epochs: 2020-01-01",
            re.escape("epochs must be made of text, numbers, lists and mappings, got datetime.date("),
        ),
        ("model_args: {a: !!binary aGk=}", "model_args must be made of text, numbers"),
        ("lr: 1\nlr: 2", "is not YAML: line 2: 'lr' is given twice"),
        ("model_args: {a: {b: 1, b: 2}}", "'b' is given twice"),
        ("seed: 123456789012345678901", "seed must be an integer of at most 64 bits, got 123456789012345678901"),
        (f"model_args: {{a: {'9' * 4000}}}", "at most 64 bits, got an integer of 13288 bits"),
        (f"epochs: {'9' * 5000}", "is not YAML: "),
        ("epochs: !!int ''", "is not YAML: "),
        ("epochs: !!timestamp soon", "is not YAML: "),
        ("model_args: !!python/object:os.system {}", "is not YAML: line 1: could not determine a constructor"),
        (f"model_args: {{a: {'b' * 20_000}}}", "model_args must be of at most 10,000 characters, got 20,000"),
        (f"{'k' * 20_000}: 1", "is not YAML"),
        (f"? {'k' * 20_000}\n: 1", "no field 'kkk"),
        (f"? {'k' * 10_000_000}\n: 1", "is larger than 100,000 bytes"),
        (f"model_args: {'{a: ' * 2000}1{'}' * 2000}", "is nested too deeply"),
        (f"model_args: {'{a: ' * 30}1{'}' * 30}", "model_args must be nested at most 20 deep"),
        ("model_args: &a {b: *a}", "model_args must be nested at most 20 deep"),
        (BOMB, "model must be at most 100,000 values, got more"),
        (MERGES, "is not YAML: line .*too many merged keys|model must be of type str"),
        ("1: 2", "names of fields must be text, got 1"),
        ("? [lr]\n: 2", "is not YAML: line 1: found unhashable key"),
    ],
)
def test_an_unusable_file_is_refused_in_a_short_message(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError, match=f"bad.yaml.*{message}") as raised:
        load_recipe(tmp_path / "bad.yaml")
    assert len(str(raised.value)) < 1000
    assert "\n" not in str(raised.value)


def test_brackets_in_comments_and_quotes_are_not_nested(tmp_path):
    text = f'# {"[" * 2000}\ndata: "{"{" * 2000}"  # {"[" * 2000}\nlr: 0.5'
    (tmp_path / "own.yaml").write_text(text)
    assert (load_recipe(tmp_path / "own.yaml").lr, load_recipe(tmp_path / "own.yaml").data) == (0.5, "{" * 2000)


def nested(times: int) -> list:
    values: list = [1.0]
    for _ in range(times):
        values = [values] * 10
    return values


ENDLESS: dict = {}
ENDLESS["again"] = ENDLESS


@pytest.mark.parametrize(
    "fields",
    [
        {"model_args": {"a": nested(9)}},
        {"attach": {"name": nested(9)}},
        {"lr": nested(9)},
        {"opt": nested(9)},
        {"mean": nested(1)},
        {"model_args": ENDLESS},
        {"model_args": {"a": torch.zeros(9)}},
        {"img_size": 100_000},
        {"k" * 10_000_000: 1},
        {7: 1},
        {"seed": 10**5000},
    ],
    ids=lambda fields: next(iter(fields)) if len(str(next(iter(fields)))) < 20 else "long",
)
def test_the_recipe_in_a_checkpoint_is_held_to_the_same_limits(fields):
    with pytest.raises(CheckpointError, match="x.pt holds a recipe that cannot be used: ") as raised:
        recipe_of({"recipe": fields, "num_classes": 2}, "x.pt")
    assert len(str(raised.value)) < 1000


def test_values_in_messages_are_bounded():
    assert brief({"groups": 8}) == "{'groups': 8}"
    assert brief("plain", quoted=False) == "plain"
    for value in (nested(9), ENDLESS, OrderedDict(a=nested(9)), "x" * 10**6, 10**5000, {"a": {"b": {"c": {"d": 1}}}}):
        assert len(brief(value)) <= 503


def test_aliases_and_merged_keys_are_read(tmp_path):
    (tmp_path / "mine.yaml").write_text("model_args: &a {groups: 8}\nattach: {<<: *a, name: shuffle}\n")
    assert load_recipe(tmp_path / "mine.yaml").attach == {"groups": 8, "name": "shuffle"}


def test_an_unknown_recipe_names_the_known():
    with pytest.raises(
        ValueError, match="no recipe or YAML file 'imagnet'; did you mean imagenet.*there are cifar10, digits"
    ):
        load_recipe("imagnet")


def test_a_recipe_survives_being_written_down():
    recipe = load_recipe("imagenet-modern")
    assert Recipe().replaced(**recipe.to_dict()) == recipe


def test_checkpoints_of_version_0_1_read_images_as_they_are_stored():
    """They were trained on images that were not turned, and with the colours under transparency."""
    fields = Recipe().to_dict()
    assert not recipe_of({"recipe": fields, "num_classes": 2}, "new.pt")[0].as_stored
    del fields["as_stored"]
    assert recipe_of({"recipe": fields, "num_classes": 2}, "old.pt")[0].as_stored


@pytest.mark.parametrize(
    ("data", "shared", "found"),
    [
        ("digits", "digits", True),
        ("hfds/owner/name", "hfds/owner/name", True),
        ("/home/ann/photos/", "photos", False),
        ("C:\\Users\\ann\\photos", "photos", False),
        ("../labels.csv", "labels.csv", False),
    ],
)
def test_a_recipe_for_other_machines_has_names_without_their_paths(data, shared, found):
    recipe = Recipe(data=data, data_dir="/home/ann", initial="/home/ann/runs/best.pt").shared()
    assert (recipe.data, recipe.has_data, recipe.data_dir, recipe.initial) == (shared, found, None, "best.pt")
    paths = dict.fromkeys(("train_annotations", "train_images", "weights"), "/home/ann/x.json")
    text = str(DetectionRecipe(data=data, **paths).shared().to_dict())
    assert "ann/" not in text
    assert "'weights': 'x.json'" in text
