"""What computes: the registered ops and the reference that defines them."""

from .layer import shuffle_attention
from .library import load_kernels

__all__ = ["shuffle_attention"]

load_kernels()
