"""Gates, groups and shuffles of a network: equal to what its layers do, and drawn."""

import copy

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from shuffle_attention import ShuffleAttention, attach
from shuffle_attention.errors import InputError
from shuffle_attention.explain import destinations, gate_activity, gates, group_scores
from shuffle_attention.explain.gates import group_means, groups_by_layer
from shuffle_attention.sanet.explain.gate_charts import (
    chosen_channels,
    draw_gates,
    draw_groups,
    draw_shuffle,
    draw_spatial_gates,
    spread_layers,
)


def trained(module: nn.Module) -> nn.Module:
    """With gates that are no longer alike."""
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, ShuffleAttention):
                for parameter in layer.parameters():
                    parameter.add_(torch.randn_like(parameter))
    return module


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return trained(timm.create_model("sa_resnet18", num_classes=5, channels=(16, 16, 32, 32))).double().eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("channels", "groups"), [(16, 1), (24, 3), (64, 32)])
def test_input_times_gates_is_the_output_before_the_shuffle(channels, groups, shuffle):
    layer = trained(ShuffleAttention(channels, groups, shuffle=shuffle)).double()
    x = torch.randn(2, channels, 5, 7, dtype=torch.float64)
    found = layer.gates(x)
    straight = copy.deepcopy(layer)
    straight.shuffle = False
    torch.testing.assert_close(x * found, straight(x))
    shuffled = torch.empty_like(x)
    shuffled[:, destinations(layer)] = x * found
    torch.testing.assert_close(shuffled, layer(x))


def test_one_half_has_a_gate_for_the_plane_and_the_other_one_for_each_place():
    layer = trained(ShuffleAttention(24, 3)).double()
    found = layer.gates(torch.randn(2, 24, 5, 7, dtype=torch.float64))
    spread = found.flatten(2).std(2).amax(0) > 1e-9
    assert spread.tolist() == layer.spatial_channels().tolist()
    assert layer.spatial_channels().tolist() == ([False] * 4 + [True] * 4) * 3
    # A map in half precision has gates in the type of the sums.
    assert layer.half().gates(torch.zeros(1, 24, 2, 2).half()).dtype == torch.float32


