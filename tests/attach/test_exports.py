"""Models with attached attention in several processes, inductor, torch.export and ONNX."""

import copy

import pytest
import torch
import torch.distributed
from torch import nn

from networks import difference, network, output, photographs
from shuffle_attention import ShuffleAttention, attach, detach


@pytest.fixture
def model() -> nn.Module:
    model = network("plain").float()
    attach(model, groups=2, where="residual")
    attach(model, groups=4, where="norm3", start="published")
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, ShuffleAttention):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.5)
    return model


def test_compiled_to_machine_code_it_trains_as_before():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    attach(model, where="1", groups=2)
    other, x = copy.deepcopy(model), photographs(32).float()
    y, expected = torch.compile(model, fullgraph=True)(x), other(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    y.square().mean().backward()
    expected.square().mean().backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "timm-resnet"])  # by hooks, and in blocks
@pytest.mark.parametrize("in_place", [False, True])
def test_code_compiled_without_attention_does_not_run_with_it_nor_the_other_way_round(in_place, name):
    """Models of one class share their compiled code, and one model has its own before and after."""
    torch.compiler.reset()
    plain, x = network(name), photographs(32)
    model = copy.deepcopy(plain)

    def compiled(network: nn.Module) -> nn.Module:
        if not in_place:
            return torch.compile(network, backend="eager")
        network.compile(backend="eager")
        return network

    with torch.no_grad():
        expected = plain(x)
        compiled(plain)(x)
        compiled(model)(x)
        attach(model, groups=2, where="residual")
        for module in model.modules():
            if isinstance(module, ShuffleAttention):
                nn.init.ones_(module.sweight)
        attended = model.forward(x)
        assert difference(attended, expected) > 1e-3
        for _ in range(2):
            assert difference(compiled(copy.deepcopy(model))(x), attended) < 1e-12
            assert difference(compiled(model)(x), attended) < 1e-12
            assert difference(compiled(plain)(x), expected) < 1e-12
        detach(model)
        assert difference(compiled(model)(x), expected) < 1e-12
    torch.compiler.reset()


def test_under_ddp_every_parameter_gets_its_gradient(model, tmp_path):
    other, x = copy.deepcopy(model).train(), photographs(32).float()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model.train())
        for _ in range(2):  # the second pass fails if the first left a parameter without gradient
            wrapped.zero_grad()
            wrapped(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for _ in range(2):
        other.zero_grad()
        other(x).square().sum().backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_exported_it_computes_the_same(model):
    x = photographs(32).float()
    program = torch.export.export(model, (x,))
    assert "shuffle_attention" not in str(program.graph)  # it runs where this package does not exist
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), output(model, x))


def test_in_onnx_it_is_made_of_onnx_operations_alone(model, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    x = photographs(32).float()
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert difference(torch.from_numpy(y), output(model, x)) < 1e-5
