"""Attention put into any network, and taken out again.

The layer becomes a child ``attention`` of the module it follows, and a hook of that module calls it. No module
changes its place, its class or its name, so that weights from before load after and the other way round, and
whatever looks for a module by name or class (feature extraction, weight decay by name, timm's
``feature_info``) finds it. Hooks survive ``copy.deepcopy``, pickling, DDP, ``torch.compile`` and ``torch.export``.
What does not survive is a tool that puts another module in the hooked one's place, as
``SyncBatchNorm.convert_sync_batchnorm`` and the fusion of convolution and norm do: use it first, then attach.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..attention import create_attention
from ..errors import InputError
from .find import Example, Place, Where, find_places, run
from .fold import Fold, plan_fold
from .hooks import CHILD, attached, is_attached, put_in, take_out


@dataclass(frozen=True)
class AttachedLayer:
    """One layer that was put in: a row of the report.

    Attributes:
        place: Name of the module that it belongs to.
        module: Class of that module.
        channels: Channels of the map.
        groups: Its groups; None if the layer has none.
        parameters: Parameters that it adds.
        preserved: How the network's function was preserved, or "no".
    """

    place: str
    module: str
    channels: int
    groups: int | None
    parameters: int
    preserved: str


@dataclass(frozen=True)
class AttachReport:
    """What :func:`attach` did; printed, it is a table."""

    attention: str
    layers: tuple[AttachedLayer, ...]

    @property
    def parameters(self) -> int:
        """Parameters added in all."""
        return sum(layer.parameters for layer in self.layers)

    def __str__(self) -> str:
        head = ("place", "module", "channels", "groups", "parameters", "function preserved")
        rows = [
            (
                x.place,
                x.module,
                f"{x.channels}",
                "" if x.groups is None else f"{x.groups}",
                f"{x.parameters:,}",
                x.preserved,
            )
            for x in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        numbers = (2, 3, 4)
        lines = [
            "  ".join(
                cell.rjust(w) if i in numbers else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in (head, *rows)
        ]
        summary = f"{self.attention}: {len(rows)} layers, {self.parameters:,} parameters"
        return "\n".join(line.rstrip() for line in [*lines, summary])


def attach(
    model: nn.Module,
    attention: str = "shuffle",
    *,
    where: Where = "residual",
    preserve: bool = True,
    example: Example | None = None,
    **options: Any,
) -> AttachReport:
    """Puts attention layers into a network, in place, and returns what was put where.

    All is looked at before anything is changed: after an error the network is as it was. Attach before the
    optimiser is made, and before the network is compiled or wrapped for several devices.

    With ``preserve`` the network computes after the call what it computed before, to rounding, in training mode
    too: the layers get the start at which they multiply the map with a constant, and that is folded into
    the norm or convolution before each, permuted against the shuffle. Where nothing can be folded, the layer
    goes without its shuffle and its output is divided by the constant, which the report calls an identity
    start. Weights of the network without attention still load (``load_state_dict``, also strictly, and
    :func:`load_checkpoint`): they are folded on the way, and the attention goes back to its start. Without
    ``preserve`` the layers start as their authors publish them, and weights load as they are.

    Args:
        model: Network.
        attention: Name of the layer, as :func:`create_attention` takes it.
        where: ``"residual"`` (before each residual addition), ``"stage"`` (after each stage), ``"last"`` (before
            the last addition of each stage); a glob over module names such as ``"layer*.bn2"``, in which ``*``
            matches dots as well; or a predicate of name and module. The layer follows the module.
        preserve: Whether the network's function is to stay what it is.
        example: Input to find the places with, if the network does not run on one image of 64 pixels: a tensor,
            a tuple of positional inputs or a dict of inputs by name.
        **options: Of the layer, as :func:`create_attention` takes them; ``groups="auto"`` chooses for each place.

    Raises:
        InputError: If a name, an option or the groups do not fit, if nothing is found, if a module found cannot be
            attended to or is already, or if the network cannot be run.

    Example:
        >>> report = attach(torchvision.models.resnet50(), "shuffle", where="last")  # doctest: +SKIP
    """
    _refuse_wrapped(model)
    # Name and options, before the network runs; what depends on the channels is looked at for each place.
    known = {**options, "groups": "auto"} if "groups" in options else options
    create_attention(attention, 4096, device="meta", **known)
    present = [f"{name}.{CHILD}" for name, _ in attached(model)]
    places, flow = find_places(model, where, example, present)
    layers = _build(model, attention, places, options)
    folds: list[Fold | None] = [None] * len(places)
    if preserve:
        if any(tensor.is_meta for tensor in model.parameters()):
            raise InputError("preserve=True changes weights, and those of this network are on the meta device")
        if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
            raise InputError(
                "preserve=True changes weights, and those of this network were made under torch.inference_mode(), "
                "which forbids it; make the network outside of it, or copy it with copy.deepcopy()"
            )
        names = {place.name for place in places}
        folds = [plan_fold(model, flow, p, layer, names - {p.name}) for p, layer in zip(places, layers, strict=True)]
    rows, first = [], 1 + max((record.order for _, record in attached(model)), default=0)
    for order, (place, layer, fold) in enumerate(zip(places, layers, folds, strict=True), start=first):
        count = sum(p.numel() for p in layer.parameters())
        preserved = put_in(model, place, layer, fold, order)
        module = type(model.get_submodule(place.name)).__name__
        groups = getattr(layer, "groups", None)
        rows.append(AttachedLayer(place.name, module, place.channels, groups, count, preserved))
    _verify(model, example, [place.name for place in places], first)
    return AttachReport(attention, tuple(rows))


def detach(model: nn.Module) -> None:
    """Takes out what :func:`attach` put in, in place: modules, names and hooks are those from before.

    Weights that were folded are restored to the bit, if they are as ``attach`` left them. Those that were trained
    or loaded since are unfolded to rounding: the network then computes what it computed with attention at its
    start, and what attention has learnt is gone.

    Raises:
        InputError: If nothing is attached.
    """
    if not any(True for _ in attached(model)):
        raise InputError(f"nothing is attached to {type(model).__name__}; give the network that attach was given")
    take_out(model)


def _refuse_wrapped(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("attention cannot be put into a scripted or traced module; attach it before")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        raise InputError(f"attach before wrapping: {type(model).__name__} holds the network, which has to be given")
    compiled = next((name for name, module in model.named_modules() if hasattr(module, "_orig_mod")), None)
    if compiled is not None:
        raise InputError(f"attach before compiling: {compiled} is compiled already")


def _build(model: nn.Module, attention: str, places: Iterable[Place], options: dict[str, Any]) -> list[nn.Module]:
    """The layers for all places, or an error that names every place that does not take one."""
    layers: list[nn.Module] = []
    faults: dict[str, list[str]] = {}
    for place in places:
        module = model.get_submodule(place.name)
        if hasattr(module, CHILD):
            why = "attention is attached" if is_attached(module) else f"there is an attribute {CHILD!r}"
            faults.setdefault(f"{why} already", []).append(place.name)
            continue
        like = next((p for p in (*module.parameters(), *model.parameters()) if p.is_floating_point()), torch.empty(0))
        try:
            layer = create_attention(attention, place.channels, device=like.device, dtype=like.dtype, **options)
        except InputError as error:
            faults.setdefault(str(error), []).append(place.name)
            continue
        layers.append(layer.train(module.training))
    if faults:
        lines = [f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}: {why}" for why, names in faults.items()]
        auto = "; groups='auto' chooses for each place" if any("groups" in why for why in faults) else ""
        raise InputError(f"attention {attention!r} cannot be attached at " + "; ".join(lines) + auto)
    return layers


def _verify(model: nn.Module, example: Example | None, names: list[str], first: int) -> None:
    """Runs the example again: modules that run all their children, whoever they are, would run attention as well."""
    try:
        calls = run(model, example).by_name()
        wrong = [name for name in names if len(calls.get(f"{name}.{CHILD}", [])) != 1]
        why = "a module there runs its children by itself"
    except InputError as error:
        wrong, why = names, str(error)
    if wrong:
        take_out(model, first)
        raise InputError(f"attention cannot be attached at {', '.join(wrong[:4])}: {why}. The network is as it was")
