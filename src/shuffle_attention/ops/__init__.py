"""What computes: the registered ops and the reference that defines them."""

from .block import block_tail
from .layer import shuffle_attention
from .library import load_kernels

__all__ = ["block_tail", "kernels_loaded", "shuffle_attention"]

kernels_loaded = load_kernels()
