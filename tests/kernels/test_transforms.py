"""The ops under torch.func and in forward-mode differentiation, and with parameters on another device."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap

import shuffle_attention.models  # noqa: F401 - registers the networks
from shuffle_attention import ShuffleAttention
from shuffle_attention.models.fused_block import block_tail

# torch.autograd.forward_ad itself scripts a function as it is first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


class Tail(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.BatchNorm2d(16), ShuffleAttention(16, 2, gain=1.37)

    def forward(self, x: Tensor) -> Tensor:
        x = block_tail(x, None, self.norm, None, over=True)
        return block_tail(x, x.flip(0), self.norm, self.attention)


MODELS = {
    "layer": (lambda: ShuffleAttention(16, 2), (3, 16, 5, 4)),
    "channels_last": (lambda: ShuffleAttention(16, 2, shuffle=False), (3, 16, 5, 4)),
    "tail": (Tail, (3, 16, 5, 4)),
    "network": (lambda: timm.create_model("sa_resnet18", num_classes=4), (3, 3, 32, 32)),
}


@pytest.fixture(params=MODELS)
def case(request) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    """Return a model in evaluation mode with random gates, its parameters, and images; float64."""
    make, shape = MODELS[request.param]
    torch.manual_seed(0)
    model = make().double().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 or name.split(".")[-1] in ("cweight", "cbias", "sweight", "sbias"):
            nn.init.normal_(parameter)
    x = torch.randn(shape, dtype=torch.float64)
    if request.param == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    return model, {name: p.detach() for name, p in model.named_parameters()}, x


def assert_near(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def test_grad_and_gradients_per_sample_are_those_of_autograd(case):
    model, parameters, x = case

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters, (x,)).square().sum()

    def expected(x: Tensor) -> dict[str, Tensor]:
        gradients = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        return dict(zip(parameters, gradients, strict=True))

    whole, wanted = grad(loss)(parameters, x), expected(x)
    per_sample = vmap(grad(lambda p, sample: loss(p, sample[None])), in_dims=(None, 0))(parameters, x)
    wanted_per_sample = [expected(sample[None]) for sample in x]
    for name in parameters:
        assert_near(whole[name], wanted[name])
        assert_near(per_sample[name], torch.stack([gradients[name] for gradients in wanted_per_sample]))


def test_jacobians_and_forward_mode_agree_with_differences(case):
    model, _, x = case
    direction, step = torch.randn_like(x), 1e-6
    with torch.no_grad():
        differences = (model(x + step * direction) - model(x - step * direction)) / (2 * step)
    output, tangent = jvp(model, (x,), (direction,))
    assert_near(output, model(x))
    assert_near(tangent, differences, 1e-5)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(model(forward_ad.make_dual(x, direction)))
    assert_near(dual.tangent, tangent)
    if output.dim() == 2:
        assert_near(torch.einsum("bkncij,ncij->bk", jacrev(model)(x), direction), tangent)


def test_vectorized_jacobian_of_an_output_computed_before(case):
    """The backward op under vmap, as ``is_grads_batched`` runs it."""
    model, _, x = case
    y = model(x.requires_grad_())
    grads = torch.randn(2, *y.shape, dtype=y.dtype)
    (together,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
    for got, g in zip(together, grads, strict=True):
        assert_near(got, torch.autograd.grad(y, x, g, retain_graph=True)[0])


@pytest.mark.parametrize("name", ["cweight", "gn.bias"])
def test_parameter_on_another_device_is_an_error(name):
    layer = ShuffleAttention(16, 2)
    owner, _, leaf = name.rpartition(".")
    setattr(layer.get_submodule(owner), leaf, nn.Parameter(torch.empty_like(layer.get_parameter(name), device="meta")))
    x = torch.randn(2, 16, 4, 4)
    with pytest.raises(RuntimeError, match=r"x is on cpu, but .* is on meta"):
        layer(x)
    with pytest.raises(RuntimeError, match=r"u is on cpu, but .* is on meta"):
        block_tail(x, x, nn.BatchNorm2d(16), layer)
