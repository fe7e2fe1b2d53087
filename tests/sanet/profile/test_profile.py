"""Costs of models: known counts, and the files of the command."""

import itertools
import json

import pytest
import timm
import torch
from torch import nn

import shuffle_attention.models  # noqa: F401 - registers the models
from conftest import sanet_here
from shuffle_attention.sanet.charts import _spread
from shuffle_attention.sanet.environment import environment
from shuffle_attention.sanet.profile.costs import kept_for_backward, profile, size_of
from shuffle_attention.sanet.profile.published import notes, published, sources
from shuffle_attention.sanet.timing import Times, interleaved

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_convolution_is_counted_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    size = size_of(model, 3, 10)
    assert size.parameters == 3 * 8 * 9 + 16
    assert size.multiply_adds == 3 * 8 * 9 * 100
    assert size.with_pointwise == size.multiply_adds + 3 * 8 * 100
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "parameters", "products", "with_pointwise"),
    [
        ("resnet50", 25_557_032, 4.089, 4.122),
        ("resnet101", 44_549_160, 7.801, 7.849),
        ("sa_resnet50", 25_557_740, 4.089, 4.122),
        ("seresnet50", 28_088_024, 4.092, 4.124),
    ],
)
def test_counts_of_known_models(name, parameters, products, with_pointwise):
    with torch.device("meta"):
        size = size_of(timm.create_model(name), 3, 224)
    assert size.parameters == parameters
    assert (round(size.multiply_adds / 1e9, 3), round(size.with_pointwise / 1e9, 3)) == (products, with_pointwise)


def test_kept_is_what_autograd_saves():
    """A ReLU keeps its output, which the convolution after it keeps too: the same map is counted once."""
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1, bias=False))
    images = torch.randn(3, 2, 8, 8, requires_grad=True)
    assert kept_for_backward(model, images) == 3 * 2 * 8 * 8 * 4


def test_ratios_are_taken_within_a_repetition():
    assert Times([2.0, 20.0, 200.0]).over(Times([1.0, 10.0, 100.0])) == (2.0, 2.0, 2.0)
    assert Times([3.0]).over(Times([2.0])) == (1.5, 1.5, 1.5)


def test_the_first_model_has_ratios_of_one():
    models = {name: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()) for name in "ab"}
    sizes = {name: size_of(model, 3, 8) for name, model in models.items()}
    first, second = profile(models, sizes, torch.randn(2, 3, 8, 8), 2)
    over = second.to_dict(first)["over_first"]
    assert over["parameters"] == over["multiply_adds"] == over["kept_bytes"] == 1
    assert first.to_dict(first)["over_first"]["forward"] == (1, 1, 1)


def test_the_command_writes_measurements_and_a_chart(tmp_path, capsys):
    files = "--json", tmp_path / "costs.json", "--chart", tmp_path / "costs.png"
    small = "--img-size", 32, "--batch-size", 2, "--repetitions", 2, "--device", "cpu", "--threads", 1
    threads = torch.get_num_threads()
    assert sanet_here("profile", "resnet10t", "sa_resnet18", *small, *files, "--layout", "nhwc") == 0
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    assert "11,689,608" in printed
    assert "over resnet10t" in printed
    content = json.loads((tmp_path / "costs.json").read_text())
    assert [p["name"] for p in content["profiles"]] == ["resnet10t", "sa_resnet18"]
    assert content["profiles"][1]["kept_bytes"] > 0
    assert content["machine"]["threads"] == 1
    assert {"torch", "commit", "cpu", "date"} <= content["machine"].keys()
    assert content["settings"]["layout"] == "nhwc"
    assert (tmp_path / "costs.png").read_bytes().startswith(PNG)


