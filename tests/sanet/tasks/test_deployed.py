"""Deployed files as classifiers: evaluated, inspected, shown and refused like checkpoints."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import CPU, sanet_here
from shuffle_attention import deploy
from shuffle_attention.deploy import api
from shuffle_attention.errors import InputError
from shuffle_attention.sanet import tasks
from shuffle_attention.sanet.demo.predictors import Request, open_networks
from shuffle_attention.sanet.tasks.classification.predictor import restore_network


@pytest.fixture
def deployed(run, tmp_path, monkeypatch) -> Path:
    """The model of a run in a format from outside the package, with the metadata that `sanet export` writes."""
    classifier = restore_network(run / "best.pt")
    model = classifier.model.eval()
    metadata = {
        "kind": "classifier",
        "recipe": classifier.recipe.to_dict(),
        "num_classes": classifier.num_classes,
        "classes": classifier.classes,
        "checkpoint": "best.pt",
        "checkpoint_sha256": "0123abcd",
        "version": "1.2.3",
    }

    def load(path: Path) -> deploy.Artefact:
        return deploy.Artefact(path, lambda images: model(images), (None, 3, 32, 32), json.loads(path.read_text()))

    monkeypatch.setattr(api, "_formats", {})
    deploy.register_format(deploy.Format("toy", ".toy", lambda *_: None, load))
    (tmp_path / "model.toy").write_text(json.dumps(metadata))
    return tmp_path / "model.toy"


def test_eval_and_predict_give_what_they_give_for_the_checkpoint(run, deployed, shared_tree, tmp_path):
    scores, rows = [], []
    for file in (run / "best.pt", deployed):
        metrics, output = tmp_path / "metrics.json", tmp_path / "rows.csv"
        assert sanet_here("eval", file, "--workers", 0, "--json", metrics) == 0
        assert sanet_here("predict", file, shared_tree / "val", "--output", output) == 0
        scores.append(json.loads(metrics.read_text()))
        rows.append(list(csv.DictReader(output.read_text().splitlines())))
    for name in ("top1", "top5", "images", "data", "img_size", "by_class"):
        assert scores[0][name] == scores[1][name]
    assert scores[1]["weights"] == "toy file"
    assert scores[1]["rewritten"] is None
    assert [row["predicted"] for row in rows[0]] == [row["predicted"] for row in rows[1]]
    shares = [[float(row["probability"]) for row in each] for each in rows]
    assert shares[0] == pytest.approx(shares[1], rel=1e-4)


def test_data_that_a_file_only_names_have_to_be_given(deployed, shared_tree, capsys, monkeypatch):
    metadata = json.loads(deployed.read_text())
    metadata["recipe"]["data"] = "data"
    deployed.write_text(json.dumps(metadata))
    monkeypatch.chdir(shared_tree.parent)  # a folder of this name may hold other images
    assert sanet_here("eval", deployed) == 2
    assert "does not say where data is, which its model was trained on; name images by" in capsys.readouterr().err
    assert open_networks([deployed], CPU)[0].examples() == []
    assert sanet_here("eval", deployed, "--data", "data", "--workers", 0) == 0


def test_options_that_do_not_apply_are_refused(deployed):
    cases = {
        "--ema": ({"ema": True}, "its weights were chosen"),
        "--no-ema": ({"ema": False}, "its weights were chosen"),
        "--device cuda": ({"device": "cuda"}, "its runtime uses the CPU"),
        "--img-size 64": ({"img_size": 64}, "it takes images of 32 x 32 pixels"),
        "--in-chans 1": ({"in_chans": 1}, "it takes images of 3 channels"),
        "--precision bf16": ({"precision": "bf16"}, "its precision was chosen"),
        "--channels-last": ({"channels_last": True}, "its memory format was chosen"),
        "--model resnet18": ({"model": "resnet18"}, "it holds its model"),
    }
    for option, (settings, reason) in cases.items():
        ema = settings.pop("ema", None)
        with pytest.raises(InputError, match=f"{option} does not apply to .*, which is a deployed file: {reason}"):
            restore_network(deployed, ema=ema, settings=settings)
    same = {"device": "auto", "img_size": 32, "in_chans": 3, "precision": "fp32", "channels_last": False}
    classifier = restore_network(deployed, settings={**same, "workers": 7})
    assert (classifier.recipe.device, classifier.recipe.workers) == ("cpu", 7)
    with pytest.raises(InputError, match="is a deployed file, which returns no features"), classifier.features():
        pass


def test_files_with_wrong_metadata_are_refused(deployed):
    metadata = json.loads(deployed.read_text())
    for text in ("nothing", "[1]", "[" * 100_000):
        deployed.write_text(text)
        with pytest.raises(InputError, match=r"model\.toy cannot be read .*: its metadata are damaged"):
            restore_network(deployed)
    for change, message in (
        ({"num_classes": 5}, "says that it has 5 classes, and returns 4 logits"),
        ({"classes": ["a"] * 9}, "has 4 classes and names them"),
        ({"kind": "detector"}, "holds a detector, not .*; sanet detect eval, .* and sanet detect export take it"),
        ({"recipe": None}, "has a damaged recipe or number of classes"),
        ({"num_classes": "4"}, "has a damaged recipe or number of classes"),
        ({"recipe": {"lr": "high"}}, "holds a recipe that cannot be used"),
        ({"recipe": {"mean": None}}, "does not say how images are prepared for it; give --mean and --std"),
    ):
        deployed.write_text(json.dumps({**metadata, **change}))
        with pytest.raises(InputError, match=message):
            restore_network(deployed)


def test_what_needs_layers_is_refused(deployed, shared_tree, tmp_path, capsys):
    assert sanet_here("explain", shared_tree / "val/digit0", "--checkpoint", deployed, "--output", tmp_path / "x") == 2
    assert "without gradients and layers to look into" in capsys.readouterr().err
    with pytest.raises(InputError, match="is a deployed file already"):
        deploy.export(deploy.load(deployed), tmp_path / "x.toy", example=torch.zeros(2, 3, 32, 32))


def test_inspect_says_what_a_file_says_of_itself(deployed, capsys):
    assert sanet_here("inspect", deployed) == 0
    printed = capsys.readouterr().out
    for words in (
        "format toy",
        "images (any, 3, 32, 32)",
        "sa_resnet18 (toy), exported by version 1.2.3",
        "best.pt, SHA-256 0123abcd",
        "4: digit0, digit1",
        "32 x 32 pixels",
        f"sanet predict {deployed} IMAGES",
    ):
        assert words in printed


def test_the_page_shows_probabilities_and_why_there_is_no_map(run, deployed, shared_tree):
    checkpoint, file = open_networks([run / "best.pt", deployed], CPU)
    image = Image.open(shared_tree / "val/digit1/000.png").convert("RGB")
    expected, result = checkpoint.look(image, Request()), file.look(image, Request(target="digit0"))
    assert [row.name for row in result.best] == [row.name for row in expected.best]
    assert [row.share for row in result.best] == pytest.approx([row.share for row in expected.best], rel=1e-4)
    assert all(row.count is None for row in result.best)
    assert len(result.images) == 1
    assert not result.fault
    assert result.note == "A deployed file has no map, which needs gradients. Open best.pt to see one."
    assert (file.classes, file.layers, file.gated, file.gates(image)) == ([], [], False, ([], []))
    assert file.about.startswith("4 classes, toy file")
    assert len(file.examples()) == 4
    with pytest.raises(InputError, match="--device cuda does not apply"):
        open_networks([deployed], CPU, "cuda")


def test_a_file_of_a_fixed_batch_size_is_run_in_its_batches():
    seen = []

    def run(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return images.mean((2, 3))

    file = deploy.Artefact(Path("x"), run, (4, 3, None, None))
    images = torch.rand(7, 3, 5, 6)
    torch.testing.assert_close(file(images), images.mean((2, 3)))
    torch.testing.assert_close(file(images[:1]), images[:1].mean((2, 3)))
    torch.testing.assert_close(file(images[:4]), images[:4].mean((2, 3)))
    assert seen == [4] * 4


def write_onnx(path: Path, shape: list, *last: str, outputs: int = 1, axes: tuple[int, int] = (2, 3)) -> Path:
    """Write a classifier of four classes by the means of three colours, as another program would."""
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    helper = onnx.helper
    weights = torch.linspace(-9, 9, 12).view(3, 4).sin().numpy()
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["logits"]),
        *(helper.make_node(name, ["logits"], ["last"], axis=1) for name in last),
    ]
    named = ["last" if last else "logits", "means"][:outputs]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in named],
        [
            onnx.numpy_helper.from_array(weights, "weights"),
            onnx.numpy_helper.from_array(torch.tensor(axes).numpy(), "axes"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


PREPARED = {"mean": [0.5], "std": [0.25]}


@pytest.mark.parametrize(
    ("shape", "last", "settings"),
    [
        (["n", 3, 32, 32], (), {}),
        ([1, 3, 32, 32], (), {}),
        ([3, 3, 32, 32], ("Softmax",), {}),
        (["n", 3, "h", "w"], (), {"img_size": 32}),
    ],
)
def test_files_of_other_programs_are_usable_with_the_settings_that_they_lack(
    shared_tree, tmp_path, shape, last, settings
):
    classifier = restore_network(write_onnx(tmp_path / "model.onnx", shape, *last), settings={**PREPARED, **settings})
    image = Image.open(shared_tree / "val/digit1/000.png").convert("RGB")
    means = classifier.inputs(image).mean((2, 3))
    logits = means @ torch.linspace(-9, 9, 12).view(3, 4).sin()
    expected = logits.softmax(1)[0]
    assert [share for _, share in classifier.predict(image).best] == pytest.approx(
        expected.sort(descending=True).values.tolist(), rel=1e-4
    )
    assert classifier.names == [f"class {number}" for number in range(4)]


@pytest.mark.parametrize(
    ("shape", "last", "outputs", "settings", "message"),
    [
        (["n", 3, 32, 32], (), 1, {}, "does not say how images are prepared for it; give --mean and --std to"),
        (["n", 3, "h", "w"], (), 1, PREPARED, "give --img-size to"),
        (["n", "c", 32, 32], (), 1, PREPARED, "give --in-chans to"),
        (["n", 32, 32, 3], (), 1, PREPARED, r"takes inputs of the shape \(any, 32, 32, 3\), not \(B, C, H, W\)"),
        (["n", 3, 32, 48], (), 1, PREPARED, "square images"),
        (["n", 3, 32, 32], (), 2, PREPARED, "for 2 images it returns 2 outputs, not a row of logits each"),
    ],
)
def test_files_of_other_programs_that_cannot_be_used_are_refused(tmp_path, shape, last, outputs, settings, message):
    path = write_onnx(tmp_path / "model.onnx", shape, *last, outputs=outputs, axes=(1, 2) if shape[3] == 3 else (2, 3))
    with pytest.raises(InputError, match=message):
        tasks.restore(path, settings=settings)


def test_a_file_of_another_program_needs_data(shared_tree, tmp_path, capsys):
    path = write_onnx(tmp_path / "model.onnx", ["n", 3, 32, 32])
    options = ["--mean", 0.5, "--std", 0.25, "--workers", 0]
    assert sanet_here("eval", path, *options) == 2
    assert "does not say what its model was trained on; name images by --data DIR" in capsys.readouterr().err
    assert sanet_here("eval", path, *options, "--data", shared_tree) == 0
    assert sanet_here("inspect", path) == 0
    assert "of another program" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["export x --output y.onnx", "verify x y", "predict x z", "detect predict x z --output y"]
)
def test_several_processes_of_torchrun_are_refused(command, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sanet_here(*command.split()) == 2
    assert "runs in one process, and torchrun started 2" in capsys.readouterr().err
