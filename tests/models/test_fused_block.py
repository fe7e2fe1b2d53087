"""The fused end of a block: where it is used, where it steps aside, and that nothing is different for it."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from shuffle_attention import ShuffleAttention
from shuffle_attention.kernels.backends import cpu
from shuffle_attention.kernels.backends import triton as triton_backend
from shuffle_attention.models import fused_block
from shuffle_attention.models import sa_resnet as models
from shuffle_attention.models.fused_block import can_fuse, norm_act

pytestmark = pytest.mark.skipif(not cpu.loaded, reason="the CPU kernels were not built")
BLOCKS = 8  # of a SA-ResNet-18


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("sa_resnet18", num_classes=5)
    for module in model.modules():
        if isinstance(module, ShuffleAttention):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture
def fused(monkeypatch) -> list[bool]:
    """An entry for each end of a block that was computed as one op."""
    calls, op = [], fused_block.block_tail

    def counted(u, shortcut, *arguments, **options):
        if shortcut is not None:
            calls.append(True)
        return op(u, shortcut, *arguments, **options)

    monkeypatch.setattr(fused_block, "block_tail", counted)
    return calls


def images(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1), dtype=dtype)


def hook(*_):
    return None


def one_by_one(model: nn.Module) -> nn.Module:
    """A copy whose blocks run their modules: a hook on an activation sees to it and does nothing else."""
    model = copy.deepcopy(model)
    for block in model.modules():
        if isinstance(block, models.SABasicBlock):
            block.act2.register_forward_hook(hook)
    return model


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_it_computes_what_the_modules_compute(network, fused, training, layout):
    network = network.double().to(memory_format=layout).train(training)
    plain = one_by_one(network)
    x = images(torch.float64).to(memory_format=layout)
    y, expected = network(x), plain(x)
    assert len(fused) == BLOCKS
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    y.square().sum().backward()
    expected.square().sum().backward()
    for (name, p), q in zip(network.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-9, msg=name)
    for (name, b), c in zip(network.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(b, c, rtol=1e-10, atol=1e-10, msg=name)


def test_training_follows_the_modules(network):
    """Same seed, float64: what differs is the order of summation."""
    network = network.double()
    losses = []
    for model in (network, one_by_one(network)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        generator = torch.Generator().manual_seed(2)
        for _ in range(8):
            x = torch.randn(4, 3, 64, 64, generator=generator, dtype=torch.float64)
            loss = nn.functional.cross_entropy(model(x), torch.arange(4))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:8] == pytest.approx(losses[8:], abs=1e-9)


class OtherNorm(nn.BatchNorm2d):
    pass


def first_blocks_replaced(model: nn.Module, name: str, module: nn.Module) -> int:
    setattr(model.layer1[0], name, module)
    return BLOCKS - 1


# What is done to the network, giving how many of its blocks may still be fused.
REASONS = {
    "nothing": lambda m: BLOCKS,
    "forward-hook-on-norm": lambda m: m.layer1[0].bn2.register_forward_hook(hook) and BLOCKS - 1,
    "forward-hook-on-attention": lambda m: m.layer1[0].sa.register_forward_hook(hook) and BLOCKS - 1,
    "backward-hook-on-attention": lambda m: m.layer1[0].sa.register_full_backward_hook(hook) and BLOCKS - 1,
    "pre-hook-on-activation": lambda m: m.layer1[0].act2.register_forward_pre_hook(hook) and BLOCKS - 1,
    "backward-pre-hook-on-norm": lambda m: m.layer1[0].bn2.register_full_backward_pre_hook(hook) and BLOCKS - 1,
    "another-norm": lambda m: first_blocks_replaced(m, "bn2", nn.GroupNorm(4, 64)),
    "subclassed-norm": lambda m: first_blocks_replaced(m, "bn2", OtherNorm(64)),
    "sync-norm": lambda m: first_blocks_replaced(m, "bn2", nn.SyncBatchNorm(64).eval()),
    "another-activation": lambda m: first_blocks_replaced(m, "act2", nn.SiLU()),
    "no-attention": lambda m: first_blocks_replaced(m, "sa", nn.Identity()) + 1,
    "drop-path": lambda m: first_blocks_replaced(m, "drop_path", timm.layers.DropPath(0.5)),
    "parametrised": lambda m: nn.utils.parametrizations.weight_norm(m.layer1[0].bn2, dim=None) and BLOCKS - 1,
}


@pytest.mark.parametrize("reason", REASONS)
def test_it_steps_aside_where_something_is_between_the_modules(network, fused, reason):
    expected = REASONS[reason](network)
    network(images()).sum().backward()
    assert len(fused) == expected


@pytest.mark.parametrize(
    ("device", "dtype", "triton", "expected"),
    [
        ("cpu", torch.float64, False, True),
        ("cuda", torch.float32, True, True),
        ("cuda", torch.bfloat16, True, True),
        ("cuda", torch.float64, True, False),
        ("cuda", torch.float32, False, False),
        ("meta", torch.float32, True, False),
    ],
    ids=str,
)
def test_it_steps_aside_where_the_device_has_no_kernels(network, monkeypatch, device, dtype, triton, expected):
    monkeypatch.setattr(triton_backend, "HAS_TRITON", triton)
    monkeypatch.setattr(triton_backend, "_capability", lambda device: (9, 0))
    block = network.layer1[0]
    with FakeTensorMode():  # a map on a device that need not be there
        u = torch.empty(2, 64, 8, 8, device=device, dtype=dtype)
        assert can_fuse(u, u, block.bn2, block.sa, block.act2, None) == expected


# How BatchNorm and ReLU are changed, and whether they may still run as one op.
STEPS = {
    "nothing": (lambda norm, act: (norm, act, None), True),
    "no-activation": (lambda norm, act: (norm, None, None), True),
    "nothing-dropped": (lambda norm, act: (norm, act, nn.Dropout2d(0.5).eval()), True),
    "dropped": (lambda norm, act: (norm, act, nn.Dropout2d(0.5)), False),
    "hook-on-norm": (lambda norm, act: (norm.register_forward_hook(hook) and norm, act, None), False),
    "hook-on-activation": (lambda norm, act: (norm, act.register_forward_pre_hook(hook) and act, None), False),
    "another-activation": (lambda norm, act: (norm, nn.SiLU(), None), False),
    "another-norm": (lambda norm, act: (nn.GroupNorm(1, 5), act, None), False),
}


@pytest.mark.parametrize("step", STEPS)
def test_norm_and_activation_are_one_op_unless_something_is_between_them(monkeypatch, step):
    calls, op = [], fused_block.block_tail
    monkeypatch.setattr(fused_block, "block_tail", lambda *a, **o: calls.append(True) or op(*a, **o))
    change, fused = STEPS[step]
    norm, act, drop = change(nn.BatchNorm2d(5), nn.ReLU())
    u = torch.randn(2, 5, 4, 3)
    torch.manual_seed(0)
    y = norm_act(u, norm, act, drop)
    assert len(calls) == fused
    torch.manual_seed(0)
    for module in (norm, drop, act):
        u = u if module is None else module(u)
    torch.testing.assert_close(y, u)


@pytest.mark.parametrize(
    "reason", ["nothing", "gradient", "training", "shuffle", "hook-on-conv", "unknown-producer", "vmap"]
)
def test_the_output_is_written_over_the_convolutions_unless_something_needs_it(reason):
    norm, act, conv = nn.BatchNorm2d(8).train(reason == "training"), nn.ReLU(), nn.Conv2d(3, 8, 1)
    attention = ShuffleAttention(8, 2, shuffle=reason == "shuffle")
    if reason == "hook-on-conv":
        conv.register_forward_hook(hook)
    with torch.set_grad_enabled(reason == "gradient"):
        u = conv(torch.randn(2, 3, 4, 3))
        before, source = u.detach().clone(), None if reason == "unknown-producer" else conv

        def end(u: torch.Tensor) -> torch.Tensor:
            return fused_block.block_end(u, torch.ones_like(u), norm, attention, act, None, conv=source)

        y = torch.vmap(end)(u[None])[0] if reason == "vmap" else end(u)
        over = reason == "nothing"
        assert (y.data_ptr() == u.data_ptr()) == over
        assert torch.equal(u, before) != over
        norm.train(reason == "training")
        torch.testing.assert_close(y, act(attention(norm(before)) + 1))


def test_drop_path_that_drops_nothing_does_not_hinder(network, fused):
    first_blocks_replaced(network, "drop_path", timm.layers.DropPath(0.5))
    network.eval()(images())
    assert len(fused) == BLOCKS


def test_a_hook_on_every_module_is_seen_by_every_module(network, fused):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        network(images())
    finally:
        handle.remove()
    assert (seen.count(ShuffleAttention), len(fused)) == (BLOCKS, 0)


def test_a_removed_hook_is_forgotten(network, fused):
    network.layer1[0].sa.register_forward_hook(hook).remove()
    network(images())
    assert len(fused) == BLOCKS


# The trace takes the shapes that the layer checks for constants, which they are.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_and_exported_graphs_show_the_modules(network, fused):
    network.eval()
    x = images()
    expected = one_by_one(network)(x)
    traced = torch.fx.symbolic_trace(network)
    assert [str(node.target) for node in traced.graph.nodes].count("layer1.0.bn2") == 1
    torch.testing.assert_close(traced(x), expected)
    program = torch.export.export(network, (x,))
    assert "block_tail" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), expected)
    with pytest.warns((FutureWarning, DeprecationWarning), match="jit.trace"):
        scripted = torch.jit.trace(network, x, check_trace=False)  # the check runs the blocks untraced as well
    assert "block_tail" not in str(scripted.inlined_graph)
    torch.testing.assert_close(scripted(x), expected)
    assert not fused


def test_under_autocast_types_are_those_of_the_modules(network, fused):
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = network(x), one_by_one(network)(x)
    assert y.dtype == expected.dtype
    assert (y - expected).abs().max() < 0.1 * expected.abs().max()
    assert fused


def test_compiled_whole_it_is_still_one_op(network, fused):
    x, calls = images(), []
    expected = one_by_one(network)(x)

    def recording(graph: torch.fx.GraphModule, inputs):
        calls.extend(str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(network, fullgraph=True, backend=recording)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    assert sum("shuffle_attention.block_tail" in call for call in calls) == 2 * BLOCKS + 3  # both norms, downsamples


def test_a_block_keeps_what_a_plain_one_keeps(network):
    """Two maps a block between forward and backward: what goes into the norm, and the block's output."""

    def kept(model: nn.Module) -> int:
        storages = {}
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = model(torch.randn(4, 3, 64, 64))
            total = sum(storages.values())
        del y
        return total

    assert kept(network) < 1.02 * kept(timm.create_model("resnet18", num_classes=5))
    assert kept(one_by_one(network)) > 1.1 * kept(network)
