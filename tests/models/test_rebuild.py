"""``memory``: what is rebuilt has the same values to the bit, less is kept, and when it steps aside."""

import copy
from typing import Any
from unittest import mock

import pytest
import timm
import torch
import torch.distributed as dist
import torchvision
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

from shuffle_attention import attach
from shuffle_attention.errors import InputError
from shuffle_attention.kernels.backends import cpu
from shuffle_attention.models import SABottleneck, SAResNet, rebuild, set_memory
from shuffle_attention.models.branch import run_branch
from shuffle_attention.sanet.profile.costs import kept_for_backward

pytestmark = pytest.mark.skipif(not cpu.loaded, reason="the CPU kernels were not built")
LAYOUTS = [torch.contiguous_format, torch.channels_last]
MODES = ["rebuild", "rebuild-all"]
REBUILT = 11  # maps of a network of `small`: two of each of five blocks, and that of the stem


def small(**options) -> Any:
    torch.manual_seed(0)
    block: Any = SABottleneck
    return SAResNet(block, (2, 1, 1, 1), channels=(8, 8, 16, 16), num_classes=3, **options)


def attached() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=3)
    attach(model, where="layer[12].*.bn2")
    return model


def images() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def twins(model: Any, memory: Any = "rebuild-all") -> tuple[Any, Any]:
    other = copy.deepcopy(model)
    set_memory(other, memory)
    return model, other


def step(model: nn.Module, x: Tensor, *, autocast: bool = False) -> list[Tensor]:
    """Return the output, all gradients and all buffers after one forward and backward pass."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    y.square().sum().backward()
    gradients = [p.grad for p in (x, *model.parameters()) if p.grad is not None]
    return [y, *gradients, *model.buffers()]


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.fixture
def counted(monkeypatch) -> list[bool]:
    """An entry for each map between norm and consumer that is to be rebuilt."""
    calls, original = [], rebuild.norm_relu_consume
    monkeypatch.setattr(rebuild, "norm_relu_consume", lambda *a: calls.append(True) or original(*a))
    return calls


def frozen(model: Any) -> None:
    """Freeze a norm, a convolution, both, and the whole stem and first stage, as transfer learning does."""
    for part in (model.conv1, model.bn1, model.layer1, model.layer2[0].bn1, model.layer3[0].conv2, model.layer4[0].bn1):
        part.requires_grad_(False)


def unscaled(model: Any) -> None:
    norm = model.layer2[0].bn1
    norm.weight = norm.bias = norm.running_mean = norm.running_var = None
    norm.track_running_stats = False


CHANGES = {
    "training": lambda model: None,
    "evaluation": lambda model: model.eval(),
    "frozen": frozen,
    "norm-without-parameters": unscaled,
    "checkpointing": lambda model: model.set_grad_checkpointing(),
    "deep-stem": lambda model: model,
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("memory", MODES)
def test_gradients_and_statistics_are_the_same_to_the_bit(counted, layout, change, autocast, memory):
    model = small(**({"stem_type": "deep", "stem_width": 8} if change == "deep-stem" else {}))
    model = model.to(memory_format=layout)
    CHANGES[change](model)
    model, other = twins(model, memory)
    x = images().contiguous(memory_format=layout)
    expected = step(model, x, autocast=autocast)
    assert not counted
    assert_same(step(other, x, autocast=autocast), expected)
    assert len(counted) >= REBUILT


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_attached_blocks_rebuild_too(counted, layout):
    model, other = twins(attached().to(memory_format=layout))
    x = images().contiguous(memory_format=layout)
    assert_same(step(other, x), step(model, x))
    assert len(counted) == 4
    with pytest.raises(InputError, match="ResNet has no such block"):
        set_memory(timm.create_model("resnet18"), "rebuild")
    with pytest.raises(InputError, match="must be 'keep', 'rebuild' or 'rebuild-all', got 'all'"):
        set_memory(other, "all")  # pyright: ignore[reportArgumentType]


def test_less_is_kept_than_by_a_plain_network():
    x = torch.randn(2, 3, 96, 96)
    plain, model = timm.create_model("resnet50"), timm.create_model("sa_resnet50", memory="rebuild")
    assert kept_for_backward(model, x) < 0.82 * kept_for_backward(plain, x)
    set_memory(model, "rebuild-all")
    assert kept_for_backward(model, x) < 0.58 * kept_for_backward(plain, x)
    set_memory(model, "keep")
    assert kept_for_backward(model, x) > 0.99 * kept_for_backward(plain, x)


class Tails(TorchDispatchMode):
    """Counts the calls of the op ``block_tail``."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func is torch.ops.shuffle_attention.block_tail.default
        return func(*args, **(kwargs or {}))


