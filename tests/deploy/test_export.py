"""Export: files that their own runtimes run as PyTorch runs the model, and nothing left behind otherwise."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import shuffle_attention.models  # noqa: F401 - registers the models
from conftest import sanet_here
from networks import network, photographs
from shuffle_attention import ShuffleAttention, attach, deploy
from shuffle_attention.deploy import api
from shuffle_attention.errors import InputError
from shuffle_attention.kernels import has_kernels, use_reference

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def spread(model: nn.Module) -> nn.Module:
    """Return the model with attention whose gates differ from each other."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, ShuffleAttention):
            for parameter in module.parameters():
                nn.init.normal_(parameter)
    return model


def write_pickle(model: nn.Module, example: Tensor, path: Path, metadata: dict, dynamic_size: bool) -> None:
    torch.save(model, path)


def load_pickle(path: Path) -> deploy.Artefact:
    return deploy.Artefact(path, torch.load(path, weights_only=False))


@pytest.fixture
def toy(monkeypatch) -> deploy.Format:
    """Register a format from outside the package: the pickled model."""
    monkeypatch.setattr(api, "_formats", {})
    toy = deploy.Format("toy", ".toy", write_pickle, load_pickle)
    deploy.register_format(toy)
    return toy


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_file_computes_what_the_model_computes_for_any_batch_size(suffix, tmp_path):
    if suffix == ".onnx":
        for module in ("onnxscript", "onnxruntime"):
            pytest.importorskip(module, reason="the extra onnx is not installed")
    model = spread(timm.create_model("sa_resnet18", num_classes=5)).train()
    path = tmp_path / f"model{suffix}"
    difference = deploy.export(model, path, example=IMAGES[:1], metadata={"classes": ["ä", "b"]})
    assert difference < 1e-5
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert all(module.training for module in model.modules())
    model.eval()
    file = deploy.load(path).eval()
    assert file.metadata["classes"] == ["ä", "b"]
    assert file.unaltered
    with pytest.raises(InputError, match=r"takes images of the shape \(any, 3, 32, 32\), got \(3, 3, 33, 32\)"):
        file(torch.zeros(3, 3, 33, 32))
    with torch.no_grad():
        for batch in (1, 3):
            torch.testing.assert_close(file(IMAGES[:batch]), model(IMAGES[:batch]), rtol=1e-4, atol=1e-5)


def test_the_program_of_torch_export_loads_where_this_package_does_not_exist(tmp_path):
    model = network("plain").float()
    attach(model, groups=2, where="residual")
    deploy.export(spread(model), tmp_path / "model.pt2", example=photographs(32).float())
    code = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
assert program(torch.zeros(5, 3, 32, 32)).shape == (5, 5)
assert not any(name.startswith("shuffle_attention") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "model.pt2"], check=True)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_file_that_cannot_be_read_is_named(suffix, tmp_path):
    with pytest.raises(InputError, match="no file at"):
        deploy.load(tmp_path / f"missing{suffix}")
    (tmp_path / f"broken{suffix}").write_bytes(b"nothing")
    with pytest.raises(InputError, match=f"broken{suffix} cannot be read as a file of the format"):
        deploy.load(tmp_path / f"broken{suffix}")


@pytest.mark.parametrize("offset", [1.0, float("nan")])
def test_a_file_that_computes_something_else_is_not_left_behind(offset, toy, tmp_path, monkeypatch):
    def load_other(path: Path) -> deploy.Artefact:
        model = load_pickle(path)
        return deploy.Artefact(path, lambda images: model(images) + offset)

    (tmp_path / "model.toy").write_text("kept")
    monkeypatch.setitem(api._formats, "toy", dataclasses.replace(toy, load=load_other))
    with pytest.raises(InputError, match="differs from PyTorch's"):
        deploy.export(timm.create_model("sa_resnet18"), tmp_path / "model.toy", example=IMAGES)
    assert [each.name for each in tmp_path.iterdir()] == ["model.toy"]
    assert (tmp_path / "model.toy").read_text() == "kept"


def test_the_command_writes_a_format_from_outside_the_package(run, toy, tmp_path, capsys):
    assert sanet_here("export", run / "best.pt", "--format", "toy", "--output", tmp_path / "digits.toy") == 0
    assert "differ from PyTorch's by at most" in capsys.readouterr().out
    assert load_pickle(tmp_path / "digits.toy")(IMAGES).shape == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "model.exe"], "no format has files like model.exe; their endings are .onnx, .pt2"),
        (["--output", "model.onnx", "--format", "onyx"], "no format 'onyx'; did you mean onnx"),
        (["--output", "model.pt2", "--format", "onnx"], "files of the format onnx end in .onnx, got model.pt2"),
        (["--output", "nowhere/model.pt2"], "cannot write nowhere/model.pt2"),
    ],
)
def test_the_command_names_what_would_work(run, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sanet_here("export", run / "best.pt", *arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_missing_runtime_is_named_with_what_installs_it(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(api._formats, "toy", dataclasses.replace(toy, modules=("no_such_module",), extra="onnx"))
    with pytest.raises(InputError, match=r"no_such_module is not installed: pip install 'shuffle-attention\[onnx\]'"):
        deploy.export(nn.Identity(), tmp_path / "model.toy", example=IMAGES)


def test_a_name_is_registered_once(toy):
    with pytest.raises(InputError, match="a format 'toy' already"):
        deploy.register_format(toy)


def test_a_model_of_several_outputs_is_refused(tmp_path):
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(InputError, match="one tensor can be exported, got tuple"):
        deploy.export(Pair(), tmp_path / "model.pt2", example=IMAGES)


def test_with_the_reference_in_use_there_are_no_kernels():
    before = has_kernels(IMAGES)
    with use_reference():
        assert not has_kernels(IMAGES)
    assert has_kernels(IMAGES) == before
