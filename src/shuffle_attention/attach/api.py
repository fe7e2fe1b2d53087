"""The functions ``attach`` and ``detach``, and the report of what was inserted.

The model's own weights, names and classes stay as they are seen from outside, so weights load before and after, and
code that loses the attention at its start leaves the plain model.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..attention import Blend, create_attention, create_identity, get_spec
from ..attention.spec import Attention
from ..errors import InputError, counted, listed
from . import insert
from .find import Example, Place, Where, find_places, run
from .insert import Attached, Insertion
from .trace import Dataflow

Start = Literal["identity", "published"]


@dataclass(frozen=True)
class AttachedLayer:
    """One attached layer: a row of the report.

    Attributes:
        name: Name of the layer in the model; its entries in the state dict begin with it.
        place: Name of the module that it follows.
        module: Class of that module.
        channels: Number of channels of the map.
        groups: Groups of the layer; None if it has none.
        parameters: Number of parameters that it adds.
        start: ``"identity by gain"``, ``"identity by alpha"``, ``"identity"`` or ``"published"``.
        fused: Whether norm, attention, addition and ReLU run as one op, on devices that have a kernel for it.
    """

    name: str
    place: str
    module: str
    channels: int
    groups: int | None
    parameters: int
    start: str
    fused: bool


@dataclass(frozen=True)
class AttachReport:
    """Report of :func:`attach`: the layers that it inserted; printed, it is a table."""

    attention: str
    layers: tuple[AttachedLayer, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters added in total."""
        return sum(layer.parameters for layer in self.layers)

    def __str__(self) -> str:
        head = ("name", "after", "channels", "groups", "parameters", "start", "fused")
        rows = [
            (
                x.name,
                f"{x.module} {x.place}",
                f"{x.channels}",
                "" if x.groups is None else f"{x.groups}",
                f"{x.parameters:,}",
                x.start,
                "yes" if x.fused else "no",
            )
            for x in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if title in ("channels", "groups", "parameters") else cell.ljust(width)
                for cell, width, title in zip(row, widths, head, strict=True)
            ).rstrip()
            for row in (head, *rows)
        ]
        return "\n".join(
            [*lines, f"{self.attention}: {counted(len(rows), 'layer')}, {counted(self.parameters, 'parameter')}"]
        )


def attach(
    model: nn.Module,
    attention: Attention = "shuffle",
    *,
    where: Where = "residual",
    start: Start = "identity",
    example: Example | None = None,
    memory: Literal["keep", "rebuild", "rebuild-all"] = "keep",
    **options: Any,
) -> AttachReport:
    """Insert attention layers into a model, in place, and return what was inserted where.

    After an error the model is as it was. Attach before the optimiser is created, and before the model is compiled or
    wrapped for several devices.

    With ``start="identity"`` the model computes what it computed before, in training mode too, and none of its weights
    is changed. Shuffle attention starts so by a factor of its gates, and without its shuffle; any other attention A
    is inserted as x + alpha * (A(x) - x) with a learnt alpha that starts at 0. With ``start="published"`` the layers
    start as their authors publish them, with the shuffle, which changes what the model computes.

    Residual blocks of timm's, torchvision's and Hugging Face's ResNets get the layer as a child ``sa``, and run the end
    of the block as one op. At all other places the layer is a child ``attention`` of the module that it follows,
    called by a hook of that module.

    Args:
        model: Model.
        attention: What :func:`create_attention` accepts: a name, a spec, or a callable from channels to a module.
        where: ``"residual"`` (before each residual addition), ``"stage"`` (after each stage), ``"last"`` (before
            the last addition of each stage); a glob over module names such as ``"layer*.bn2"``, in which ``*``
            matches dots as well; a list of globs; or a predicate of name and module. The layer follows the module.
        start: ``"identity"`` or ``"published"``.
        example: Input for finding the places, if the model does not run on one image of 64 pixels: a tensor,
            a tuple of positional inputs or a dict of inputs by name.
        memory: ``"rebuild"`` recomputes relu(norm(u)) of residual blocks in the backward pass instead of keeping it,
            ``"rebuild-all"`` the outputs of the blocks as well.
        **options: Options of the layer, as :func:`create_attention` takes them. ``groups`` is ``"auto"`` by default.

    Raises:
        InputError: If a name, an option or the groups do not fit, nothing matches, a match is not a place for
            attention or has some already, or the model does not run.

    Example:
        >>> report = attach(torchvision.models.resnet50(), "shuffle", where="last")  # doctest: +SKIP
    """
    if "preserve" in options:  # the argument of version 0.1; goes with version 0.3
        start = "identity" if options.pop("preserve") else "published"
    if start not in ("identity", "published"):
        raise InputError(f"start must be 'identity' or 'published', got {start!r}")
    _refuse_wrapped(model)
    spec = get_spec(attention)
    if spec.group_parts is not None:
        options = {"groups": "auto", **options}
    places, flow = find_places(model, where, example, [layer.name for layer in insert.attached(model)])
    plans = _plan(model, spec, places, start, options)
    called = flow.by_name()
    for new, layer, _ in plans:
        insert.insert(new, layer)
        if new.insertion.how != "block":
            names = new.owner_name.split(".")
            caller = next(n for n in range(len(names) - 1, -1, -1) if ".".join(names[:n]) in called)
            insert.guard(new, model.get_submodule(".".join(names[:caller])), ".".join(names[caller:]))
    inserted = [new for new, _, _ in plans]
    _verify(model, example, flow, inserted)
    if memory != "keep":
        _set_memory(model, memory, inserted)
    return AttachReport(spec.name, tuple(row for _, _, row in plans))


