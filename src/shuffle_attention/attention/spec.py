"""The registry of attention layers: everything that the package knows about a layer stands in its ``AttentionSpec``."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ..errors import InputError, asked_for, unknown
from .blend import Blend

_FACTORY = ("device", "dtype")


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """An attention layer that maps (B, C, H, W) to the same shape, and what the package must know of it.

    Attributes:
        name: Name of the layer in functions and commands.
        build: Make the layer: ``build(channels, *, device, dtype, **options)``, or fewer of these arguments. Imports
            beyond PyTorch belong inside it.
        options: Names of the options of ``build``. None takes them from its signature; if it is still None, ``build``
            takes any.
        defaults: Values of options where the paper's differ from those of ``build``.
        published_start: Initialise a layer as its authors do, in place; a model calls it after it has initialised all
            its convolutions. None keeps the initialisation of ``build``.
        identity: Return a layer of ``build`` such that it computes the identity at its start, from the layer and the
            options that it was made with; None if it cannot. By default none can.
        as_saved: Return a layer with the start that a state dict has, from the layer and its entries there; None if the
            layer has that start. Needed if ``identity`` changes the entries.
        group_parts: Parts that each group of channels is split into; None for a layer without groups. ``groups="auto"``
            follows from it.
        decays: Whether weight decay applies to the parameters of the layer.
        factors: Return what a layer multiplies each value of a map x by, ``factors(layer, x)``: gates times gain,
            before a shuffle, (B, C, *spatial) or a shape that expands to it. None for a layer that computes something
            else, which is the default.
        classes: Classes of the modules that ``build`` makes, or their full names if only ``build`` imports them; needed
            if ``decays`` is False. The first one stands for the spec where a callable is expected.
        resnet: Return timm's name of the ResNet with this layer, for a depth. None if it is ``attention_resnet``.
        parameters: Number of parameters for C channels, as text.
        notes: Choices that the paper leaves open, and defaults of timm that differ.
        source: Citation.
        arxiv: Number of the paper on arXiv; tables are in this order.
    """

    name: str
    build: Callable[..., nn.Module]
    options: tuple[str, ...] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    published_start: Callable[[Any], None] | None = None
    identity: Callable[..., nn.Module | None] = lambda layer, **options: None
    as_saved: Callable[[Any, Mapping[str, Tensor]], nn.Module | None] = lambda layer, entries: None
    group_parts: int | None = None
    decays: bool = True
    factors: Callable[[Any, Tensor], Tensor | None] = lambda layer, x: None
    classes: tuple[type[nn.Module] | str, ...] = ()
    resnet: Callable[[int], str] | None = None
    parameters: str = ""
    notes: str = ""
    source: str = ""
    arxiv: str = ""

    def __post_init__(self):
        if not self.classes and isinstance(self.build, type):
            object.__setattr__(self, "classes", (self.build,))
        if self.options is None:
            taken = _arguments(self.build)
            names = None if taken is None else tuple(name for name in taken[1:] if name not in _FACTORY)
            object.__setattr__(self, "options", names)
        if not (self.decays or self.classes):
            raise InputError(f"attention {self.name!r} has decays=False, which needs the classes of its modules")


@runtime_checkable
class Gated(Protocol):
    """A layer whose gates can be shown: it multiplies a map by ``gain_value`` times a gate per value.

    :class:`ShuffleAttention` documents the methods.
    """

    channels: int
    groups: int
    gain_value: float

    def gates(self, x: Tensor) -> Tensor: ...
    def spatial_channels(self) -> Tensor: ...
    def destinations(self) -> Tensor: ...
    def reset_parameters(self) -> None: ...


_SPECS: dict[str, AttentionSpec] = {}
Attention = str | AttentionSpec | Callable[..., nn.Module]


def attention_names() -> list[str]:
    """Return the names of all registered layers, in the order of their papers."""
    return list(_SPECS)


def register_attention(spec: AttentionSpec) -> AttentionSpec:
    """Register a layer, so that its name is accepted wherever the name of an attention is.

    Raises:
        InputError: If the name is not an identifier, or another layer has it.

    Example:
        >>> spec = register_attention(AttentionSpec(name="tanh", build=lambda channels: nn.Tanh()))
        >>> create_attention("tanh", 64)
        Tanh()
    """
    if not spec.name.isidentifier():
        raise InputError(f"the name of an attention must be letters, digits and underscores, got {spec.name!r}")
    if _SPECS.setdefault(spec.name, spec) != spec:
        raise InputError(f"there is an attention {spec.name!r} already; register this one under another name")
    return _SPECS[spec.name]


def get_spec(attention: Attention) -> AttentionSpec:
    """Return the spec of an attention.

    Args:
        attention: Name of a registered layer; a spec, which need not be registered; or a callable that makes a layer
            for a number of channels, such as a class of modules.

    Raises:
        InputError: If the name is unknown, or the argument is none of these.
    """
    if isinstance(attention, AttentionSpec):
        return attention
    if isinstance(attention, nn.Module):
        raise InputError(
            f"an attention is made for each number of channels: give a class or a function of the channels, not one "
            f"layer {type(attention).__name__}"
        )
    if callable(attention):
        by_class = (spec for spec in _SPECS.values() if attention in spec.classes[:1])
        name = getattr(getattr(attention, "func", attention), "__name__", type(attention).__name__)
        return next(by_class, None) or AttentionSpec(name=name, build=attention)
    if isinstance(attention, str) and attention in _SPECS:
        return _SPECS[attention]
    raise unknown("attention", attention, _SPECS)


def create_attention(
    attention: Attention, channels: int, *, device: Any = None, dtype: Any = None, **options: Any
) -> nn.Module:
    """Create an attention layer, which maps (B, channels, H, W) to the same shape, with its published start.

    docs/networks.md lists the layers with their parameters, defaults and sources. ``shuffle`` with ``norm=False``,
    ``gate="conv1x1"`` or ``gate="none"`` is a :class:`ShuffleAttentionAblation`.

    Args:
        attention: Name of a layer (:func:`attention_names`), its :class:`AttentionSpec`, or a callable that makes a
            layer for a number of channels.
        channels: Number of channels of the map.
        device: Device of the parameters.
        dtype: Type of the parameters.
        **options: Options of the layer. ``groups="auto"`` takes the largest number of groups up to 64 that fits.

    Raises:
        InputError: If there is no such layer, or it does not take an option or its value.

    Example:
        >>> create_attention("se", 256, rd_ratio=1 / 8)(torch.randn(2, 256, 14, 14)).shape
        torch.Size([2, 256, 14, 14])
    """
    spec = get_spec(attention)
    module = _make(spec, spec.build, channels, options, device, dtype)
    if not isinstance(module, nn.Module):
        raise InputError(f"attention {spec.name!r} must be a torch.nn.Module, got {type(module).__name__}")
    if spec.published_start is not None:
        spec.published_start(module)
    return module


def create_identity(
    attention: Attention, channels: int, *, device: Any = None, dtype: Any = None, **options: Any
) -> nn.Module:
    """Create an attention layer that computes the identity at its start, as a :class:`Blend` if need be.

    Arguments and errors are those of :func:`create_attention`.
    """
    layer = create_attention(attention, channels, device=device, dtype=dtype, **options)
    return as_identity(layer, get_spec(attention), **options)


def as_identity(layer: nn.Module, spec: AttentionSpec | None, **options: Any) -> nn.Module:
    """Return a layer with the parameters of this one that computes the identity at its start.

    Args:
        layer: Layer with its published start, or one that is identical at its start.
        spec: Its spec, if it has one.
        **options: Options that it was made with.
    """
    identity = layer if isinstance(layer, Blend) else spec and spec.identity(layer, **options)
    return identity or blended(layer)


def blended(layer: nn.Module) -> Blend:
    """Return a :class:`Blend` of a layer, with alpha of the device and type of the layer's parameters."""
    like = next((p for p in layer.parameters() if p.is_floating_point()), None)
    return Blend(layer) if like is None else Blend(layer, device=like.device, dtype=like.dtype)


