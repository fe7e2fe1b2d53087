"""What computes: the registered ops and the reference that defines them."""

from .layer import shuffle_attention

__all__ = ["shuffle_attention"]
