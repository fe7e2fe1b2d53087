"""Quantised files: what stays in floating point, how close they are, and what cannot be quantised."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from conftest import DIGITS, sanet_here
from shuffle_attention import deploy
from shuffle_attention.checkpoints import write_checkpoint
from shuffle_attention.deploy.openvino import import_silently
from shuffle_attention.deploy.quantise import QUANTISERS, gate_nodes
from shuffle_attention.sanet.network import create_network
from shuffle_attention.sanet.recipes.recipe import Recipe

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


def onnx_edges(path: Path) -> set[tuple[str | None, str]]:
    """Return the pairs of operators of an ONNX file that follow each other."""
    import onnx

    graph = onnx.load(path).graph
    producers = {output: node.op_type for node in graph.node for output in node.output}
    return {(producers.get(name), node.op_type) for node in graph.node for name in node.input}


def openvino_edges(path: Path) -> set[tuple[str | None, str]]:
    """Return the pairs of operators of an OpenVINO file that follow each other."""
    nodes = import_silently("openvino").Core().read_model(path).get_ordered_ops()
    return {(value.get_node().get_type_name(), node.get_type_name()) for node in nodes for value in node.input_values()}


EDGES = {".onnx": onnx_edges, ".xml": openvino_edges}
QUANTISED = {  # pairs that exist
    ".onnx": {("QuantizeLinear", "DequantizeLinear"), ("Sigmoid", "Mul")},
    ".xml": {("FakeQuantize", "Convolution"), ("Sigmoid", "Multiply")},
}
IN_FLOAT = {  # pairs that do not
    ".onnx": {("DequantizeLinear", "Sigmoid"), ("Sigmoid", "QuantizeLinear"), ("Mul", "QuantizeLinear")},
    ".xml": {("FakeQuantize", name) for name in ("MVN", "Sigmoid", "Multiply")} | {("Sigmoid", "FakeQuantize")},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """The checkpoint of an untrained ResNet of four narrow blocks with attached attention."""
    args = {"channels": [8, 8, 16, 16], "zero_init_last": False}
    attached = {"name": "shuffle", "where": "residual", "groups": 2}
    recipe = Recipe(model="resnet10t", model_args=args, attach=attached, img_size=32, mean=[0.5] * 3, std=[0.5] * 3)
    torch.manual_seed(0)
    content = {"kind": "classifier", "recipe": recipe.to_dict(), "num_classes": 4, "classes": [*DIGITS]}
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    write_checkpoint({**content, "state_dict": create_network(recipe, 4).state_dict()}, path)
    return path


@pytest.mark.parametrize("suffix", EDGES)
def test_a_quantised_file_has_its_certificate_beside_it_and_gates_in_float(
    suffix, checkpoint, shared_tree, tmp_path, capfd
):
    for module in ("onnxscript", "onnxruntime") if suffix == ".onnx" else ("openvino", "nncf"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    path = tmp_path / f"digits[8]{suffix}"
    options = (
        "--int8",
        "--calibrate",
        shared_tree / "val/digit0",
        "--data",
        shared_tree,
        "--output",
        path,
        "--dynamic-size",
    )
    assert sanet_here("export", checkpoint, *options, "--max-loss", 50) == 0
    assert "int8 beside float: size 0." in capfd.readouterr().out
    parts = [path.name, f"{path.name}.certificate.json", *(["digits[8].bin"] if suffix == ".xml" else [])]
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(parts)
    certificate = json.loads((tmp_path / f"{path.name}.certificate.json").read_text())
    assert certificate["passed"]
    assert certificate["precision"] == "int8"
    assert certificate["file"] == str(path)
    assert certificate["images"] == 32
    assert certificate["details"]["beside_float"]["size"] < 1  # few weights
    assert deploy.load(path).shape == [None, 3, None, None]
    edges = EDGES[suffix](path)
    assert edges >= QUANTISED[suffix]
    assert not edges & IN_FLOAT[suffix]
    # Its own bounds apply to it later, too.
    assert sanet_here("verify", path, checkpoint, "--data", shared_tree, "--max-loss", 50) == 0


def test_openvino_and_nncf_report_nothing(tmp_path, monkeypatch):
    """They use their substitute for the package that reports, which others can still import."""
    for name in ("openvino_telemetry", "reporter"):
        (tmp_path / f"{name}.py").write_text("import openvino_telemetry" if name == "reporter" else "")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    with pytest.raises(ImportError, match="openvino_telemetry"):
        import_silently("reporter")
    assert "openvino_telemetry" not in sys.modules
    assert importlib.import_module("reporter")
    if importlib.util.find_spec("openvino") is not None:
        import_silently("openvino")
        assert importlib.import_module("openvino.tools.ovc.telemetry_utils").tm.__name__.endswith("telemetry_stub")


def test_a_missing_quantiser_is_named_with_what_installs_it(run, tmp_path, monkeypatch, capsys):
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    monkeypatch.setitem(QUANTISERS, "openvino", (QUANTISERS["openvino"][0], ("no_such_module",)))
    options = "--int8", "--calibrate", "digits", "--output", tmp_path / "x.xml"
    assert sanet_here("export", run / "best.pt", *options) == 2
    assert "no_such_module is not installed: pip install 'shuffle-attention[int8]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--int8", "--output", "x.onnx"], "--int8 and --calibrate DIR"),
        (["--calibrate", "digits", "--output", "x.onnx"], "--int8 and --calibrate DIR"),
        (["--int8", "--calibrate", "digits", "--output", "x.pt2"], "files of the format torch cannot be quantised"),
        (["--int8", "--calibrate", "nowhere", "--output", "x.onnx"], "no file or folder nowhere"),
        (
            ["--drop-constant-gates", "1", "--tolerance", "1", "--output", "x.pth"],
            "for exported files, not for a check",
        ),
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

    def write(model: object, path: Path, *, metadata: dict, **options: object) -> None:
        path.write_text("float")
        written[str(path)] = metadata
        given.append(options)

    written: dict[str, dict] = {}
    given: list[dict] = []
    monkeypatch.setattr(deploy, "export", write)
    monkeypatch.setattr(deploy, "quantise", lambda _, images, path: write(None, path, metadata={"precision": "int8"}))
    monkeypatch.setattr(deploy, "load", lambda path: deploy.Artefact(path, Zero(), metadata=written[str(path)]))
    options = "--int8", "--calibrate", shared_tree, "--data", shared_tree, "--images", 5, "--tolerance", 0.25
    assert sanet_here("export", run / "best.pt", *options, "--output", tmp_path / "zero.onnx") == 2
    assert given[0]["tolerance"] == 0.25
    assert len(given[0]["example"]) == 5
    error = capsys.readouterr().err
    assert "zero.onnx was not written: it loses" in error
    assert "points of accuracy, and 0.5 is allowed" in error
    assert not list(tmp_path.iterdir())
