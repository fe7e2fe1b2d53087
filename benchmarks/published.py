"""The attention as its authors wrote it, for comparison."""

import torch
from torch import Tensor

from shuffle_attention import ShuffleAttention


class Published(ShuffleAttention):
    """The attention in PyTorch's own operations, one after the other.

    Source: Zhang & Yang, arXiv:2102.00240, section 3 and figure 2.
    """

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *size = x.shape
        first, second = x.reshape(batch * self.groups, -1, *size).chunk(2, dim=1)
        first = first * torch.sigmoid(self.cweight * first.mean((2, 3), keepdim=True) + self.cbias)
        second = second * torch.sigmoid(self.sweight * self.gn(second) + self.sbias)
        y = torch.cat([first, second], dim=1).reshape(batch, 2, channels // 2, *size)
        return y.transpose(1, 2).reshape(x.shape)