def spec_of(layer: nn.Module) -> AttentionSpec | None:
    """Return the spec of a layer whose class a registered spec names."""
    names = {c: f"{c.__module__}.{c.__qualname__}" for c in type(layer).__mro__}
    known = {*names, *names.values()}
    return next((spec for spec in _SPECS.values() if not known.isdisjoint(spec.classes)), None)


def factors(layer: nn.Module, x: Tensor) -> Tensor | None:
    """Return the factor of each value of a map by an attention layer, before its shuffle.

    Args:
        layer: Layer with a spec, or a :class:`Blend` of one.
        x: Its input, (B, C, *spatial).

    Returns:
        Factors of a shape that expands to that of ``x``; None if the layer does not multiply its input by factors.
    """
    if isinstance(layer, Blend):
        inner = None if getattr(layer.layer, "shuffle", False) else factors(layer.layer, x)
        return None if inner is None else 1 + layer.alpha * (inner - 1)
    spec = spec_of(layer)
    return None if spec is None else spec.factors(layer, x)


def gate_names(model: nn.Module) -> set[str]:
    """Return the names of all parameters of a model's attention layers to which weight decay does not apply.

    Args:
        model: Any model; attached layers count as well as those of the models of this package.
    """
    layers = ((name, module) for name, module in model.named_modules() if not getattr(spec_of(module), "decays", True))
    return {f"{name}.{p}" if name else p for name, module in layers for p, _ in module.named_parameters()}


