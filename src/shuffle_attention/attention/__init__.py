"""The family of attention layers by name, each with the defaults of its paper."""

import difflib
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from ..errors import InputError, asked_for
from .shuffle import ShuffleAttention, SpatialGroupEnhance, largest_groups
from .shuffle_ablation import ShuffleAttentionAblation

__all__ = [
    "ShuffleAttention",
    "ShuffleAttentionAblation",
    "SpatialGroupEnhance",
    "attention_names",
    "create_attention",
    "published_start",
]


def attention_names() -> list[str]:
    """Returns the names that :func:`create_attention` takes, in the order of the paper's tables."""
    return list(_FAMILY)


def create_attention(name: str, channels: int, *, device=None, dtype=None, **options: Any) -> nn.Module:
    """Returns an attention layer that maps (B, channels, H, W) to the same shape.

    All of them stand on the residual branch, after its last norm and before the addition. Layers that timm
    has are timm's, with the defaults of their papers where timm has others. With C channels:

    =========== ================================ =========================== ============================
    name        layer                            parameters                  timm's default, not taken
    =========== ================================ =========================== ============================
    ``none``    ``nn.Identity``                  0
    ``se``      timm's ``SEModule``              2 C h + h + C, h = C/16     h a multiple of 8
    ``cbam``    timm's ``CbamModule``            2 C h + h + C + 100         no biases in the MLP
    ``sge``     :class:`SpatialGroupEnhance`     2 groups
    ``eca``     timm's ``EcaModule``             k, see below
    ``gc``      timm's ``GlobalContext``         2 C h + 3 h + 2 C + 1       h = C/8, scales, does not add
    ``shuffle`` :class:`ShuffleAttention`        3 C / groups
    =========== ================================ =========================== ============================

    h is rounded and at least 1. ``eca`` has a kernel of k = (log2(C) + 1) / 2 rounded down and then up to an odd
    number, at least 3: 5, 5, 5 and 7 for the stages of a ResNet-50 (its released weights have 3 in the first).
    ``gc`` starts as the identity, and the spatial gate of ``cbam`` at one half, as in the code that their authors
    published. ``shuffle`` with ``norm=False``, or with ``gate="conv1x1"`` or ``"none"``, is a
    :class:`ShuffleAttentionAblation`, for the experiments of its paper.

    Args:
        name: One of :func:`attention_names`.
        channels: Channels of the map.
        device: Where the parameters are made.
        dtype: Type of the parameters.
        **options: Those of the layer's class; ``kernel_size`` of ``eca`` replaces the size that follows from the
            channels. ``groups="auto"`` for ``shuffle`` and ``sge`` takes the largest number of groups up to 64
            that fits.

    Raises:
        InputError: If there is no such layer, or it does not have such an option.

    Sources: SE: Hu et al., arXiv:1709.01507, section 3 (reduction 16). CBAM: Woo et al., arXiv:1807.06521, section 3
    (reduction 16, 7x7). SGE: Li et al., arXiv:1905.09646 (64 groups). ECA: Wang et al., arXiv:1910.03151, section 3
    (gamma 2, b 1). GC: Cao et al., arXiv:1904.11492, section 3 (transform by addition, ratio 1/16). SA: Zhang & Yang,
    arXiv:2102.00240, sections 3 and 4 (64 groups).

    Example:
        >>> create_attention("se", 256, rd_ratio=1 / 8)(torch.randn(2, 256, 14, 14)).shape
        torch.Size([2, 256, 14, 14])
    """
    layer = _FAMILY.get(name) if isinstance(name, str) else None
    if layer is None:
        close = difflib.get_close_matches(str(name), _FAMILY, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"no attention {name!r}; {hint}there are {', '.join(_FAMILY)}")
    if not isinstance(channels, int) or channels < 1:
        raise InputError(f"channels must be a positive whole number, got channels={channels!r}")
    taken = layer.options()
    unknown = sorted(options.keys() - taken)
    if unknown:
        has = f"it takes {', '.join(taken)}" if taken else "it takes none"
        raise InputError(f"attention {name!r} has no option {', '.join(unknown)}; {has}")
    if options.get("groups") == "auto":
        options["groups"] = largest_groups(channels, parts=2 if name == "shuffle" else 1)
    with asked_for(attention=name, channels=channels, **options):
        module = layer.load()(channels, device=device, dtype=dtype, **layer.defaults | options)
    published_start(name, module)
    return module


