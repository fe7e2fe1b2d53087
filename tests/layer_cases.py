"""Shapes, layouts and random values for the layer."""

import torch
from torch import Tensor

from shuffle_attention import ShuffleAttention

# Shape, groups.
CASES = {
    "even": ((2, 16, 8, 8), 2),
    "odd": ((3, 24, 7, 5), 3),
    "one-pixel": ((2, 16, 1, 1), 4),
    "one-pixel-high": ((2, 8, 1, 9), 1),
    "one-group": ((1, 6, 3, 3), 1),
    "most-groups": ((2, 12, 4, 3), 6),
    "sequence": ((2, 16, 11), 4),
    "volume": ((2, 8, 3, 4, 5), 2),
    "no-images": ((0, 16, 4, 4), 2),
    "no-pixels": ((2, 16, 0, 4), 2),
    "published": ((1, 256, 6, 6), 64),
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels-last": lambda x: x.to(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()]),
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "expanded": lambda x: x[:1].expand(x.shape),
}


def random_layer(channels: int, groups: int, dtype=torch.float64, **options) -> ShuffleAttention:
    layer = ShuffleAttention(channels, groups, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return layer


def random_map(shape, dtype=torch.float64, layout="contiguous") -> Tensor:
    x = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    return LAYOUTS[layout](x.to(dtype))


def parameters(layer: ShuffleAttention) -> list[Tensor]:
    return [layer.cweight, layer.cbias, layer.sweight, layer.sbias, layer.gn.weight, layer.gn.bias]