def fitting_groups(channels: int, parts: int = 2) -> list[int]:
    """Return every number of groups that ``channels`` can be split into, in rising order.

    Args:
        channels: Number of channels of the map.
        parts: Number of parts that each group is split into: 2 for the branches of shuffle attention, which needs a
            multiple of ``2 * groups`` channels; 1 for spatial group-wise enhancement.
    """
    return [g for g in range(1, channels // parts + 1) if channels % (parts * g) == 0]


def largest_groups(channels: int, at_most: int = 64, parts: int = 2) -> int:
    """Return the largest number of groups up to ``at_most`` that fits.

    Raises:
        InputError: If none fits.
    """
    if at_most < 1:
        raise InputError(f"groups must be at least 1, got {at_most}")
    fitting = [g for g in fitting_groups(channels, parts) if g <= at_most]
    if not fitting:
        raise InputError(f"channels must be a positive multiple of {parts}, got channels={channels}")
    return fitting[-1]


def check_groups(channels: int, groups: int, parts: int = 2) -> None:
    """Raise an InputError that names the nearest groups that fit, if ``groups`` does not fit ``channels``."""
    if channels < parts or channels % parts:
        kind = "positive even number" if parts == 2 else "positive number"
        raise InputError(f"channels must be a {kind}, got channels={channels}")
    if groups < 1 or channels % (parts * groups):
        fitting = fitting_groups(channels, parts)
        below = [g for g in fitting if g < groups][-1:]
        above = [g for g in fitting if g > groups][:1]
        multiple = "2 * groups" if parts == 2 else "groups"
        raise InputError(
            f"channels must be a multiple of {multiple}, got channels={channels} and groups={groups}; "
            f"the nearest groups that fit: {' and '.join(map(str, below + above))}"
        )


def _make(
    spec: AttentionSpec, make: Callable[..., Any], channels: int, options: dict[str, Any], device: Any, dtype: Any
) -> Any:
    if not isinstance(channels, int) or channels < 1:
        raise InputError(f"channels must be a positive whole number, got channels={channels!r}")
    unknown = [] if spec.options is None else sorted(options.keys() - spec.options)
    if unknown:
        has = f"it takes {', '.join(spec.options)}" if spec.options else "it takes none"
        raise InputError(f"attention {spec.name!r} has no option {', '.join(unknown)}; {has}")
    if options.get("groups") == "auto" and spec.group_parts is not None:
        options = options | {"groups": largest_groups(channels, parts=spec.group_parts)}
    taken = _arguments(make)
    given = {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
    inside = given if taken is None else {name: value for name, value in given.items() if name in taken}
    with asked_for(attention=spec.name, channels=channels, **options):
        module = make(channels, **inside, **{**spec.defaults, **options})
    return module.to(**given) if given and isinstance(module, nn.Module) else module


def _arguments(function: Callable[..., Any]) -> tuple[str, ...] | None:
    """Return the names of a function's arguments; None if it takes any."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some compiled functions have no signature
        return None
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else tuple(parameters)
