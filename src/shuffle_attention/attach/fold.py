"""Attention that leaves a network's function as it is: its start as a constant, and how the constant is undone.

At its start, with the weights zeroed that make its gates depend on the map, every layer of the family
multiplies the map with one number s, and shuffle attention permutes its channels besides. For the map
y of a norm or convolution, the network computes on what it computed before if that layer gives

.. math::
    y'_c = y_{p(c)} / s

instead, where p sends a channel to where the attention puts it: the layer's affine part is divided by
s, and its channels and those of the convolution before it are permuted.
"""

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..attention import ShuffleAttention, SpatialGroupEnhance
from ..errors import InputError
from .find import Place
from .trace import CONVOLUTIONS, Dataflow

_NORMS = ("batch_norm", "group_norm", "instance_norm")
# The parameters behind which the gates of timm's layers no longer depend on the map, as far as a layer has them.
_LAST = (
    *("fc2.weight", "fc2.bias"),  # SE
    *("conv.weight", "conv.bias", "conv2.weight", "conv2.bias"),  # ECA
    *("channel.fc2.weight", "channel.fc2.bias", "spatial.conv.bn.weight", "spatial.conv.bn.bias"),  # CBAM
    *("mlp_scale.fc2.weight", "mlp_scale.fc2.bias", "mlp_add.fc2.weight", "mlp_add.fc2.bias"),  # GC
)


def set_constant_start(attention: nn.Module) -> None:
    """Gives an attention layer of the family the start at which it multiplies every map with the same number.

    The gradients of what is zeroed are not zero, so that training leaves this start.
    """
    if isinstance(attention, ShuffleAttention | SpatialGroupEnhance):
        attention.reset_parameters()
    parameters = dict(attention.named_parameters())
    for name in _LAST:
        if name in parameters:
            nn.init.zeros_(parameters[name])


def start_constant(attention: nn.Module, channels: int) -> float:
    """Returns the number that a layer multiplies maps with at its start; the layer stays as it is.

    Raises:
        InputError: If there is no such number, as for layers with options that ``preserve`` does not know.
    """
    probe = copy.deepcopy(attention).to("cpu", torch.float64).eval()
    set_constant_start(probe)
    if isinstance(probe, ShuffleAttention):
        probe.shuffle = False
    x = torch.linspace(1, 2, channels * 9 * 9, dtype=torch.float64).reshape(1, channels, 9, 9)
    with torch.no_grad():
        ratio = probe(x) / x
    constant = ratio.mean().item()
    if not constant > 0 or not torch.allclose(ratio, torch.full_like(ratio, constant), rtol=1e-9):
        raise InputError(
            f"{type(attention).__name__} with these options has no start that multiplies the map with a constant; "
            f"use preserve=False"
        )
    return 1.0 if math.isclose(constant, 1, rel_tol=1e-12) else constant