def test_a_deployed_file_is_measured_beside_its_checkpoint_and_a_model(run, tmp_path, capsys):
    file = tmp_path / "run.pt2"
    assert sanet_here("export", run / "best.pt", "--output", file) == 0
    files = "--json", tmp_path / "costs.json", "--chart", tmp_path / "costs.png"
    small = "--batch-size", 2, "--repetitions", 2, "--threads", 1, "--layout", "nhwc"
    assert sanet_here("profile", file, run / "best.pt", "resnet10t", *small, *files) == 0
    printed = capsys.readouterr().out
    assert "2 images of 32 pixels" in printed
    content = json.loads((tmp_path / "costs.json").read_text())
    deployed, trained, named = content["profiles"]
    assert content["settings"]["img_size"] == 32
    assert deployed["file_bytes"] == file.stat().st_size
    assert deployed.keys() == {"name", "file_bytes", "forward_seconds", "over_first"}
    assert trained["over_first"].keys() == {"forward"}
    assert trained["parameters"] < named["parameters"]
    assert (tmp_path / "costs.png").read_bytes().startswith(PNG)
    assert sanet_here("profile", file, "resnet10t", "--img-size", 33) == 2
    assert f"{file} takes images of the shape (any, 3, 32, 32), got (8, 3, 33, 33)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the models to profile, or --paper"),
        (["resnet18", "--paper"], "give the models to profile, or --paper"),
        (["resnet18", "model.onnx"], "no file at model.onnx"),
        (["resnet18", "sa_resnet17"], "no model 'sa_resnet17'; did you mean"),
        (["resnet18", "resnet18"], "a model is named twice"),
        (["resnet18", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["resnet18", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["resnet18", "--json", "nowhere/costs.json"], "there is no folder nowhere"),
        (["vit_tiny_patch16_224", "--img-size", "32"], "model='vit_tiny_patch16_224', img_size=32"),
        (["resnet18", "--device", "abacus"], "device 'abacus' cannot be used"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert sanet_here("profile", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_published_metrics_have_sources_and_explanations():
    printed = [
        published(attention, depth)
        for attention in ("none", "se", "cbam", "sge", "eca", "gc", "shuffle")
        for depth in (50, 101)
    ]
    rows = [row for row in printed if row is not None]
    assert len(rows) == 12
    assert published("gc", 50) is None
    for row in rows:
        assert row.url.startswith("https://github.com/")
        assert row.source in sources()
        assert row.notes
        assert set(row.notes) <= notes().keys()
        assert row.gflops is not None or "unpublished" in row.notes


@pytest.mark.parametrize("attention", ["none", "se", "cbam", "sge", "shuffle", "eca"])
@pytest.mark.parametrize("depth", [50, 101])
def test_parameters_are_those_published(attention, depth):
    """To the two digits that the sources print; ECA's are in units of 2^20, as its note says."""
    from shuffle_attention.models.attention_resnet import resnet_with

    row = published(attention, depth)
    assert row is not None
    name, options = resnet_with(attention, depth)
    with torch.device("meta"):
        size = size_of(timm.create_model(name, **options), 3, 224)
    unit = 2**20 if "binary" in row.notes else 10**6
    assert round(size.parameters / unit, 2) == row.millions
    if row.gflops is not None and "binary" not in row.notes:
        left = row.gflops - size.with_pointwise / 1e9
        assert abs(left) < 5e-4 if row.notes == ("pointwise",) else 0.003 <= left <= 0.02


def test_the_papers_table_stands_beside_what_is_published(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shuffle_attention.sanet.commands.profile.PAPER_DEPTHS", (50,))
    monkeypatch.setattr("shuffle_attention.attention.attention_names", lambda: ["none", "se", "gc"])
    small = "--img-size", 32, "--batch-size", 2, "--repetitions", 1, "--device", "cpu"
    assert sanet_here("profile", "--paper", *small, "--json", tmp_path / "paper.json") == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.split()[:1] == ["seresnet50"] and "93.67" in line)
    assert row.split()[1:3] == ["28.088", "28.09"]
    rows = json.loads((tmp_path / "paper.json").read_text())["paper"]
    assert [row["name"] for row in rows if row["published"] is None] == ["gc_resnet50"]
    assert all(row["published"]["url"] in printed for row in rows if row["published"])
    # Timed at 32 pixels, and counted at 224 as the published ones are.
    assert round(rows[0]["with_pointwise"] / 1e9, 3) == rows[0]["published"]["gflops"]


def test_labels_are_spread_and_stay_in_order():
    heights = _spread([0.5, 0.5, 0.1, 0.52], 0.1)
    assert sorted(heights, key=heights.__getitem__) == [2, 0, 1, 3]
    rising = sorted(heights.values())
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(rising))
    assert _spread([0.2, 0.8], 0.1) == {0: pytest.approx(0.2), 1: pytest.approx(0.8)}


def test_the_record_of_the_machine_names_the_commit_or_none():
    assert set(environment()["commit"]) <= set("0123456789abcdef+changes")


def test_two_repetitions_give_their_ends_and_not_what_lies_beyond():
    assert Times([1.0, 3.0]).over(Times([1.0, 1.0])) == (2.0, 1.0, 3.0)
    assert Times([2.0]).over(Times([1.0])) == (2.0, 2.0, 2.0)


def test_what_is_timed_side_by_side_comes_in_any_order():
    called = []
    functions = {name: lambda name=name: called.append(name) for name in "abc"}
    times = interleaved(functions, 40, least=0)
    timed = called[3:]
    rounds = {tuple(timed[first : first + 3]) for first in range(0, 120, 3)}
    assert rounds == set(itertools.permutations("abc"))
    assert all(len(each.seconds) == 40 for each in times.values())
