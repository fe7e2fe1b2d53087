"""Launch the Triton kernels of a residual block's end for CUDA.

Forward, a pass over ``u`` leaves the statistics of planes, and a second writes the output. Backward, a pass over the
gradient, the output and ``u`` leaves four sums per plane and writes the gradient of the shortcut, which a second pass
reads instead of the first two. In between, kernels of a few microseconds pool planes and channels. The passes are in
:mod:`.tail_planes` (NCHW) and :mod:`.tail_rows` (channels_last), the pooling in :mod:`.tail_gates`. Sums are float32,
their order is fixed, and nothing is tuned at run time.
"""
# pyright: reportArgumentType=false, reportCallIssue=false
# Triton's types do not describe the arguments of a launch.

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from . import tail_planes as planes
from . import tail_rows as rows
from .layer import in_layout, is_in_rows
from .tail_gates import (
    COEFFICIENTS,
    NUMBERS,
    attention_gradients,
    merge_statistics,
    merge_sums,
    pool_gradients,
    pool_statistics,
)


@dataclass(frozen=True)
class Sizes:
    """How the work is cut.

    In NCHW a tile is a plane or ``values`` of one, 16 for each thread of up to 8 warps; planes of less than
    ``warp_values`` share a tile of one warp, since what a thread must know of a plane costs it as much as a value.
    In channels_last a tile has ``values_in_rows``, 8 a thread, and is ``channels`` of each half wide: whole
    lines of 128 bytes in half precision. A program takes up to ``most_tiles`` one after the other, as long as
    there remain ``programs``, several times what a large GPU runs at once: the last to finish are few then, and
    the statistics of chunks are small beside the map.
    """

    values: int = 4096
    warp_values: int = 512
    values_in_rows: int = 2048
    channels: int = 64
    most_tiles: int = 16
    programs: int = 2048
    pooled_samples: int = 128
    pooled_channels: int = 8  # a sector of 32 bytes


SIZES = Sizes()


