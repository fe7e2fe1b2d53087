"""Folders for the Hugging Face Hub: timm and sanet load them, and both compute what the checkpoint computes."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import save_file

from conftest import sanet_here
from shuffle_attention.checkpoints import CheckpointError, read_checkpoint
from shuffle_attention.sanet.tasks import restore


@pytest.fixture(scope="module")
def packed(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "digits-model"
    assert sanet_here("pack", run, "--license", "mit", "--output", folder, "--intended-use", "Four digits.") == 0
    return folder


def test_timm_loads_the_folder_and_computes_the_same(run, packed):
    predictor = restore(run / "best.pt")
    recipe = predictor.recipe
    images = torch.randn(3, recipe.in_chans, recipe.img_size, recipe.img_size)
    loaded = timm.create_model(f"local-dir:{packed}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), predictor.model.eval()(images))
    seen = timm.data.resolve_model_data_config(loaded)
    assert seen["input_size"] == (recipe.in_chans, recipe.img_size, recipe.img_size)
    assert (list(seen["mean"]), list(seen["std"]), seen["crop_pct"]) == (recipe.mean, recipe.std, recipe.crop_pct)
    assert loaded.pretrained_cfg["label_names"] == predictor.names


def test_the_folder_is_evaluated_like_the_checkpoint(run, packed, tmp_path):
    data = restore(run / "best.pt").recipe.data
    for path in (run / "best.pt", packed):
        assert sanet_here("eval", path, "--data", data, "--json", tmp_path / f"{path.name}.json") == 0
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("best.pt", "digits-model"))
    assert all(first[name] == second[name] for name in ("top1", "loss", "images", "classes"))


def test_data_that_the_folder_only_names_have_to_be_given(packed, tmp_path, monkeypatch, capsys):
    config = json.loads((packed / "config.json").read_text())
    config["shuffle_attention"]["recipe"]["data"] = "photos"
    shutil.copytree(packed, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "photos").mkdir()  # may hold other images
    monkeypatch.chdir(tmp_path)
    assert sanet_here("eval", "model") == 2
    assert "does not say where photos is, which its model was trained on; name images by" in capsys.readouterr().err


def test_the_card_names_data_licence_metrics_machine_and_use(run, packed):
    card = ModelCard.load(packed / "README.md")
    assert card.data.license == "mit"
    summary = json.loads((run / "summary.json").read_text())
    (accuracy,) = card.data.eval_results
    assert accuracy.metric_value == pytest.approx(summary["best"]["val_top1"] / 100, abs=1e-5)
    for text in ("Four digits.", f"torch {summary['torch']}", "| epochs |", "digits"):
        assert text in card.content, text
    assert str(run.parent) not in card.content + (packed / "config.json").read_text()


def test_what_timm_cannot_create_is_refused_and_nothing_is_written(run, packed, tmp_path, capsys):
    assert sanet_here("pack", run, "--license", "mit", "--output", packed) == 2
    assert "exists; name a folder that does not" in capsys.readouterr().err
    content = read_checkpoint(run / "best.pt")
    for change, message in (
        ({"model": "resnet18", "small_stem": True}, "which timm cannot create"),
        ({"model": "resnet18", "attach": {"name": "shuffle"}}, "has attached attention"),
    ):
        model = timm.create_model("resnet18", num_classes=content["num_classes"], **content["recipe"]["model_args"])
        if "attach" in change:
            from shuffle_attention import attach

            attach(model, "shuffle")
        else:
            from shuffle_attention.models import small_input_stem

            small_input_stem(model)
        recipe = {**content["recipe"], "small_stem": False, **change}
        torch.save({**content, "recipe": recipe, "state_dict": model.state_dict(), "ema": None}, tmp_path / "other.pt")
        assert sanet_here("pack", tmp_path / "other.pt", "--license", "mit", "--output", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["other.pt"]


def test_a_folder_of_timm_alone_is_read(packed, tmp_path):
    """Only what timm writes is there: no recipe, and no record of this package."""
    config = json.loads((packed / "config.json").read_text())
    del config["shuffle_attention"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((packed / "model.safetensors").read_bytes())
    predictor, expected = restore(tmp_path), restore(packed)
    assert predictor.names == expected.names
    assert (predictor.recipe.img_size, predictor.recipe.mean) == (expected.recipe.img_size, expected.recipe.mean)
    images = torch.randn(2, predictor.recipe.in_chans, 32, 32)
    with torch.no_grad():
        assert torch.equal(predictor.model.eval()(images), expected.model.eval()(images))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"architectures": ["ResNetForImageClassification"]}', '{"architecture": 1}']
)
def test_a_configuration_of_something_else_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not describe a model of timm"):
        read_checkpoint(tmp_path)


def test_an_upload_creates_the_repository_and_sends_the_whole_folder(run, tmp_path, monkeypatch, capsys):
    sent = {}

    class Address(str):
        repo_id = "someone/digits"

    def create_repo(self, repository, **options):
        sent["created"] = (repository, options)
        return Address("https://hub.test/someone/digits")

    def upload_folder(self, *, repo_id, folder_path, **options):
        sent["uploaded"] = (repo_id, sorted(path.name for path in folder_path.iterdir()))

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    options = ["--license", "mit", "--push", "someone/digits", "--private", "--output"]
    assert sanet_here("pack", run, *options, tmp_path / "first") == 0
    assert "uploaded to https://hub.test/someone/digits" in capsys.readouterr().out
    assert sent["created"] == ("someone/digits", {"private": True, "exist_ok": True})
    assert sent["uploaded"] == ("someone/digits", ["README.md", "config.json", "model.safetensors"])

    def refuse(self, repository, **options):
        raise OSError("401 Client Error: Unauthorized")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    assert sanet_here("pack", run, *options, tmp_path / "second") == 2
    assert "was written, and not uploaded to someone/digits" in capsys.readouterr().err
    assert (tmp_path / "second/README.md").exists()


def test_torch_hub_creates_the_models():
    folder = str(Path(__file__).parents[2])
    created = torch.hub.load(folder, "sa_resnet18", source="local", num_classes=3)
    assert created(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    with pytest.raises(RuntimeError, match="Cannot find callable sa_resnet19 in hubconf"):
        torch.hub.load(folder, "sa_resnet19", source="local")
