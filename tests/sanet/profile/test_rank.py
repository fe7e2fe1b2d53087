"""Positions ranked for attention: gradients at the same function, without bias by the number of batches."""

import copy
import json

import pytest
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional

from conftest import sanet_here
from shuffle_attention import attach
from shuffle_attention.errors import InputError
from shuffle_attention.sanet.profile.rank import _squared_norm, rank_positions

NARROW = {"channels": (8, 8, 16, 16), "zero_init_last": False}


def model() -> nn.Module:
    torch.manual_seed(0)
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=3, **NARROW).double()


def batches(count: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shape = (6, 3, 32, 32)
    return [
        (torch.randn(shape, generator=generator).double(), torch.randint(3, (6,), generator=generator))
        for _ in range(count)
    ]


def test_the_estimate_has_no_bias_whatever_the_number_of_batches():
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([0.3, -0.4, 0.0], dtype=torch.float64)
    for count in (2, 8):
        noise = torch.randn(4000, count, 3, dtype=torch.float64, generator=generator)
        for shift, norm in ((mean, 0.25), (0 * mean, 0.0)):
            gradients = shift + noise
            once = torch.ones(1, count, dtype=torch.float64)
            estimates = torch.cat([_squared_norm(each @ each.T, once) for each in gradients])
            error = estimates.std() / len(estimates) ** 0.5
            assert abs(estimates.mean() - norm) < 4 * error


def test_batches_that_are_drawn_twice_are_not_pairs():
    gradients = torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.float64)
    counts = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    assert _squared_norm(gradients @ gradients.T, counts).tolist() == [2.0, 8.0]


def test_gains_are_the_products_of_gradients_of_different_batches():
    plain, data = model(), batches()
    before = copy.deepcopy(plain.state_dict())
    rows = rank_positions(plain, data, groups=2, repetitions=1)
    assert [row.per_microsecond for row in rows] == sorted((row.per_microsecond for row in rows), reverse=True)
    assert {row.position for row in rows} == {f"layer{stage}.0.bn2" for stage in (1, 2, 3, 4)}
    assert sum(row.in_best for row in rows) == pytest.approx(3)
    assert plain.state_dict().keys() == before.keys()
    assert plain.training
    attended = copy.deepcopy(plain).eval()
    attach(attended, groups=2)
    row = next(row for row in rows if row.position == "layer2.0.bn2")
    layer = attended.layer2[0].sa
    gradients = []
    for images, labels in data:
        loss = functional.cross_entropy(attended(images), labels)
        own = torch.autograd.grad(loss, [*layer.parameters()])
        gradients.append(torch.cat([part.flatten() for part in own]))
    pairs = [float(a @ b) for i, a in enumerate(gradients) for j, b in enumerate(gradients) if i != j]
    assert row.gain == pytest.approx(sum(pairs) / len(pairs), rel=1e-6)
    assert row.low <= row.gain <= row.high
    assert row.shape == (8, 4, 4)


def test_other_attention_and_chosen_positions_are_ranked():
    rows = rank_positions(model(), batches(), "se", where=["layer1.0.bn2", "layer4.*.bn2"], best=1, repetitions=1)
    assert {row.position for row in rows} == {"layer1.0.bn2", "layer4.0.bn2"}


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(InputError, match="at least 4 batches, got 3"):
        rank_positions(model(), batches(3))
    flat = model()
    for stage in (flat.layer1, flat.layer2, flat.layer3, flat.layer4):
        nn.init.zeros_(stage[0].bn2.weight)
        nn.init.zeros_(stage[0].bn2.bias)
    with pytest.raises(InputError, match="does not depend on attention at any position"):
        rank_positions(flat, batches())


def test_the_command_prints_and_writes_the_ranking(shared_tree, tmp_path, capsys):
    path = tmp_path / "rank.json"
    options = ("--data", shared_tree, "--img-size", "32", "--batches", "4", "--batch-size", "4", "--json", path)
    arguments = ("--model-args", "{channels: [8, 8, 8, 8], zero_init_last: false}")
    assert sanet_here("insert", "resnet18", "--rank", *options, *arguments) == 0
    positions = [row["position"] for row in json.loads(path.read_text())["positions"]]
    assert len(positions) == 8
    assert f"where={positions[:3]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18"], "give --rank"),
        (["resnet1", "--rank"], "neither a file nor a model of timm"),
        (["resnet18", "--rank", "--batches", "400"], "400 batches of 32 need 12800 training images"),
    ],
)
def test_the_command_names_what_would_work(arguments, message, shared_tree, capsys):
    assert sanet_here("insert", *arguments, "--data", shared_tree) == 2
    assert message in capsys.readouterr().err
