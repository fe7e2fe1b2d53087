"""What computes: the registered ops and the reference that defines them."""

import torch
from torch import Tensor

from . import block_tail as block  # noqa: F401 - its op is registered by that
from . import reference
from .backends.cpu import HAS_TRITON, load_kernels
from .layer import shuffle_attention
from .reference import use_reference

__all__ = ["has_kernels", "kernels_loaded", "shuffle_attention", "use_reference"]

kernels_loaded = load_kernels()


def has_kernels(x: Tensor) -> bool:
    """Returns whether the ops have kernels for the device and type of ``x``, and do not run on their reference."""
    if reference.in_use:
        return False
    if x.device.type == "cuda":
        return HAS_TRITON and x.dtype != torch.float64
    return x.device.type == "cpu" and kernels_loaded