def shuffled_from(channels: int) -> Tensor:
    """Returns the channel of the input that each channel of the shuffled output comes from."""
    return torch.arange(channels).reshape(2, channels // 2).t().reshape(-1)


@dataclass
class Fold:
    """A change of the parameters before an attention layer by which the network's function stays the same.

    Attributes:
        constant: What attention multiplies the map with at its start.
        source: Channel that each output channel of attention comes from; None where they are not shuffled.
        permuted: Tensors whose first dimension is permuted, as module and name.
        scaled: Tensors that are divided by the constant.
        originals: What was scaled, as it was before, so that it can be restored to the bit.
    """

    constant: float
    source: Tensor | None = None
    permuted: list[tuple[nn.Module, str]] = field(default_factory=list)
    scaled: list[tuple[nn.Module, str]] = field(default_factory=list)
    originals: dict[str, Tensor] = field(default_factory=dict)

    def modules(self) -> list[nn.Module]:
        return list(dict.fromkeys(module for module, _ in (*self.permuted, *self.scaled)))

    def apply(self) -> None:
        """Changes the parameters, in place."""
        for module in self.modules():
            self._write(module, self.folded(module, {name: getattr(module, name) for name in self.names(module)}))

    def undo(self) -> None:
        """Takes the change back: to the bit where a parameter is as it was left, to rounding where it was trained."""
        for module in self.modules():
            values = {}
            for name in self.names(module):
                value = getattr(module, name).detach()
                if self._in(self.scaled, module, name):
                    original = self.originals[self._key(module, name)]
                    untouched = value == self._divided(original).to(value)
                    value = torch.where(untouched, original.to(value), value * self.constant)
                if self.source is not None and self._in(self.permuted, module, name):
                    value = value[self.source.to(value.device)]
                values[name] = value
            self._write(module, values)

    def folded(self, module: nn.Module, values: dict[str, Tensor], *, remember: bool = True) -> dict[str, Tensor]:
        """Returns the values that a module needs for its own to be preserved, and remembers its own for ``undo``."""
        folded = {}
        for name, value in values.items():
            value = value.detach()
            if self.source is not None and self._in(self.permuted, module, name):
                value = value[self.source.argsort().to(value.device)]
            if self._in(self.scaled, module, name):
                original = value.to("cpu", getattr(module, name).dtype, copy=True)
                if remember:
                    self.originals[self._key(module, name)] = original
                value = self._divided(original).to(value.device)
            folded[name] = value
        return folded

    def names(self, module: nn.Module) -> list[str]:
        """The tensors of a module that are changed."""
        return list(dict.fromkeys(name for owner, name in (*self.permuted, *self.scaled) if owner is module))

    def _divided(self, original: Tensor) -> Tensor:
        # On the CPU always, so that the quotient can be told again wherever the network has been meanwhile.
        return (original.double() / self.constant).to(original.dtype)

    def _key(self, module: nn.Module, name: str) -> str:
        return f"{self.modules().index(module)}.{name}"

    @staticmethod
    def _in(tensors: list[tuple[nn.Module, str]], module: nn.Module, name: str) -> bool:
        return any(owner is module and each == name for owner, each in tensors)

    @staticmethod
    def _write(module: nn.Module, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                getattr(module, name).copy_(value)


def plan_fold(model: nn.Module, flow: Dataflow, place: Place, attention: nn.Module, others: set[str]) -> Fold:
    """Returns how the parameters before a place are to be changed; nothing is changed yet.

    Nothing is folded where another module sees the map as well, where its maker has no affine part, or
    where a parameter is used elsewhere. Channels are not permuted where they cannot be alone: after a
    grouped convolution, a norm over groups, or a convolution that is attended to itself. What is not
    folded is left to the caller: attention without its shuffle, whose output is divided by the constant.

    Args:
        model: Network.
        flow: What flows in it.
        place: Where attention goes.
        attention: The layer.
        others: Names of the modules that are attended to, in this call.
    """
    fold = Fold(start_constant(attention, place.channels))
    if fold.constant == 1:  # and no shuffle
        return fold
    value = flow.values[place.value]
    children = flow.children(value.index)
    if place.before:  # what the module is given
        elsewhere = len(children) > 1 or value.index in flow.results
    else:  # what it gives; only the module itself sees it without attention
        elsewhere = any(f"{child.owner}.".startswith(f"{place.name}.") for child in children)
    if elsewhere:
        return fold
    last = _maker(model, flow, value.index)
    if last is None or value.operation not in (*_NORMS, *CONVOLUTIONS):
        return fold
    fold.scaled = [(last, name) for name in _own(last, "weight", "bias")]
    if value.operation in _NORMS and len(fold.scaled) != 2:
        fold.scaled = []
        return fold
    if not (isinstance(attention, ShuffleAttention) and attention.shuffle):
        return fold
    first = last
    tensors = fold.scaled
    if value.operation == "batch_norm":
        before = value.parents[0]
        first = _maker(model, flow, before)
        alone = (
            len(flow.children(before)) == 1
            and before not in flow.results
            and flow.values[before].operation in CONVOLUTIONS
        )
        if first is None or not alone or others & {call.name for call in flow.outputs(before)}:
            return fold
        statistics = [name for name in ("running_mean", "running_var") if getattr(last, name, None) is not None]
        tensors = [*((first, name) for name in _own(first, "weight", "bias")), *tensors]
        tensors += [(last, name) for name in statistics]
    if getattr(first, "groups", 0) == 1:
        fold.permuted = tensors
        fold.source = shuffled_from(place.channels)
    return fold


def _own(module: nn.Module, *names: str) -> list[str]:
    return [name for name in names if isinstance(getattr(module, name, None), nn.Parameter)]


def _maker(model: nn.Module, flow: Dataflow, value: int) -> nn.Module | None:
    """The module whose weight and bias, used nowhere else, made a value."""
    makers = [call for call in flow.outputs(value) if not call.passes_through]
    if not makers:
        return None
    module = model.get_submodule(makers[0].name)
    parameters = [getattr(module, name) for name in _own(module, "weight", "bias")]
    direct = all(id(p) in flow.values[value].parameters and flow.uses(p) == 1 for p in parameters)
    return module if parameters and direct and isinstance(getattr(module, "weight", None), nn.Parameter) else None
