"""Any attention such that it starts as the identity."""

from typing import Any

import torch
from torch import Tensor, nn


class Blend(nn.Module):
    """Any attention A such that it starts as the identity: x + alpha * (A(x) - x), with alpha learnt and 0 at first.

    Args:
        layer: The attention A, from (B, C, *spatial) to the same shape.
        device: Device of alpha.
        dtype: Type of alpha.
    """

    def __init__(self, layer: nn.Module, *, device: Any = None, dtype: Any = None):
        super().__init__()
        self.layer = layer
        self.alpha = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))  # one dimension: not decayed by timm

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha * (self.layer(x) - x)).to(x.dtype)