# Rebuilt are two maps of each block, the ends of five blocks and four norms of shortcuts; the stem's map has no reader.
@pytest.mark.parametrize(("memory", "count"), [("keep", 0), ("rebuild", 10), ("rebuild-all", 10 + 5 + 4)])
def test_every_map_is_rebuilt_once(memory, count):
    model = small()
    set_memory(model, memory)
    loss = model(images()).sum()
    with Tails() as tails:
        loss.backward()
    assert tails.calls == count


def test_a_checkpoint_that_rebuilds_does_not_rebuild_blocks():
    model = small()
    model.set_grad_checkpointing()
    set_memory(model, "rebuild-all")
    loss = model(images()).sum()
    with Tails() as tails:
        loss.backward()
    assert tails.calls == 10 + 10 + 5 + 4  # the last 19 are those of the forward pass, computed again


def test_features_that_others_read_have_the_same_gradients():
    options: Any = {"features_only": True, "channels": (8, 8, 16, 16)}
    model, other = twins(timm.create_model("sa_resnet34", **options))
    results = []
    for each in (model, other):
        x = images().requires_grad_()
        torch.stack([feature.square().sum() for feature in each(x)]).sum().backward()
        results.append([x.grad, *(p.grad for p in each.parameters() if p.grad is not None)])
    assert_same(*results)


def test_a_second_backward_pass_gives_the_same():
    model = small()
    set_memory(model, "rebuild-all")
    loss, parameters = model(images()).square().sum(), [*model.parameters()]
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    assert_same([*torch.autograd.grad(loss, parameters)], [*first])


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("name", ["layer1.0.conv2", "layer1.0.bn1", "layer1.0.bn3", "layer1.1.conv1", "bn1"])
def test_a_parameter_changed_before_the_backward_pass_is_an_error(name, memory):
    model = small()
    set_memory(model, memory)
    y = model(images())
    with torch.no_grad():
        model.get_submodule(name).weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def hook(*_):
    return None


# What is done to a network, giving how many of its maps are still rebuilt.
ASIDE = {
    "nothing": lambda m: REBUILT,
    "hook-on-convolution": lambda m: m.layer1[0].conv2.register_forward_hook(hook) and REBUILT - 1,
    "hook-on-activation": lambda m: m.layer1[0].act1.register_forward_pre_hook(hook) and REBUILT - 1,
    "backward-hook-on-convolution": lambda m: m.layer1[0].conv2.register_full_backward_hook(hook) and REBUILT - 1,
    "hook-between": lambda m: m.layer1[0].drop_block.register_forward_hook(hook) and REBUILT - 1,
    "pruned": lambda m: prune.identity(m.layer1[0].conv2, "weight") and REBUILT - 1,
    "parametrised": lambda m: nn.utils.parametrizations.weight_norm(m.layer1[0].conv2) and REBUILT - 1,
    "padding-by-name": lambda m: setattr(m.layer1[0].conv2, "padding", "same") or REBUILT - 1,
    "another-activation": lambda m: setattr(m.layer1[0], "act1", nn.SiLU()) or REBUILT - 1,
    "sync-norm": lambda m: setattr(m.layer1[0], "bn1", nn.SyncBatchNorm(8).eval()) or REBUILT - 1,
    "no-gradients": lambda m: torch.set_grad_enabled(False) and 0,
}


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("reason", ASIDE)
def test_it_steps_aside(counted, reason, memory):
    model = small()
    set_memory(model, memory)
    with torch.enable_grad():  # restores the mode
        expected = ASIDE[reason](model) or 0
        model(images())
    assert len(counted) == expected


