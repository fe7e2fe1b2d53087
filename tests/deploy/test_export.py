"""Export: files that their own runtimes run as PyTorch runs the model, and nothing left behind otherwise."""

import dataclasses
import importlib.util
import io
import json
import math
import os
import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import shuffle_attention.models  # noqa: F401 - registers the models
from conftest import sanet_here
from networks import network, photographs
from shuffle_attention import ShuffleAttention, attach, deploy
from shuffle_attention.deploy import api
from shuffle_attention.deploy.rewrite import NOT_REWRITTEN
from shuffle_attention.errors import InputError
from shuffle_attention.kernels import has_kernels, use_reference
from shuffle_attention.models.sa_resnet import SABasicBlock, SAResNet

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def spread(model: nn.Module) -> nn.Module:
    """Return the model with attention whose gates differ from each other."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, ShuffleAttention):
            for parameter in module.parameters():
                nn.init.normal_(parameter)
    return model


def small_model() -> nn.Module:
    """Return an SA-ResNet of four narrow blocks."""
    layers, channels = (1, 1, 1, 1), (16, 16, 16, 32)
    return spread(SAResNet(SABasicBlock, layers, num_classes=5, channels=channels, block_args={"groups": 4})).eval()


def write_pickle(model: nn.Module, example: Tensor, path: Path, metadata: dict, dynamic_size: bool) -> None:
    torch.save(model, path)
    path.with_suffix(".json").write_text(json.dumps(metadata))


def load_pickle(path: Path) -> deploy.Artefact:
    return deploy.Artefact(path, torch.load(path, weights_only=False))


@pytest.fixture
def toy(monkeypatch) -> deploy.Format:
    """Register a format from outside the package: the pickled model."""
    monkeypatch.setattr(api, "_formats", {})
    toy = deploy.Format("toy", ".toy", write_pickle, load_pickle)
    deploy.register_format(toy)
    return toy


FORMATS = {
    ".onnx": ("onnxscript", "onnxruntime"),
    ".pt2": (),
    ".torchscript": (),
    ".xml": ("openvino",),
    ".pte": ("executorch",),
}


def need_modules(suffix: str) -> None:
    for module in FORMATS[suffix]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_computes_what_the_model_computes_for_any_batch_size_and_size(suffix, tmp_path):
    need_modules(suffix)
    model, path = small_model().train(), tmp_path / f"model{suffix}"
    if suffix == ".pte":  # its converter takes a second for each block
        attention = spread(ShuffleAttention(16, groups=4))
        model = nn.Sequential(nn.Conv2d(3, 16, 3), attention, nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    metadata = {"classes": ["ä", "b"], "recipe": {"mean": [0.5]}, "input": [3, None, None]}
    example = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    free = suffix != ".pte"
    comparison = deploy.export(model, path, example=example, metadata=metadata, dynamic_size=free)
    assert comparison is not None
    assert comparison.difference < 1e-5
    assert (comparison.images, comparison.changed) == (9 if free else 3, 0)  # with those of other sizes
    parts = {path.name, "model.bin"} if suffix == ".xml" else {path.name}
    assert {each.name for each in tmp_path.iterdir()} == parts
    assert all(module.training for module in model.modules())
    model.eval()
    file = deploy.load(path)
    assert file.metadata["classes"] == ["ä", "b"]
    assert file.unaltered in (True, None)
    sides = "any, any" if free else "64, 64"
    with pytest.raises(InputError, match=rf"takes images of the shape \(any, 3, {sides}\), got \(3, 1, 64, 64\)"):
        file(torch.zeros(3, 1, 64, 64))
    with torch.no_grad():
        for images in (example[:1], example.repeat(4, 1, 1, 1), *([example[:2, :, :61, 1:]] if free else [])):
            torch.testing.assert_close(file(images), model(images), rtol=1e-4, atol=1e-5)
    cut = path.read_bytes()
    path.write_bytes(cut[: len(cut) // 2])
    with pytest.raises(InputError, match=f"model{suffix} cannot be read as a file of the format"):
        deploy.load(path)


def test_in_inference_mode_the_model_is_rewritten_all_the_same(tmp_path, caplog):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    model = small_model()
    with torch.inference_mode():
        deploy.export(model, tmp_path / "model.onnx", example=torch.randn(2, 3, 32, 32))
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert not {*operators} & {"Transpose", "BatchNormalization"}
    assert len(operators) == len(operators_of(model))  # each becomes a node
    assert not [record for record in caplog.records if record.name.startswith("shuffle_attention")]


def operators_of(model: nn.Module) -> list[str]:
    """Return the operators of a rewritten model that are left when constants are folded, as exporters do."""
    images = torch.randn(2, 3, 32, 32)
    rewritten, report = deploy.rewrite(model.eval(), example=images)
    assert not report.kept
    with use_reference(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation
        traced = torch.jit.trace(nn.Sequential(rewritten).eval(), (images,), check_trace=False)
        names = [node.kind() for node in torch.jit.freeze(traced, optimize_numerics=False).graph.nodes()]
    # Conversions to the type that the map already has become nothing.
    return [name.removeprefix("aten::") for name in names if name.startswith("aten::") and name != "aten::to"]


def attached() -> nn.Module:
    """Return torchvision's ResNet of four blocks with attention."""
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)
    attach(model, where="residual")
    return model


