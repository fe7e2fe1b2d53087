"""The recipe that is chosen for images where none is named."""

from itertools import product

import pytest
import yaml
from PIL import Image

from conftest import sanet_here
from shuffle_attention.sanet.tasks.classification import choice
from shuffle_attention.sanet.tasks.classification.choice import choose_recipe, why_not_pretrained


def chosen(monkeypatch, count, side, why_not="", **given):
    monkeypatch.setattr(choice, "_open", lambda given: (range(count), {}))
    monkeypatch.setattr(choice, "_side", lambda training: side)
    monkeypatch.setattr(choice, "why_not_pretrained", lambda model: why_not)
    return choose_recipe({"data": "photos", **given})


@pytest.mark.parametrize(
    ("count", "side", "why_not", "line", "batch_size", "lr"),
    [
        (9469, 72, "", "recipe finetune, sa_resnet18 at 64 pixels, 10 epochs.", 64, 0.01),
        (9469, 375, "no hub", "recipe photos, sa_resnet18 at 224 pixels, 20 epochs, from scratch (no hub).", 64, 0.05),
        (300, 150, "", "recipe finetune, sa_resnet18 at 160 pixels, 40 epochs.", 16, 0.0025),
        (300, 56, "no hub", "recipe photos, sa_resnet18 at 64 pixels, 100 epochs, from scratch (no hub).", 16, 0.0125),
        (50_000, 32, "", "recipe small, sa_resnet18 at 32 pixels, 20 epochs.", 64, 0.05),
        (1_281_167, 400, "", "recipe finetune, sa_resnet50 at 224 pixels, 10 epochs.", 64, 0.01),
        (1, 1, "", "1 training image of about 1 pixel: recipe small", 1, 0.05 / 64),
        (20, 20, "", "20 training images of about 20 pixels: recipe small", 8, 0.05 / 8),
    ],
)
def test_a_recipe_fits_the_size_and_number_of_the_images(monkeypatch, count, side, why_not, line, batch_size, lr):
    recipe, said = chosen(monkeypatch, count, side, why_not)
    assert line in said
    assert (recipe.batch_size, recipe.lr, recipe.data) == (batch_size, pytest.approx(lr), "photos")
    assert recipe.small_stem == (side <= 48)
    assert recipe.model_args == ({"pretrained": True} if "finetune" in said else {})


def test_what_is_given_is_kept(monkeypatch):
    recipe, said = chosen(monkeypatch, 300, 32, model="resnet10t", epochs=3, batch_size=32, lr=1.0)
    assert (recipe.model, recipe.epochs, recipe.batch_size, recipe.lr) == ("resnet10t", 3, 32, 1.0)
    assert (recipe.small_stem, recipe.img_size) == (False, 64)
    assert "resnet10t at 64 pixels, 3 epochs" in said
    for name, start in (("finetune", {"initial": "a.pt"}), ("photos", {"model_args": {"groups": 8}})):
        recipe, said = chosen(monkeypatch, 300, 100, **start)
        assert f"recipe {name}, sa_resnet18 at 96 pixels" in said
        assert "from scratch" not in said
        assert not recipe.model_args.get("pretrained")


def test_without_the_hub_it_trains_from_scratch_and_says_so(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(choice.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert why_not_pretrained("resnet10t") == "http://127.0.0.1:9 cannot be reached for pretrained weights"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert why_not_pretrained("resnet18_no_such").startswith("no pretrained weights: ")


def test_train_needs_no_recipe(shared_tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(choice, "why_not_pretrained", lambda model: "no hub")
    quick = "--model resnet10t --epochs 1 --img-size 32 --workers 0 --device cpu --no-report".split()
    assert sanet_here("train", "--data", shared_tree, *quick, "--output", tmp_path / "run") == 0
    output = capsys.readouterr()
    line = (
        "64 training images of about 32 pixels: recipe photos, resnet10t at 32 pixels, 1 epoch, from scratch (no hub)"
    )
    assert output.out.startswith(line)
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (settings["scale"], settings["batch_size"], settings["data"]) == ([0.35, 1.0], 8, str(shared_tree))


def test_images_that_cannot_be_opened_are_left_to_the_check(tmp_path, monkeypatch, capsys):
    for split, name in product(("train", "val"), "ab"):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (40, 90)).save(tmp_path / split / name / "1.png")
        (tmp_path / split / name / "2.png").write_bytes(b"no image")
    assert sanet_here("train", "--data", tmp_path, "--device", "cpu", "--output", tmp_path / "run") == 2
    output = capsys.readouterr()
    assert "4 training images of about 40 pixels: recipe small" in output.out
    assert "2 of 4 images cannot be read" in output.err
    assert not (tmp_path / "run").exists()
