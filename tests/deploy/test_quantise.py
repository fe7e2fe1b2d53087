"""Quantised files: what stays in floating point, how close they are, and what cannot be quantised."""

import json
from pathlib import Path

import pytest
import torch

from conftest import sanet_here
from shuffle_attention import deploy
from shuffle_attention.deploy.quantise import gate_nodes

SHUFFLE = {
    "conv": ("Conv", [""]),
    "norm": ("InstanceNormalization", ["conv"]),
    "mean": ("ReduceMean", ["conv"]),
    "scaled": ("Mul", ["mean"]),
    "both": ("Add", ["norm", "scaled"]),
    "gate": ("Sigmoid", ["both"]),
    "product": ("Mul", ["conv", "gate"]),
    "next": ("Conv", ["product"]),
}
SQUEEZE = {
    "conv": ("Convolution", [""]),
    "pool": ("ReduceMean", ["conv"]),
    "reduce": ("Convolution", ["pool"]),
    "relu": ("Relu", ["reduce"]),
    "expand": ("Convolution", ["relu"]),
    "gate": ("Sigmoid", ["expand"]),
    "product": ("Multiply", ["conv", "gate"]),
}
SILU = {"conv": ("Conv", [""]), "gate": ("Sigmoid", ["conv"]), "product": ("Mul", ["conv", "gate"])}
PROBABILITY = {"conv": ("Conv", [""]), "pool": ("GlobalAveragePool", ["conv"]), "p": ("Sigmoid", ["pool"])}


@pytest.mark.parametrize(
    ("graph", "kept"),
    [
        (SHUFFLE, {"norm", "mean", "scaled", "both", "gate", "product"}),
        (SQUEEZE, {"pool", "reduce", "relu", "expand", "gate", "product"}),
        (SILU, set()),
        ({**SQUEEZE, "next": ("Conv", ["product"]), "s": ("Sigmoid", ["next"]), "m": ("Mul", ["next", "s"])}, None),
        (PROBABILITY, set()),
    ],
)
def test_gates_are_what_a_map_is_multiplied_by_and_depends_on_its_statistics_alone(graph, kept):
    assert gate_nodes(graph) == (gate_nodes(SQUEEZE) if kept is None else kept)


@pytest.fixture
def onnx() -> object:
    """The module onnx, where its extra is installed."""
    for module in ("onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason="the extra onnx is not installed")
    return pytest.importorskip("onnx", reason="the extra onnx is not installed")


def test_a_quantised_file_has_its_certificate_beside_it_and_gates_in_float(run, shared_tree, onnx, tmp_path, capsys):
    path = tmp_path / "digits[8].onnx"
    options = "--int8", "--calibrate", shared_tree, "--data", shared_tree, "--output", path, "--max-loss", 5
    assert sanet_here("export", run / "best.pt", *options) == 0
    assert "int8 beside float: size 0." in capsys.readouterr().out
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, f"{path.name}.certificate.json"]
    certificate = json.loads((tmp_path / f"{path.name}.certificate.json").read_text())
    assert certificate["passed"]
    assert certificate["precision"] == "int8"
    assert certificate["file"] == str(path)
    assert certificate["images"] == 32
    assert certificate["details"]["beside_float"]["size"] < 1  # few weights
    graph = onnx.load(path).graph
    producers = {output: node.op_type for node in graph.node for output in node.output}
    consumed = {(producers.get(name), node.op_type) for node in graph.node for name in node.input}
    assert ("QuantizeLinear", "DequantizeLinear") in consumed
    assert not {each for each in consumed if each[0] == "QuantizeLinear" and each[1] != "DequantizeLinear"}
    assert ("Sigmoid", "Mul") in consumed
    assert not {("DequantizeLinear", "Sigmoid"), ("Sigmoid", "QuantizeLinear"), ("Mul", "QuantizeLinear")} & consumed
    # Its own bounds apply to it later, too.
    assert sanet_here("verify", path, run / "best.pt", "--data", shared_tree, "--max-loss", 5) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--int8", "--output", "x.onnx"], "--int8 and --calibrate DIR"),
        (["--calibrate", "digits", "--output", "x.onnx"], "--int8 and --calibrate DIR"),
        (["--int8", "--calibrate", "digits", "--output", "x.pt2"], "files of the format torch cannot be quantised"),
        (["--int8", "--calibrate", "nowhere", "--output", "x.onnx"], "no file or folder nowhere"),
        (["--max-loss", "1", "--output", "x.onnx"], "give --int8 or --drop-constant-gates"),
    ],
)
def test_what_cannot_be_quantised_is_refused_before_anything_is_written(
    arguments, message, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert sanet_here("export", run / "best.pt", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_loses_too_much_is_not_left_behind(run, shared_tree, tmp_path, monkeypatch, capsys):
    """The written file always answers class 0; what export and quantise do is tested elsewhere."""

    class Zero(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(x[:, 0, 0, 0].long() * 0, 4).float()

    def write(model: object, path: Path, *, metadata: dict, **_: object) -> None:
        path.write_text("float")
        written[str(path)] = metadata

    written: dict[str, dict] = {}
    monkeypatch.setattr(deploy, "export", write)
    monkeypatch.setattr(deploy, "quantise", lambda _, images, path: write(None, path, metadata={"precision": "int8"}))
    monkeypatch.setattr(deploy, "load", lambda path: deploy.Artefact(path, Zero(), metadata=written[str(path)]))
    options = "--int8", "--calibrate", shared_tree, "--data", shared_tree
    assert sanet_here("export", run / "best.pt", *options, "--output", tmp_path / "zero.onnx") == 2
    error = capsys.readouterr().err
    assert "zero.onnx was not written: it loses" in error
    assert "points of accuracy, and 0.5 is allowed" in error
    assert not list(tmp_path.iterdir())