def sibling(attention: str, depth: int = 18) -> nn.Module:
    """Return a narrow ResNet with an attention."""
    width = 16 if depth == 18 else 32
    channels = [width, width, 2 * width, 2 * width]
    return timm.create_model(f"attention_resnet{depth}", attention=attention, num_classes=5, channels=channels)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: sibling("shuffle"), 98),
        (lambda: sibling("shuffle", 101), 439),
        (attached, 57),
        (lambda: sibling("se"), 98),
        (lambda: sibling("cbam"), 186),
        (lambda: sibling("eca"), 114),  # its convolution over channels takes two views
    ],
    ids=["resnet18", "resnet101", "torchvision", "se", "cbam", "eca"],
)
def test_few_operators_are_left_of_a_model_and_none_that_moves_a_map(build, count):
    """The bound for SA-ResNet-50, 250 nodes, follows from 98 of 8 blocks and 439 of 33."""
    operators = operators_of(build())
    assert len(operators) <= count
    moving = {"permute", "transpose", "reshape", "view", "unflatten", "chunk", "stack"}
    assert {*operators} & moving == ({"view"} if count == 114 else set())


def test_a_model_that_is_not_rewritten_is_named(tmp_path, caplog, monkeypatch):
    def kept(model: nn.Module, **_):
        return model, deploy.RewriteReport(kept={"": f"{NOT_REWRITTEN} (it is too odd)"})

    monkeypatch.setattr(api, "rewrite", kept)
    deploy.export(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), tmp_path / "model.pt2", example=IMAGES)
    assert "model.pt2 is exported as it is: it could not be rewritten (it is too odd)" in caplog.text


def test_a_file_of_fixed_size_names_its_size(tmp_path):
    deploy.export(small_model(), tmp_path / "model.torchscript", example=IMAGES[:1])
    file = deploy.load(tmp_path / "model.torchscript")
    with pytest.raises(InputError, match=r"takes images of the shape \(any, 3, 32, 32\), got \(3, 3, 33, 32\)"):
        file(torch.zeros(3, 3, 33, 32))


def test_weights_of_another_openvino_file_are_noticed(tmp_path):
    need_modules(".xml")
    for name in ("a", "b"):
        deploy.export(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), tmp_path / f"{name}.xml", example=IMAGES)
    (tmp_path / "a.bin").replace(tmp_path / "b.bin")
    with pytest.raises(InputError, match=r"b\.bin, are not those that it was written with"):
        deploy.load(tmp_path / "b.xml")
    with pytest.raises(InputError, match=r"its weights, a\.bin, are missing beside it"):
        deploy.load(tmp_path / "a.xml")


