"""Run a `sanet` command with one more attention: ``constant``, the factor that gates of shuffle attention start with.

    python benchmarks/constant_attention.py detect compare --attention none,shuffle,constant ...

It has no parameters. What it does to a training is the effect of a smaller residual branch, and no attention.
"""

import sys

import torch
from torch import Tensor, nn

from shuffle_attention.attention import AttentionSpec, register_attention
from shuffle_attention.sanet.cli import main

FACTOR = torch.sigmoid(torch.ones(())).item()  # gates start with weight 0 and bias 1


class Constant(nn.Module):
    """Multiply a map by sigmoid(1)."""

    def forward(self, x: Tensor) -> Tensor:
        return FACTOR * x


if __name__ == "__main__":
    register_attention(AttentionSpec(name="constant", build=lambda channels: Constant()))
    sys.exit(main())