HOOKED = ["layer1.0", "layer1.0.bn3", "layer1.0.sa", "layer1.0.downsample.1", "layer1.1.conv1", "layer2.0.downsample.0"]


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_full_backward_hook"])
@pytest.mark.parametrize("name", HOOKED)
def test_blocks_whose_parts_are_observed_have_the_same_gradients(name, kind):
    model = small()
    getattr(model.get_submodule(name), kind)(hook)
    model, other = twins(model)
    assert_same(step(other, images()), step(model, images()))


def test_without_kernels_everything_is_kept_and_a_warning_says_so(counted, caplog):
    model = small()
    set_memory(model, "rebuild")
    rebuild._warn_of_missing_kernels.cache_clear()
    with mock.patch.object(rebuild, "has_kernels", return_value=False):
        model(images())
        model(images())
    assert not counted
    assert [record.message for record in caplog.records] == [
        "memory='rebuild' keeps as much as memory='keep': no kernel computes norm and ReLU as one op for float32 on cpu"
    ]


@pytest.mark.parametrize("memory", MODES)
def test_traced_it_steps_aside(counted, memory):
    model, other = twins(small().eval(), memory)
    traced = torch.fx.symbolic_trace(other)
    assert not counted
    torch.testing.assert_close(traced(images()), model(images()))


def test_compiled_and_transformed_it_steps_aside(counted):
    branch = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3)).eval()

    def call(x):
        return run_branch(x, branch, "rebuild")

    x = torch.randn(2, 4, 6, 6)
    expected = branch(x)
    torch.testing.assert_close(torch.compile(call, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(
        torch.func.grad(lambda x: call(x).sum())(x), torch.autograd.functional.jacobian(lambda x: branch(x).sum(), x)
    )
    torch.compiler.reset()
    assert not counted
    assert call(x).shape == expected.shape
    assert counted


@pytest.mark.parametrize(
    "consumer", [nn.Conv2d(4, 3, 3, stride=2, padding=1), nn.MaxPool2d(3, 2, 1)], ids=["conv", "pool"]
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_gradients_of_gradients(consumer, training):
    torch.manual_seed(0)
    branch = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), consumer).double().train(training)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    weights = dict(branch.named_parameters())

    def call(x, *parameters):
        return run_branch(x, branch, "rebuild")

    assert torch.autograd.gradcheck(call, (x, *weights.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *weights.values()), fast_mode=True)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("before", [False, True], ids=["first", "after-a-pass-that-ends-early"])
def test_gradients_of_gradients_of_a_network(training, before):
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    results = []
    for model in twins(small().double().train(training)):
        inputs, parameters = x.clone().requires_grad_(), [*model.parameters()]
        loss = model(inputs).square().sum()
        if before:  # it rebuilds the output of a block, whose own step it does not come to
            torch.autograd.grad(loss, [*model.layer1[1].conv1.parameters()], retain_graph=True)
        gradients = torch.autograd.grad(loss, [inputs, *parameters], create_graph=True)
        penalty = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        results.append(torch.autograd.grad(penalty, [inputs, *parameters]))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


def test_distributed_it_computes_the_same(counted):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, other = (nn.parallel.DistributedDataParallel(m) for m in twins(small()))
        assert_same(step(other, images()), step(model, images()))
    finally:
        dist.destroy_process_group()
    assert len(counted) == REBUILT
