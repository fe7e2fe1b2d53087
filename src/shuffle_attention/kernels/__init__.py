"""The ops of the layer and of a residual block's end: their reference, their schema and their backends."""

from torch import Tensor

from . import reference
from .backends import BACKENDS
from .reference import use_reference
from .schema import LIBRARY, shuffle_attention

__all__ = ["LIBRARY", "has_kernels", "shuffle_attention", "use_reference"]

for backend in BACKENDS:
    backend.register(LIBRARY)


def has_kernels(x: Tensor, whole: bool = True) -> bool:
    """Return whether a backend has kernels for the device and type of ``x``, beyond the reference.

    Args:
        x: Map.
        whole: Whether the block tail has both BatchNorm and attention; backends may lack kernels without one of them.
    """
    return not reference.in_use and any(backend.supports(x, whole) for backend in BACKENDS)