def detach(model: nn.Module) -> None:
    """Remove everything that :func:`attach` inserted, in place: classes, names and hooks are those from before.

    The model then computes with its own weights what it would compute without attention; what attention has learnt
    is lost.

    Raises:
        InputError: If nothing is attached.
    """
    layers = list(insert.attached(model))
    if not layers and not any(insert.guards(model)):
        raise InputError(f"nothing is attached to {type(model).__name__}; give the model that attach was given")
    for layer in layers:
        insert.check_removable(layer)
    insert.remove(model, layers)


def _plan(
    model: nn.Module, attention: Attention, places: Iterable[Place], start: Start, options: dict[str, Any]
) -> list[tuple[Attached, nn.Module, AttachedLayer]]:
    """Return where each layer goes, the layer and its row, or raise an error that names every place that refuses."""
    plans: list[tuple[Attached, nn.Module, AttachedLayer]] = []
    faults: dict[str, list[str]] = {}
    for place in places:
        module = model.get_submodule(place.name)
        new = _attachment(model, place)
        if hasattr(new.owner, new.child):
            what = (
                "attention is attached" if "_insertions" in vars(new.owner) else f"there is an attribute {new.child!r}"
            )
            faults.setdefault(f"{what} already", []).append(place.name)
            continue
        like = next((p for p in (*module.parameters(), *model.parameters()) if p.is_floating_point()), torch.empty(0))
        try:
            layer, name = _create(new, attention, place.channels, start, options, like)
        except InputError as error:
            faults.setdefault(str(error), []).append(place.name)
            continue
        layer.train(module.training)
        groups = getattr(layer.layer if isinstance(layer, Blend) else layer, "groups", None)
        count = sum(p.numel() for p in layer.parameters())
        fused = new.insertion.how == "block" and insert.runs_fused(new.owner, layer)
        row = (new.name, place.name, type(module).__name__, place.channels, groups, count, name, fused)
        plans.append((new, layer, AttachedLayer(*row)))
    if faults:
        lines = [f"{listed(names, 3)}: {why}" for why, names in faults.items()]
        auto = "; groups='auto' fits every place" if any("groups" in why for why in faults) else ""
        raise InputError("attention cannot be attached at " + "; ".join(lines) + auto)
    return plans


def _create(
    new: Attached, attention: Attention, channels: int, start: Start, options: dict[str, Any], like: torch.Tensor
) -> tuple[nn.Module, str]:
    """Return a layer and the name of its start, and note the entries of its start as the identity."""
    factory = {"device": like.device, "dtype": like.dtype}
    if start == "published":
        return create_attention(attention, channels, **factory, **options), "published"
    layer = create_identity(attention, channels, **factory, **options)
    if isinstance(layer, Blend):
        new.insertion.start = {"alpha": torch.zeros(1)}
        return layer, "identity by alpha"
    new.insertion.start = {
        key: value.to("meta" if value.is_meta else "cpu", copy=True) for key, value in layer.state_dict().items()
    }
    return layer, "identity by gain" if "gain" in new.insertion.start else "identity"


def _attachment(model: nn.Module, place: Place) -> Attached:
    """Return how a layer is attached at a place: in the block whose branch ends there, or by a hook of the module."""
    names = place.name.split(".")
    for length in range(len(names) - 1, -1, -1):
        owner_name = ".".join(names[:length])
        block = insert.block_of(owner := model.get_submodule(owner_name))
        if block is not None and not place.before and ".".join(names[length:]) in block.ends:
            return Attached(owner, owner_name, insert.BLOCK_CHILD, Insertion("block", None))
    how = "before" if place.before else "after"
    return Attached(model.get_submodule(place.name), place.name, insert.HOOK_CHILD, Insertion(how, None))


def _refuse_wrapped(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("attention cannot be attached to a scripted or traced module; attach it before")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        raise InputError(f"attach before wrapping: {type(model).__name__} contains the model to give to attach")
    compiled = next((name for name, module in model.named_modules() if hasattr(module, "_orig_mod")), None)
    if compiled is not None:
        raise InputError(f"attach before compiling: {compiled} is compiled already")


def _set_memory(model: nn.Module, memory: Any, inserted: list[Attached]) -> None:
    from ..models.branch import set_memory  # loads timm, which hooks do not need

    try:
        set_memory(model, memory)
    except InputError:
        insert.remove(model, inserted)
        raise


def _verify(model: nn.Module, example: Example | None, before: Dataflow, inserted: list[Attached]) -> None:
    """Run the example again, and remove what was inserted if a layer does not run as it should."""
    try:
        after = run(model, example)
        fault = next((fault for layer in inserted if (fault := _fault(layer, before, after))), None)
    except InputError as error:
        fault = str(error)
    if fault:
        insert.remove(model, inserted)
        raise InputError(f"attention cannot be attached: {fault}. The model is as it was")


def _fault(layer: Attached, before: Dataflow, after: Dataflow) -> str | None:
    """Return what is wrong with an inserted layer, from the data flow before and after."""
    calls, name = after.by_name(), layer.name
    if (count := len(calls.get(name, []))) != 1:
        return f"{name} runs {count} times, since a module there runs its children itself"
    call = calls[f"{name}.layer" if isinstance(layer.layer, Blend) else name][0]
    given = after.values[call.inputs[0]].shape
    returned = None if call.output is None else after.values[call.output].shape
    if returned != given:
        return f"{name} returns {returned} for a map of {given}"
    inside = f"{layer.owner_name}." if layer.owner_name else ""
    of_block = {k: len(v) for k, v in before.by_name().items() if k.startswith(inside)}
    if layer.insertion.how == "block" and any(len(calls.get(k, [])) != n for k, n in of_block.items()):
        return (
            f"{layer.owner_name or type(layer.owner).__name__} does not compute what its class did when it was listed"
        )
    return None