def published_start(name: str, module: nn.Module) -> None:
    """Gives a layer of the family the start that its authors give it, in place, where timm's is another.

    For a network that initialises all its convolutions alike after they are made.
    """
    _FAMILY[name].start(module)


@dataclass(frozen=True)
class _Layer:
    """How a layer is made.

    Attributes:
        load: Returns its class, which is imported then and not before.
        defaults: Defaults of its paper, where those of the class are others.
        start: Sets its published start, where that of the class is another.
    """

    load: Callable[[], Callable[..., nn.Module]]
    defaults: dict[str, Any] = field(default_factory=dict)
    start: Callable[[Any], None] = lambda module: None

    def options(self) -> list[str]:
        """Returns the names of what the layer can be told beyond its channels, device and type."""
        return [name for name in inspect.signature(self.load()).parameters if name not in _NO_OPTIONS]


# The last is an argument of timm's GlobalContext that it never reads.
_NO_OPTIONS = ("channels", "device", "dtype", "init_last_zero")


def _timm(name: str) -> Callable[..., nn.Module]:
    from timm.layers import get_attn

    return cast(Callable[..., nn.Module], get_attn(name))


def _eca() -> Callable[..., nn.Module]:
    EcaModule = _timm("eca")

    @functools.wraps(EcaModule, updated=())
    def build(channels: int, **options: Any) -> nn.Module:
        size = options.get("kernel_size", 3)
        if size < 1 or size % 2 == 0:
            raise InputError(f"kernel_size must be a positive odd number, got {size}")
        # timm takes a size that it is given only where it does not know the channels.
        return EcaModule(None if "kernel_size" in options else channels, **options)

    return build


def _start_cbam(module: Any) -> None:
    nn.init.zeros_(module.spatial.conv.bn.weight)


def _start_gc(module: Any) -> None:
    module.reset_parameters()
    if module.mlp_add is not None:
        nn.init.zeros_(module.mlp_add.fc2.bias)


def _shuffle(
    channels: int,
    groups: int = 64,
    *,
    eps: float = 1e-5,
    norm: bool = True,
    gate: Any = "affine",
    shuffle: bool = True,
    device=None,
    dtype=None,
) -> ShuffleAttention | ShuffleAttentionAblation:
    """The layer itself, or, where a part of it is left out or replaced, the class that can do without."""
    settings: dict[str, Any] = {"eps": eps, "shuffle": shuffle, "device": device, "dtype": dtype}
    if norm and gate == "affine":
        return ShuffleAttention(channels, groups, **settings)
    return ShuffleAttentionAblation(channels, groups, norm=norm, gate=gate, **settings)


def _identity(channels: int, *, device=None, dtype=None) -> nn.Module:
    return nn.Identity()


_FAMILY = {
    "none": _Layer(lambda: _identity),
    "se": _Layer(lambda: _timm("se"), {"rd_divisor": 1}),
    "cbam": _Layer(lambda: _timm("cbam"), {"mlp_bias": True}, _start_cbam),
    "sge": _Layer(lambda: SpatialGroupEnhance),
    "eca": _Layer(_eca),
    "gc": _Layer(lambda: _timm("gc"), {"rd_ratio": 1 / 16, "fuse_add": True, "fuse_scale": False}, _start_gc),
    "shuffle": _Layer(lambda: _shuffle),
}
