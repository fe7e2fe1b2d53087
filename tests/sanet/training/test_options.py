"""Settings that change what a run trains, and how long: freezing, class weights, patience."""

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import CPU, sanet_here
from shuffle_attention.checkpoints import read_checkpoint
from shuffle_attention.errors import InputError
from shuffle_attention.sanet.recipes.recipe import Recipe
from shuffle_attention.sanet.tasks.classification.task import Classification
from shuffle_attention.sanet.training.loop import train


def settings(data: Path, **fields) -> Recipe:
    given = {
        "data": str(data),
        "img_size": 32,
        "batch_size": 16,
        "workers": 0,
        "epochs": 1,
        "device": "cpu",
        "lr": 0.05,
    }
    given |= {"model": "resnet10t", "model_args": {"channels": [8, 8, 16, 16]}, "report": False}
    return Recipe(**{**given, **fields})


def test_what_is_frozen_keeps_weights_and_statistics(shared_tree, tmp_path):
    frozen = settings(shared_tree, freeze=["conv1.*", "bn1.*", "layer1.0.bn1.weight"], weight_decay=0.1)
    train(frozen, tmp_path / "run", CPU, task=Classification)
    torch.manual_seed(frozen.seed)
    start = Classification.open(frozen, check=False).create_model(restored=False).state_dict()
    end = read_checkpoint(tmp_path / "run/last.pt")["state_dict"]
    kept = {name for name, value in start.items() if torch.equal(value, end[name])}
    assert {name for name in start if name.startswith(("conv1.", "bn1."))} | {"layer1.0.bn1.weight"} == kept


@pytest.mark.parametrize(
    ("patterns", "message"),
    [(["layr1.*"], "no parameter matches 'layr1.*'; there are conv1"), (["fc.*", "*"], "leaves nothing to train")],
)
def test_a_pattern_that_freezes_nothing_or_everything_is_refused(shared_tree, tmp_path, patterns, message):
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        train(settings(shared_tree, freeze=patterns), tmp_path / "run", CPU, task=Classification)
    assert not (tmp_path / "run").exists()


def test_balanced_classes_count_alike_in_the_loss(tree):
    for path in sorted((tree / "train/digit0").iterdir())[4:]:
        path.unlink()
    opened = Classification.open(settings(tree, class_weights="balanced", smoothing=0.1), check=False)
    criterion = opened.create_trainer(nn.Linear(2, 4), CPU).criterion
    counts = torch.tensor([4.0, 16, 16, 16])
    torch.testing.assert_close(criterion.weight, 52 / (4 * counts))
    assert criterion.label_smoothing == 0.1
    # Each class has the same share in the loss of all images.
    assert (criterion.weight * counts).unique().numel() == 1
    with pytest.raises(InputError, match="class_weights must be none with loss bce"):
        settings(tree, class_weights="balanced", loss="bce")


def test_a_run_stops_when_it_no_longer_improves_and_goes_on_with_more_patience(shared_tree, tmp_path, caplog, capsys):
    recipe = settings(shared_tree, epochs=9, lr=0.0, min_lr=0.0, freeze_bn=True, patience=2)
    with caplog.at_level("INFO"):
        state = train(recipe, tmp_path / "run", CPU, task=Classification)
    assert "stopped: epoch 1 is still the best after 2 more" in caplog.text
    assert state.files.summary.exists()
    for epochs, changed in ((3, {}), (5, {"patience": 4}), (7, {"patience": 0, "epochs": 7})):
        train(recipe.replaced(**changed), tmp_path / "run", CPU, task=Classification, resume=True)
        with open(tmp_path / "run/metrics.csv") as file:
            assert len(list(csv.DictReader(file))) == epochs
    compared = ["compare", "--recipe", "digits", "--attention", "none,se", "--patience", 2, "--output", tmp_path / "c"]
    assert sanet_here(*compared) == 2
    assert "leave out --patience" in capsys.readouterr().err