def test_the_gates_of_a_network_are_those_of_its_layers(network, images):
    inputs, outputs = {}, {}
    layers = {name: module for name, module in network.named_modules() if isinstance(module, ShuffleAttention)}
    names = {module: name for name, module in layers.items()}

    def keep(module, arguments, output):
        inputs[names[module]], outputs[names[module]] = arguments[0], output

    handles = [module.register_forward_hook(keep) for module in layers.values()]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    found = gates(network, images)
    assert [g.layer for g in found] == [f"layer{stage}.{block}.sa" for stage in (1, 2, 3, 4) for block in (0, 1)]
    means = groups_by_layer(network, images)
    for g in found:
        layer, x, y = layers[g.layer], inputs[g.layer], outputs[g.layer]
        torch.testing.assert_close(x * g.values, y[:, destinations(layer)])
        assert g.of_channels().shape == (2, layer.channels // 2)
        assert g.of_positions().shape == (2, layer.channels // 2, *x.shape[2:])
        torch.testing.assert_close(g.of_positions(), g.values[:, g.spatial])
        torch.testing.assert_close(means[g.layer], group_means(y, layer))
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_the_gates_of_attention_that_was_attached(images):
    model = timm.create_model("resnet10t", num_classes=5)
    attach(model, "shuffle", where="stage", groups=4)
    assert len(by_layer := gates(trained(model).double(), images)) == 4
    assert all(0 <= g.values.min() <= g.values.max() <= 1 for g in by_layer)
    assert model.training
    maps = {}
    layer = model.layer1[0].attention
    with layer.register_forward_hook(lambda layer, inputs, y: maps.update(y=y)), torch.no_grad():
        model.eval()(images)
    torch.testing.assert_close(groups_by_layer(model, images)["layer1.0.attention"], group_means(maps["y"], layer))


def test_hooks_come_off_when_the_network_raises(images):
    model = timm.create_model("sa_resnet18", num_classes=5)
    with pytest.raises(RuntimeError):
        gates(model, images[:, :1].float())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.training


def test_what_has_no_shuffle_attention_is_refused(images):
    model = timm.create_model("resnet10t", num_classes=5)
    for job in (gates, groups_by_layer):
        with pytest.raises(InputError, match="has no shuffle attention"):
            job(model, images.float())
    with pytest.raises(InputError, match="groups are those of a shuffle attention"):
        group_means(torch.zeros(1, 4, 2, 2), nn.Identity())


def test_group_scores_are_the_networks_under_each_mask(network, images):
    images = images[..., :32, :32]
    found, whole = group_scores(network, images[0], [4, 1], batch_size=5)
    with torch.no_grad():
        expected = network(images[:1]).softmax(1)[0]
    assert whole == pytest.approx([expected[4].item(), expected[1].item()], abs=1e-6)
    scores = found[3]
    assert scores.layer == "layer2.1.sa"
    assert scores.probabilities.shape == (network.layer2[1].sa.groups, 2)
    mean = groups_by_layer(network, images[:1])["layer2.1.sa"][0, 7]
    mask = nn.functional.interpolate(
        ((mean - mean.min()) / (mean.max() - mean.min()))[None, None], (32, 32), mode="bilinear"
    )
    with torch.no_grad():
        under = network(images[:1] * mask).softmax(1)[0, [4, 1]]
    torch.testing.assert_close(scores.probabilities[7], under.float())


def test_destinations_are_the_shuffle_of_the_paper():
    layer = ShuffleAttention(12, 3)
    assert destinations(layer).tolist() == [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]
    assert destinations(ShuffleAttention(12, 3, shuffle=False)).tolist() == list(range(12))


def test_channels_are_those_asked_for_or_those_that_differ_most(network, images):
    found = gates(network, images)[2]
    chosen = chosen_channels(found, 0, 4)
    spreads = found.values[0].flatten(1).std(1, unbiased=False)
    assert sorted(chosen) == sorted(spreads.topk(4).indices.tolist())
    first = int(found.spatial.nonzero()[0])
    assert chosen_channels(found, 0, 4, [first]) == [first]
    with pytest.raises(
        InputError, match=r"no spatial gates for the channels 0 of 16; .* the last 1 of every 2, such as 1"
    ):
        chosen_channels(found, 0, 4, [0])


def test_layers_are_shown_at_even_distances(network, images):
    found = gates(network, images)
    assert spread_layers(found) == found
    assert [g.layer for g in spread_layers(found, 3)] == ["layer1.0.sa", "layer3.0.sa", "layer4.1.sa"]


def test_pictures_are_drawn(network, images, tmp_path):
    found = gates(network, images)[:3]
    pixels = torch.rand(64, 64, 3)
    chosen = [chosen_channels(g, 1, 3) for g in found]
    draw_gates(found, 1, "gates", tmp_path / "gates.png")
    draw_spatial_gates(found, 1, pixels, chosen, "spatial", tmp_path / "spatial.png")
    draw_shuffle(network, "shuffle", tmp_path / "shuffle.png")
    scores, whole = group_scores(network, images[1, :, :32, :32], [0, 1])
    draw_groups(scores[:2], whole, ["one", "other"], pixels, "groups", tmp_path / "groups.png", best=2)
    for path in tmp_path.iterdir():
        colours = np.asarray(Image.open(path).convert("RGB"))
        assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 20, path
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(InputError, match="has no shuffle attention"):
        draw_shuffle(nn.Identity(), "none", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_activity_is_the_root_mean_square_of_what_differs(network, images):
    """Over batches of images of two sizes, against the gates of the layers."""
    small = images[..., :32, :48]
    activity = gate_activity(network, lambda: [network(batch) for batch in (images, small)])
    by_size = [gates(network, batch) for batch in (images, small)]
    assert list(activity) == [each.layer for each in by_size[0]]
    assert not any(module._forward_pre_hooks for module in network.modules())
    for one, other in zip(*by_size, strict=True):
        measured = activity[one.layer]
        channel = torch.cat([one.of_channels(), other.of_channels()])
        assert measured.over_images == pytest.approx(channel.std(0, unbiased=False).square().mean().sqrt().item())
        spatial = [each.of_positions().flatten(2).var(2, unbiased=False) for each in (one, other)]
        assert measured.over_positions == pytest.approx(torch.cat(spatial).mean().sqrt().item())
        start = torch.sigmoid(torch.tensor(1.0, dtype=torch.float64))
        change = [(each.values - start).square().flatten(1).mean(1) for each in (one, other)]
        assert measured.from_start == pytest.approx(torch.cat(change).mean().sqrt().item())


def test_gates_at_their_start_have_no_activity(images):
    model = timm.create_model("sa_resnet18", num_classes=5, channels=(16, 16, 32, 32)).double().eval()
    activity = gate_activity(model, lambda: model(images))
    assert len(activity) == 8
    for each in activity.values():
        assert (each.over_images, each.over_positions, each.from_start) == pytest.approx((0, 0, 0), abs=1e-7)
    assert gate_activity(timm.create_model("resnet10t"), lambda: None) == {}
