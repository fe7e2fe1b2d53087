"""Certificates: what a deployed file must share with its checkpoint, and what makes it fail."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import sanet_here
from shuffle_attention import deploy
from shuffle_attention.checkpoints import read_checkpoint
from shuffle_attention.deploy import api
from shuffle_attention.deploy.format import METADATA
from shuffle_attention.files import sha256
from shuffle_attention.sanet.report.certificate import certify
from shuffle_attention.sanet.statistics import mcnemar, share_at_most
from shuffle_attention.sanet.tasks import restore

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


DESCRIPTION = ("kind", "recipe", "num_classes", "classes")


@pytest.fixture(scope="module")
def file(run, tmp_path_factory) -> Path:
    """A run's best checkpoint as an ONNX file."""
    path, predictor = tmp_path_factory.mktemp("deployed") / "digits.onnx", restore(run / "best.pt")
    content = {name: value for name, value in read_checkpoint(run / "best.pt").items() if name in DESCRIPTION}
    metadata = content | {"checkpoint_sha256": sha256(run / "best.pt"), "recipe": predictor.recipe.to_dict()}
    deploy.export(predictor.model, path, example=torch.randn(2, 3, 32, 32), metadata=metadata)
    return path


def edited(file: Path, target: Path, *, factor: float = 1.0, **changes: object) -> Path:
    """Write a copy of an ONNX file with one weight multiplied, and entries of its metadata changed or removed."""
    proto = onnx.load(file)
    if factor != 1:
        weight = max(proto.graph.initializer, key=lambda each: onnx.numpy_helper.to_array(each).size)
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[np.abs(values).argmax()] *= factor
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    metadata = json.loads(next(each.value for each in proto.metadata_props if each.key == METADATA))
    for name, value in changes.items():
        metadata[name] = value(metadata[name]) if callable(value) else value
    onnx.helper.set_model_props(proto, {METADATA: json.dumps({k: v for k, v in metadata.items() if v is not None})})
    onnx.save(proto, target)
    return target


@pytest.mark.parametrize(
    ("lost", "gained", "p"), [(0, 0, 1.0), (3, 3, 1.0), (1, 5, 14 / 64), (5, 1, 14 / 64), (10, 0, 2 / 1024)]
)
def test_mcnemars_test_is_exact(lost, gained, p):
    assert mcnemar(lost, gained) == pytest.approx(p)


@pytest.mark.parametrize(("count", "of"), [(0, 1), (0, 300), (7, 100), (99, 100)])
def test_at_the_bound_of_a_share_so_few_are_as_improbable_as_the_confidence_says(count, of):
    from scipy.stats import binom

    assert binom.cdf(count, of, share_at_most(count, of)) == pytest.approx(0.05)


def test_the_bound_of_a_share_of_all_is_one():
    assert share_at_most(5, 5) == 1


def test_an_exported_file_passes_with_a_certificate_and_a_page(file, run, shared_tree, tmp_path, capsys):
    paths = tmp_path / "certificate.json", tmp_path / "certificate.html"
    options = "--data", shared_tree, "--json", paths[0], "--output", paths[1]
    assert sanet_here("verify", file, run / "best.pt", *options) == 0
    assert "digits.onnx passes" in capsys.readouterr().out
    facts = json.loads(paths[0].read_text())
    assert facts["passed"]
    assert not facts["failures"]
    assert not facts["notes"]
    assert facts["images"] == 32
    assert facts["changed_answers"] == facts["lost"] == facts["gained"] == 0
    assert facts["unaltered"] is True
    assert facts["recorded_sha256"] == facts["checkpoint_sha256"]
    assert facts["largest_difference"] < 1e-5
    assert facts["mcnemar_p"] == 1
    assert facts["loss_at_most"] == pytest.approx(100 * (1 - 0.05 ** (1 / 32)))
    page = paths[1].read_text()
    assert facts["file_sha256"] in page
    assert facts["checkpoint_sha256"] in page
    assert "Passed" in page


@pytest.mark.parametrize(
    ("edit", "reasons"),
    [
        ({"factor": 1.01}, ["its weights or its graph were changed", "its logits differ by"]),
        # Too little to be seen in the logits.
        ({"factor": 1 + 1e-6}, ["its weights or its graph were changed"]),
        # Written by a program that records nothing.
        ({"factor": 1.01, "content_sha256": None}, ["its logits differ by"]),
        ({"checkpoint_sha256": "0" * 64}, ["exported from a checkpoint with the SHA-256 000000000000, and that of"]),
    ],
)
def test_a_file_that_was_changed_fails(edit, reasons, file, run, shared_tree, tmp_path, capsys):
    other = edited(file, tmp_path / "other.onnx", **edit)
    assert sanet_here("verify", other, run / "best.pt", "--data", shared_tree, "--json", tmp_path / "c.json") == 1
    facts, printed = json.loads((tmp_path / "c.json").read_text()), capsys.readouterr().err
    assert not facts["passed"]
    assert len(facts["failures"]) == len(reasons)
    for reason, failure in zip(reasons, facts["failures"], strict=True):
        assert reason in failure
        assert failure in printed
    assert facts["changed_answers"] == 0  # none of these is large enough