class _Plan:
    """How the map ``x`` is cut, by its layout and shape."""

    def __init__(self, x: Tensor):
        self.sizes = sizes = SIZES
        self.batch, self.channels = x.shape[:2]
        self.half = self.channels // 2
        self.pixels = x.numel() // (self.batch * self.channels)
        self.in_rows = is_in_rows(x)
        longest = triton.next_power_of_2(self.pixels)
        if self.in_rows:
            width = min(triton.next_power_of_2(self.half), sizes.channels)
            self.block = min(longest, max(sizes.values_in_rows // (2 * width), 1))
            groups = self.batch * triton.cdiv(self.half, width)
            self.tile = {"PIXELS": self.block, "CHANNELS": width}
            self.extent = (self.half, self.pixels)
            warps = 2 * width * self.block // (sizes.warp_values // 2)
        else:
            self.block = min(longest, sizes.values)
            count = max(sizes.warp_values // self.block, 1)
            groups = triton.cdiv(self.batch * self.channels, count)
            multiple = math.gcd(self.pixels, 16)
            self.tile = {"MULTIPLE": multiple, "ROWS": count, "BLOCK": self.block}
            self.extent = (self.batch * self.channels, self.half, self.pixels // multiple)
            warps = count * self.block // sizes.warp_values
        self.warps = max(1, min(warps, 8))
        per_plane = triton.cdiv(self.pixels, self.block)
        self.tiles = max(1, min(groups * per_plane // sizes.programs, sizes.most_tiles, per_plane))
        self.chunks = triton.cdiv(per_plane, self.tiles)
        self.programs = groups * self.chunks

    def arrange(self, x: Tensor) -> Tensor:
        return in_layout(x, self.in_rows)

    def over_map(self, of_planes, of_rows, *arguments, **constants) -> None:
        """Launch the pass for the map's layout."""
        kernel = of_rows if self.in_rows else of_planes
        kernel[(self.programs,)](
            *arguments, *self.extent, self.chunks, self.tiles, **constants, **self.tile, num_warps=self.warps
        )

    def merge(self, kernel, partial: Tensor, merged: Tensor, *arguments) -> None:
        """Launch a kernel that merges chunks into planes."""
        chunks, width = (min(triton.next_power_of_2(c), most) for c, most in ((self.chunks, 16), (self.channels, 64)))
        kernel[(self.batch * triton.cdiv(self.channels, width),)](
            partial, merged, self.channels, *arguments, CHUNKS=chunks, CHANNELS=width
        )

    def over_channels(self, kernel, *arguments, **constants) -> None:
        """Launch a kernel that pools planes to channels."""
        width = min(self.sizes.pooled_channels, triton.next_power_of_2(self.channels))
        samples = min(self.sizes.pooled_samples, triton.next_power_of_2(self.batch))
        kernel[(triton.cdiv(self.channels, width),)](*arguments, **constants, SAMPLES=samples, CHANNELS=width)

    def numbers(self, like: Tensor, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=like.device)


def _pool(
    plan: _Plan, statistics: Tensor, norm, attention: list[Tensor], norm_eps: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return BatchNorm's moments, and the constants of channels and planes that follow from the statistics."""
    weight, bias, mean, var = (p if p is None else p.contiguous() for p in norm)
    moments, numbers = plan.numbers(statistics, 2, plan.channels), plan.numbers(statistics, NUMBERS, plan.channels)
    coefficients = plan.numbers(statistics, plan.batch, COEFFICIENTS.value, plan.channels)
    by_batch = mean is None or var is None
    given = (weight, weight) if by_batch else (mean, var)
    plan.over_channels(
        pool_statistics, statistics, moments, numbers, coefficients, weight, bias, *given, *attention,
        norm_eps, eps, plan.batch, plan.channels, attention[0].numel(), by_batch=by_batch,
    )  # fmt: skip
    return moments, numbers, coefficients


def forward(
    u: Tensor,
    shortcut: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    *arguments,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs of the op; arguments as those of the op."""
    attention, (norm_eps, eps, shuffle, relu, gain) = list(arguments[:6]), (*arguments[6:], 1.0)[:5]
    plan = _Plan(u)
    attention = [p.contiguous() for p in attention]
    dense = plan.arrange(u)
    statistics = plan.numbers(u, plan.batch, 3, plan.channels)
    partial = statistics if plan.chunks == 1 else plan.numbers(u, plan.batch, plan.chunks, 3, plan.channels)
    plan.over_map(planes.statistics_planes, rows.statistics_rows, dense, partial)
    if plan.chunks > 1:
        length = plan.tiles * plan.block
        plan.merge(merge_statistics, partial, statistics, plan.pixels, plan.chunks, length)
    norm = (weight, bias, mean, var)
    moments, _, coefficients = _pool(plan, statistics, norm, attention, norm_eps, eps)
    out = torch.empty_like(dense)
    added = dense if shortcut is None else plan.arrange(shortcut)
    plan.over_map(
        planes.output_planes, rows.output_rows, dense, added, out, coefficients, gain,
        shuffle=shuffle, add=shortcut is not None, relu=relu,
    )  # fmt: skip
    return _like(u, out), statistics, moments


def backward(
    grad: Tensor,
    u: Tensor,
    out: Tensor | None,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    *arguments,
) -> tuple[Tensor, ...]:
    """Return the outputs of the backward op; arguments as those of the op."""
    attention, (norm_eps, eps, shuffle, has_shortcut, gain) = list(arguments[:6]), (*arguments[6:], 1.0)[:5]
    separate = out is not None and has_shortcut
    plan = _Plan(u)
    attention = [p.contiguous() for p in attention]
    dense, upstream, n = plan.arrange(u), plan.arrange(grad), attention[0].numel()
    activated = upstream if out is None else plan.arrange(out)
    norm = (weight, bias, mean, var)
    _, numbers, coefficients = _pool(plan, statistics, norm, attention, norm_eps, eps)

    partial = plan.numbers(u, plan.batch, plan.chunks, 4, plan.channels)
    dshortcut = torch.empty_like(dense) if separate else u.new_empty(0)
    plan.over_map(
        planes.sums_planes, rows.sums_rows, upstream, dense, activated, dshortcut, partial, coefficients, gain,
        shuffle=shuffle, relu=out is not None, separate=separate,
    )  # fmt: skip
    sums = partial
    if plan.chunks > 1:
        sums = plan.numbers(u, plan.batch, 4, plan.channels)
        plan.merge(merge_sums, partial, sums, plan.chunks)
    plane_sums, channel_sums = plan.numbers(u, plan.batch, 2, plan.channels), plan.numbers(u, 2, plan.channels)
    dweight, dbias = plan.numbers(u, plan.channels), plan.numbers(u, plan.channels)
    plan.over_channels(
        pool_gradients, sums, statistics, numbers, coefficients, plane_sums, channel_sums, dweight, dbias, eps,
        float(plan.batch * plan.pixels), plan.batch, plan.channels, n, plan.pixels,
        by_batch=mean is None or var is None,
    )  # fmt: skip
    du = torch.empty_like(dense)
    plan.over_map(
        planes.gradient_planes, rows.gradient_rows, dshortcut if separate else upstream, dense, activated, du,
        coefficients, gain, shuffle=shuffle, relu=out is not None and not separate,
    )  # fmt: skip
    dattention = [plan.numbers(u, n) for _ in attention]
    _, _, sweight, _, gn_weight, gn_bias = attention
    width = min(triton.next_power_of_2(n), 32)
    attention_gradients[(triton.cdiv(n, width),)](
        channel_sums, sweight, gn_weight, gn_bias, *dattention, plan.channels, n, GROUPS=32, WIDTH=width
    )
    gradients = zip([dweight, dbias, *dattention], [weight, bias, *attention], strict=True)
    return (
        _like(u, du),
        _like(u, dshortcut) if separate else dshortcut,
        *(g.to(p.dtype).view_as(p) for g, p in gradients),
    )


def _like(u: Tensor, dense: Tensor) -> Tensor:
    """Return the map in the strides that the op promises."""
    return dense if dense.stride() == torch.empty_like(u).stride() else torch.empty_like(u).copy_(dense)
