"""Fit the attention layers of a model to weights: the start of the weights, or the identity for plain weights."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..attention import Blend, as_identity, blended, spec_of
from .insert import Attached, Slot, attached

# Classes of timm whose blocks, and blocks derived from them, may have attention of their own.
_TIMM_BLOCKS = {"timm.models.resnet.BasicBlock", "timm.models.resnet.Bottleneck"}
_CHILDREN = ("sa", "se")


@dataclass
class Fit:
    """Weights that fit a model, and what was done to fit them.

    Attributes:
        weights: Entries of the file, and those of the attention layers at their start if the file has none.
        added: Names of the entries that the file does not have.
        started: Attention layers that start as the identity, since the weights are those of the plain model.
        switched: Attention layers that had another start than the weights.
    """

    weights: dict[str, Tensor]
    added: list[str] = field(default_factory=list)
    started: tuple[str, ...] = ()
    switched: tuple[str, ...] = ()
    _replaced: list[tuple[Slot, nn.Module]] = field(default_factory=list)

    def undo(self) -> None:
        """Give the model the layers that it had."""
        for slot, layer in reversed(self._replaced):
            setattr(slot.owner, slot.child, layer)


def fit_attention(model: nn.Module, weights: Mapping[str, Tensor]) -> Fit:
    """Give the attention layers of a model the start that weights have.

    Weights of the plain model have no attention. They get the entries of attention that starts as the identity, and
    layers of the model that start otherwise are replaced by layers that start so. Layers that were attached with their
    published start stay as they are, because this was asked for.

    Args:
        model: Model with attached attention, or with attention in blocks of timm's ResNet.
        weights: State dict under the names of the model.
    """
    slots = list(attention_slots(model))
    entries = [_below(weights, slot.name) for slot in slots]
    if any(entries):
        layers = [own and _as_saved(slot.layer, own) for slot, own in zip(slots, entries, strict=True)]
    elif any(isinstance(slot, Attached) or _below(weights, slot.owner_name) for slot in slots):
        layers, entries = zip(*map(_at_start, slots), strict=True)
    else:  # no weights of the blocks, such as those of a head alone
        return Fit(dict(weights))
    fit = Fit(
        {**weights, **{f"{slot.name}.{k}": v for slot, own in zip(slots, entries, strict=True) for k, v in own.items()}}
    )
    for slot, layer in zip(slots, layers, strict=True):
        if isinstance(layer, nn.Module) and layer is not slot.layer:
            fit._replaced.append((slot, slot.layer))
            setattr(slot.owner, slot.child, layer)
    fit.added = [key for key in fit.weights if key not in weights]
    fit.started = tuple(slot.name for slot in slots if any(key.startswith(f"{slot.name}.") for key in fit.added))
    fit.switched = tuple(slot.name for slot, _ in fit._replaced)
    return fit


def _below(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def attention_slots(model: nn.Module) -> Iterator[Slot]:
    """Yield each attention layer that is attached to a model or part of a block of timm's ResNet, under every name."""
    yield from attached(model, every_name=True)
    for name, module in model.named_modules(remove_duplicate=False):
        if not any(f"{c.__module__}.{c.__qualname__}" in _TIMM_BLOCKS for c in type(module).__mro__):
            continue
        ours = {slot.child for slot in attached(module) if slot.owner is module}
        for child in _CHILDREN:
            layer = getattr(module, child, None)
            if isinstance(layer, nn.Module) and child not in ours and layer.state_dict():
                yield Slot(module, name, child)


def attention_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of all attention layers of a model: attached ones, those of ResNets, and known layers."""
    layers = [slot.layer for slot in attention_slots(model)] + [m for m in model.modules() if spec_of(m) is not None]
    return list({id(parameter): parameter for layer in layers for parameter in layer.parameters()}.values())


def _as_saved(layer: nn.Module, entries: Mapping[str, Tensor]) -> nn.Module | None:
    """Return a layer with the start that its entries have, and its own parameters; None if it has that start."""
    if isinstance(layer, Blend):
        return None if "alpha" in entries else layer.layer
    if "alpha" in entries and "alpha" not in layer.state_dict():
        return blended(layer)
    spec = spec_of(layer)
    return spec and spec.as_saved(layer, entries)


def _at_start(slot: Slot) -> tuple[nn.Module | None, dict[str, Tensor]]:
    """Return the layer that starts as the identity, which may be the present one, and its entries at the start."""
    if isinstance(slot, Attached):
        start = slot.insertion.start
        if start is None:
            return None, {}
        layer = _as_saved(slot.layer, start) or slot.layer
        return layer, {**layer.state_dict(), **start}
    spec = spec_of(slot.layer)
    restart = spec and (spec.published_start or getattr(type(slot.layer), "reset_parameters", None))
    layer = as_identity(slot.layer, spec if restart else None)
    fresh = copy.deepcopy(layer)
    if isinstance(fresh, Blend):
        nn.init.zeros_(fresh.alpha)
    elif restart:
        restart(fresh)
    return layer, fresh.state_dict()