def test_a_file_that_records_nothing_is_compared_and_says_what_cannot_be_seen(file, run, shared_tree):
    artefact, predictor = deploy.load(file), restore(run / "best.pt")
    predictor.recipe = predictor.recipe.replaced(data=str(shared_tree), workers=0)
    artefact.metadata = {}
    certificate = certify(artefact, predictor)
    assert not certificate.failures
    assert "does not record a digest of its weights" in certificate.notes[0]
    assert "does not record which checkpoint" in certificate.notes[1]


def test_answers_are_counted_and_bounded(file, run, shared_tree):
    """A file that answers 0 for every image loses what the checkpoint had right, and nothing else."""
    artefact, predictor = deploy.load(file), restore(run / "best.pt")
    predictor.recipe = predictor.recipe.replaced(data=str(shared_tree), workers=0)
    logits = artefact.run
    artefact.run = lambda images: logits(images) + torch.tensor([1e3, 0, 0, 0])
    certificate = certify(artefact, predictor, tolerance=1e9, max_loss=0.0)
    counts = certificate.both_right, certificate.lost, certificate.gained
    assert certificate.top1["file"] == 25
    assert certificate.both_right + certificate.gained == 8
    assert certificate.loss == pytest.approx(100 * (counts[1] - counts[2]) / 32)
    assert certificate.loss > 0
    assert certificate.failures == [f"it loses {certificate.loss:.2f} points of accuracy, and 0 is allowed"]
    assert certificate.loss_at_most > certificate.loss
    assert {each["file"] for each in certificate.changed} == {predictor.names[0]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"recipe": lambda old: old | {"model": "resnet10t"}},
            "its model is 'resnet10t', and that .* 'sa_resnet18'",
        ),
        ({"num_classes": 5}, "its number of classes is 5, and that of .* is 4"),
        ({"classes": lambda old: old[::-1]}, "its classes is digit3, digit2, digit1, digit0, and that"),
        ({"recipe": lambda old: old | {"mean": [0.1, 0.2, 0.3]}}, "its mean is"),
    ],
)
def test_a_file_of_another_model_is_refused(changes, message, file, run, shared_tree, tmp_path, capsys):
    other = edited(file, tmp_path / "other.onnx", **changes)
    assert sanet_here("verify", other, run / "best.pt", "--data", shared_tree) == 2
    error = capsys.readouterr().err
    assert "was exported from another model" in error
    assert re.search(message, error)


@pytest.mark.parametrize(("size", "classes"), [(24, 4), (32, 3)])
def test_a_file_of_another_shape_is_refused_though_it_records_nothing(
    size, classes, run, shared_tree, tmp_path, capsys
):
    class Other(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)).sum(1, keepdim=True).expand(-1, classes) * 1.0

    deploy.export(Other(), tmp_path / "other.pt2", example=torch.randn(2, 3, size, size))
    assert sanet_here("verify", tmp_path / "other.pt2", run / "best.pt", "--data", shared_tree) == 2
    error = capsys.readouterr().err
    wrong_size, wrong_classes = (
        "takes images of 3 x 24 x 24, and",
        "returns (32, 3), and the checkpoint's model (32, 4)",
    )
    assert (wrong_size if size == 24 else wrong_classes) in error


def test_files_that_cannot_be_opened_are_named(file, run, tmp_path, monkeypatch, capsys):
    (tmp_path / "half.onnx").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert sanet_here("verify", tmp_path / "half.onnx", run / "best.pt") == 2
    assert "half.onnx cannot be read as a file of the format onnx" in capsys.readouterr().err
    assert sanet_here("verify", file, tmp_path / "none.pt") == 2
    assert "none.pt" in capsys.readouterr().err
    assert sanet_here("verify", file, run / "best.pt", "--json", tmp_path / "no/c.json") == 2
    assert "--json" in capsys.readouterr().err
    without = dataclasses.replace(api.find_format("onnx", file), runtime=("no_such_runtime",))
    monkeypatch.setitem(api._formats, "onnx", without)
    assert sanet_here("verify", file, run / "best.pt") == 2
    assert "no_such_runtime is not installed: pip install 'shuffle-attention[onnx]'" in capsys.readouterr().err
