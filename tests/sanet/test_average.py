"""Averaged checkpoints: equal to timm's to the bit, of one model only, and usable as any checkpoint."""

from functools import reduce
from operator import add
from pathlib import Path

import pytest
import torch

from brightness import Brightness, BrightnessRecipe
from conftest import CPU, sanet_here
from shuffle_attention.checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from shuffle_attention.checkpoints.averaging import average_checkpoints
from shuffle_attention.sanet.tasks.classification.predictor import restore_network
from shuffle_attention.sanet.training.loop import train


@pytest.fixture(scope="module")
def kept(run, tmp_path_factory) -> Path:
    """A folder with the weights of three epochs, and averaged weights, of the model of a run."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    folder.mkdir()
    content = read_checkpoint(run / "last.pt")
    for epoch in (9, 10, 11):
        torch.manual_seed(epoch)
        for name in ("state_dict", "state_dict_ema"):
            noise = {key: torch.rand(value.shape) for key, value in content["state_dict"].items()}
            content[name] = {key: (value * noise[key]).to(value.dtype) for key, value in content["state_dict"].items()}
        write_checkpoint(content, folder / f"epoch-{epoch}.pt")
    return folder


def test_a_run_keeps_the_weights_of_its_last_epochs(tmp_path):
    settings = {"batch_size": 8, "workers": 0, "device": "cpu", "report": False, "keep_epochs": 3}
    recipe, folder = BrightnessRecipe(**settings, epochs=3), tmp_path / "run"
    train(recipe, folder, CPU, task=Brightness)
    assert sorted(path.name for path in folder.glob("epoch-*")) == ["epoch-1.pt", "epoch-2.pt", "epoch-3.pt"]
    (folder / "epoch-9.pt").write_bytes(b"of a continuation that was given up")
    train(recipe.replaced(epochs=4), folder, CPU, task=Brightness, resume=True)
    assert sorted(path.name for path in folder.glob("epoch-*")) == ["epoch-2.pt", "epoch-3.pt", "epoch-4.pt"]
    last, kept = read_checkpoint(folder / "last.pt"), read_checkpoint(folder / "epoch-4.pt")
    assert all(torch.equal(value, kept["state_dict"][key]) for key, value in last["state_dict"].items())


@pytest.mark.parametrize(("flag", "name"), [((), "state_dict_ema"), (("--no-ema",), "state_dict")])
def test_the_mean_is_timms_to_the_bit(kept, tmp_path, flag, name):
    assert sanet_here("average", kept, "--output", tmp_path / "mean.pt", *flag) == 0
    mean = read_checkpoint(tmp_path / "mean.pt")
    parts = [read_checkpoint(kept / f"epoch-{epoch}.pt")[name] for epoch in (9, 10, 11)]
    assert mean["state_dict"].keys() == parts[0].keys()
    for key, value in mean["state_dict"].items():
        # timm sums in float64, in the order of the files, and stores float32.
        expected = (reduce(add, [part[key].double() for part in parts]) / 3).float()
        assert value.dtype == parts[0][key].dtype
        assert torch.equal(value, expected.to(value.dtype)), key
    assert mean["averaged"] == ["epoch-9.pt", "epoch-10.pt", "epoch-11.pt"]
    assert not {"optimizer", "processes", "history", "state_dict_ema"} & mean.keys()


def test_the_mean_is_evaluated_explained_and_exported_like_any_checkpoint(kept, tmp_path, shared_tree, capsys):
    path = tmp_path / "mean.pt"
    assert sanet_here("average", *sorted(kept.glob("epoch-*.pt")), "--output", path) == 0
    restored = restore_network(path)
    assert restored.classes == ["digit0", "digit1", "digit2", "digit3"]
    assert sanet_here("eval", path, "--batch-size", 32) == 0
    assert sanet_here("predict", path, next(shared_tree.glob("val/*/*.png"))) == 0
    assert sanet_here("export", path, "--output", tmp_path / "mean.torchscript", "--format", "torchscript") == 0
    assert "mean" in capsys.readouterr().out


def test_other_models_and_unusable_files_are_refused_by_name(kept, tmp_path, caplog):
    first = read_checkpoint(kept / "epoch-9.pt")
    weights = first["state_dict_ema"]
    cases = {
        "classes": ({"classes": ["a", "b", "c", "d"]}, "other.pt is not of the model of .*classes .'a', 'b'"),
        "mean": ({"recipe": first["recipe"] | {"mean": [0.1] * 3}}, "mean .0.1, 0.1, 0.1. for"),
        "shape": ({"state_dict_ema": weights | {"fc.bias": torch.zeros(5)}}, r"1 wrongly shaped: fc.bias \(5,\)"),
        "names": ({"state_dict_ema": weights | {"sa.cweight": torch.zeros(5)}}, "1 unexpected: sa.cweight"),
        "values": ({"state_dict_ema": weights | {"fc.bias": torch.full((4,), torch.nan)}}, "other.pt has NaN"),
        "kind": ({"state_dict_ema": weights | {"fc.bias": torch.zeros(4, dtype=torch.int64)}}, "of another kind: fc.b"),
    }
    for changed, message in cases.values():
        write_checkpoint(first | changed, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=message):
            average_checkpoints([kept / "epoch-9.pt", tmp_path / "other.pt"])
    write_checkpoint({name: value for name, value in first.items() if name != "state_dict_ema"}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="weights under 'state_dict', and .* under 'state_dict_ema'"):
        average_checkpoints([kept / "epoch-9.pt", tmp_path / "other.pt"])
    for paths in ([kept / "epoch-9.pt"], [kept / "epoch-9.pt", kept / "../run/epoch-9.pt"]):
        with pytest.raises(CheckpointError, match="two or more different checkpoints"):
            average_checkpoints(paths)
    write_checkpoint(first | {"recipe": first["recipe"] | {"seed": 1}}, tmp_path / "other.pt")
    average_checkpoints([kept / "epoch-9.pt", tmp_path / "other.pt"])
    assert "are of separate trainings (they differ in seed)" in caplog.text


def test_the_command_never_writes_over_what_it_reads(kept, tmp_path, capsys):
    assert sanet_here("average", kept, "--output", kept / "epoch-10.pt") == 2
    assert "is one of the checkpoints to average" in capsys.readouterr().err
    assert sanet_here("average", tmp_path, "--output", tmp_path / "mean.pt") == 2
    assert "--keep-epochs N keeps" in capsys.readouterr().err