def test_core_ml_is_written_where_it_cannot_be_run(tmp_path):
    pytest.importorskip("coremltools")
    for _ in range(2):  # the second one replaces the first one, which is a folder
        assert (
            deploy.export(nn.Conv2d(3, 2, 1), tmp_path / "model.mlpackage", example=IMAGES, dynamic_size=True) is None
        )
    assert [each.name for each in tmp_path.iterdir()] == ["model.mlpackage"]
    with pytest.raises(InputError, match="only a Mac can run it"):
        deploy.load(tmp_path / "model.mlpackage")


def test_a_program_that_holds_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.shift

    path, changed = tmp_path / "model.pt2", tmp_path / "changed.pt2"
    deploy.export(Shift(), path, example=IMAGES)
    buffer = io.BytesIO()
    torch.save(Harmful(), buffer)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            sample = "sample_inputs" in name and name.endswith(".pt")
            target.writestr(name, buffer.getvalue() if sample else source.read(name))
    with pytest.raises(InputError, match=r"changed\.pt2 cannot be read as a file of the format torch"):
        deploy.load(changed)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_fixes_its_size_is_not_written_with_a_free_one(tmp_path):
    fixed = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(1800, 2))
    with pytest.raises(
        InputError, match=r"runs on images of 32 x 32 pixels and not of 41 x 49, so it cannot have a free"
    ):
        deploy.export(fixed, tmp_path / "model.pt2", example=IMAGES, dynamic_size=True)

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) * math.sqrt(int(x.shape[3]))  # a constant in a trace

    with pytest.raises(InputError, match="was not written: its output differs from PyTorch's"):
        deploy.export(Constant(), tmp_path / "model.torchscript", example=IMAGES, dynamic_size=True)
    assert not list(tmp_path.iterdir())


def test_the_files_of_pytorch_load_where_this_package_does_not_exist(tmp_path):
    model = network("plain").float()
    attach(model, groups=2, where="residual")
    for name in ("model.pt2", "model.torchscript"):
        deploy.export(spread(model), tmp_path / name, example=photographs(32).float())
    code = """
import sys, torch
for model in (torch.export.load("model.pt2").module(), torch.jit.load("model.torchscript")):
    assert model(torch.zeros(5, 3, 32, 32)).shape == (5, 5)
assert not any(name.startswith("shuffle_attention") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_file_that_cannot_be_read_is_named(suffix, tmp_path):
    with pytest.raises(InputError, match="no file at"):
        deploy.load(tmp_path / f"missing{suffix}")
    pointer = tmp_path / f"pointer{suffix}"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InputError, match="is a Git LFS pointer, not the file it points to; git lfs pull fetches"):
        deploy.load(pointer)
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
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"On [0-9]+ images \(from .*\) its outputs differ from PyTorch's by at most .* and 0 answers changed", said
    )
    assert load_pickle(tmp_path / "digits.toy")(IMAGES).shape == (3, 4)
    metadata = json.loads((tmp_path / "digits.json").read_text())
    assert metadata["recipe"]["data"] == "data"
    assert str(run.parents[1]) not in str(metadata)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--output", "model.exe"],
            "no format has files like model.exe; their endings are .mlpackage, .onnx, .pt2, .pte,",
        ),
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
    monkeypatch.setitem(api._formats, "toy", dataclasses.replace(toy, runtime=("no_such_module",), extra="onnx"))
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


def test_the_end_of_a_long_reason_is_shown(toy, tmp_path, monkeypatch):
    def load_other(path: Path) -> deploy.Artefact:
        raise RuntimeError("model.cc:245\n" + "long " * 200 + "opset 99 is not known")

    monkeypatch.setitem(api._formats, "toy", dataclasses.replace(toy, load=load_other))
    (tmp_path / "model.toy").write_text("")
    with pytest.raises(InputError, match=r"format toy: model\.cc:245 long .* \.\.\. .*opset 99 is not known$"):
        deploy.load(tmp_path / "model.toy")
