"""Launch the Triton kernels of both ops for CUDA.

The layer is one kernel: a map is read once from memory and written once, in the backward pass it and the gradient are
read once each; what does not fit a program's registers is read again, from the cache.

The block tail, forward: a pass over ``u`` leaves the statistics of planes, and a second writes the output. Backward, a
pass over the gradient, the output and ``u`` leaves four sums per plane and writes the gradient of the shortcut, which a
second pass reads instead of the first two. In between, kernels of a few microseconds pool planes and channels.

The passes are in :mod:`.passes`, the formulas and the pooling in :mod:`.formulas`. Sums are float32, their order is
fixed, and nothing is tuned at run time.
"""
# pyright: reportArgumentType=false, reportCallIssue=false
# Triton's types do not describe the arguments of a launch.

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from . import formulas, passes


@dataclass(frozen=True)
class Sizes:
    """How the work is cut.

    In NCHW a tile is a plane or ``values`` of one, 16 for each thread of up to 8 warps; planes of less than
    ``warp_values`` share a tile of one warp, since what a thread must know of a plane costs it as much as a value.
    In NHWC a tile has ``values_in_nhwc``, and is ``channels`` of each half wide: whole lines of 128 bytes in half
    precision. A thread keeps up to a dozen numbers for each of its channels. With ``thread_values`` of 8, the backward
    passes need 160 to 250 registers, and a multiprocessor runs one program at a time; with 4 it runs two to four.
    ``stages`` tiles are in flight at once, in shared memory. A program takes up to ``most_tiles`` one after the other,
    as long as there remain ``programs``, several times what a large GPU runs at once: the last to finish are few then,
    and the statistics of chunks are small beside the map.
    """

    values: int = 4096
    warp_values: int = 512
    values_in_nhwc: int = 1024
    thread_values: int = 4
    stages: int = 3
    channels: int = 64
    layer_channels: int = 32
    most_tiles: int = 16
    programs: int = 2048
    pooled_samples: int = 128
    pooled_channels: int = 8  # a sector of 32 bytes


SIZES = Sizes()


class _Plan:
    """How the map ``x`` is cut, by its layout and shape; for the layer, a program has whole planes."""

    def __init__(self, x: Tensor, whole_planes: bool = False):
        self.sizes = sizes = SIZES
        self.batch, self.channels = x.shape[:2]
        half = self.channels // 2
        self.pixels = x.numel() // (self.batch * self.channels)
        self.nhwc = not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
        longest = triton.next_power_of_2(self.pixels)
        if self.nhwc:
            group = min(triton.next_power_of_2(half), sizes.layer_channels if whole_planes else sizes.channels)
            self.block = min(longest, max(sizes.values_in_nhwc // (2 * group), 1))
            groups, multiple = self.batch * triton.cdiv(half, group), 1
            warps = 2 * group * self.block // (32 * sizes.thread_values)
        else:
            self.block = min(longest, sizes.values)
            group = max(sizes.warp_values // self.block, 1)
            groups, multiple = triton.cdiv(self.batch * self.channels, group), math.gcd(self.pixels, 16)
            warps = group * self.block // sizes.warp_values
        self.warps = max(1, min(warps, 8))
        per_plane = triton.cdiv(self.pixels, self.block)
        self.tiles = max(1, min(groups * per_plane // sizes.programs, sizes.most_tiles, per_plane))
        if whole_planes:
            self.tiles = per_plane
        self.chunks = triton.cdiv(per_plane, self.tiles)
        self.programs = groups * self.chunks
        self.cut = self.batch * self.channels, half, self.pixels // multiple, self.chunks, self.tiles
        self.tile = {
            "NHWC": self.nhwc,
            "MULTIPLE": multiple,
            "GROUP": group,
            "BLOCK": self.block,
            "STAGES": sizes.stages if self.nhwc else 1,
        }

    def arrange(self, x: Tensor) -> Tensor:
        """Return the map, copied if it does not have the layout."""
        return x.movedim(1, -1).contiguous().movedim(-1, 1) if self.nhwc else x.contiguous()

    def over_map(self, kernel, *arguments, **constants) -> None:
        kernel[(self.programs,)](*arguments, *self.cut, **constants, **self.tile, num_warps=self.warps)

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
    moments = torch.empty((2, plan.channels), dtype=torch.float64, device=statistics.device)
    numbers = plan.numbers(statistics, formulas.NUMBERS, plan.channels)
    coefficients = plan.numbers(statistics, plan.batch, formulas.COEFFICIENTS.value, plan.channels)
    by_batch = mean is None or var is None
    given = (weight, weight) if by_batch else (mean, var)
    plan.over_channels(
        formulas.pool_statistics, statistics, moments, numbers, coefficients, weight, bias, *given, *attention,
        norm_eps, eps, plan.batch, plan.channels, attention[0].numel(), by_batch=by_batch,
    )  # fmt: skip
    return moments, numbers, coefficients


def shuffle_attention(x: Tensor, *arguments) -> Tensor:
    """Return the attended map; arguments as those of the op."""
    attention, (eps, shuffle, gain) = [p.contiguous() for p in arguments[:6]], (*arguments[6:], 1.0)[:3]
    plan = _Plan(x, whole_planes=True)
    dense = plan.arrange(x)
    out = torch.empty_like(dense)
    plan.over_map(
        passes.layer, dense, dense, out, out, *attention, eps, gain, attention[0].numel(),
        shuffle=shuffle, backward=False, whole=plan.tiles == 1,
    )  # fmt: skip
    return _like(x, out)


def shuffle_attention_backward(grad: Tensor, x: Tensor, *arguments) -> tuple[Tensor, ...]:
    """Return the gradients of the map and of the six parameters; arguments as those of the op."""
    attention, (eps, shuffle, gain) = [p.contiguous() for p in arguments[:6]], (*arguments[6:], 1.0)[:3]
    plan = _Plan(x, whole_planes=True)
    dense = plan.arrange(x)
    dx, plane_sums = torch.empty_like(dense), plan.numbers(x, plan.batch, 2, plan.channels)
    plan.over_map(
        passes.layer, dense, plan.arrange(grad), dx, plane_sums, *attention, eps, gain, attention[0].numel(),
        shuffle=shuffle, backward=True, whole=plan.tiles == 1,
    )  # fmt: skip
    return _like(x, dx), *_attention_gradients(plan, plane_sums.sum(0), attention)


def block_tail(
    u: Tensor,
    shortcut: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    *arguments,
    over: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs of the op, the first of them written over ``u`` if asked for; arguments as those of the op."""
    attention, (norm_eps, eps, shuffle, relu, gain) = list(arguments[:6]), (*arguments[6:], 1.0)[:5]
    plan = _Plan(u)
    attention = [p.contiguous() for p in attention]
    dense = plan.arrange(u)
    statistics = plan.numbers(u, plan.batch, 3, plan.channels)
    partial = statistics if plan.chunks == 1 else plan.numbers(u, plan.batch, plan.chunks, 3, plan.channels)
    plan.over_map(passes.statistics, dense, partial)
    if plan.chunks > 1:
        length = plan.tiles * plan.block
        plan.merge(formulas.merge_statistics, partial, statistics, plan.pixels, plan.chunks, length)
    norm = (weight, bias, mean, var)
    moments, _, coefficients = _pool(plan, statistics, norm, attention, norm_eps, eps)
    out = dense if over else torch.empty_like(dense)
    added = dense if shortcut is None else plan.arrange(shortcut)
    if over and added.untyped_storage()._cdata == out.untyped_storage()._cdata and added.data_ptr() != out.data_ptr():
        added = added.clone()  # it would be written before it is read
    plan.over_map(
        passes.output, dense, added, out, coefficients, gain,
        shuffle=shuffle, add=shortcut is not None, relu=relu,
    )  # fmt: skip
    if over:
        return u if out.data_ptr() == u.data_ptr() else u.copy_(out), statistics, moments
    return _like(u, out), statistics, moments


def block_tail_(u: Tensor, shortcut: Tensor | None, *arguments) -> None:
    """Write the output over ``u``, without shuffle; arguments as those of the op."""
    if arguments[2] is None or arguments[3] is None:
        raise RuntimeError("block_tail_ needs the statistics of BatchNorm")
    block_tail(u, shortcut, *arguments[:12], False, *arguments[12:], over=True)


def block_tail_backward(
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
        passes.gradient_sums, upstream, dense, activated, dshortcut, partial, coefficients, gain,
        shuffle=shuffle, relu=out is not None, separate=separate,
    )  # fmt: skip
    sums = partial
    if plan.chunks > 1:
        sums = plan.numbers(u, plan.batch, 4, plan.channels)
        plan.merge(formulas.merge_sums, partial, sums, plan.chunks)
    plane_sums, channel_sums = plan.numbers(u, plan.batch, 2, plan.channels), plan.numbers(u, 2, plan.channels)
    dweight, dbias = plan.numbers(u, plan.channels), plan.numbers(u, plan.channels)
    plan.over_channels(
        formulas.pool_gradients, sums, statistics, numbers, coefficients, plane_sums, channel_sums, dweight, dbias, eps,
        float(plan.batch * plan.pixels), plan.batch, plan.channels, n, plan.pixels,
        by_batch=mean is None or var is None,
    )  # fmt: skip
    du = torch.empty_like(dense)
    plan.over_map(
        passes.gradient, dshortcut if separate else upstream, dense, activated, du,
        coefficients, gain, shuffle=shuffle, relu=out is not None and not separate,
    )  # fmt: skip
    return (
        _like(u, du),
        _like(u, dshortcut) if separate else dshortcut,
        dweight.to(weight.dtype).view_as(weight),
        dbias.to(bias.dtype).view_as(bias),
        *_attention_gradients(plan, channel_sums, attention),
    )


def _attention_gradients(plan: _Plan, channel_sums: Tensor, attention: list[Tensor]) -> list[Tensor]:
    _, _, sweight, _, gn_weight, gn_bias = attention
    n = sweight.numel()
    gradients = [plan.numbers(channel_sums, n) for _ in attention]
    width = min(triton.next_power_of_2(n), 32)
    formulas.attention_gradients[(triton.cdiv(n, width),)](
        channel_sums, sweight, gn_weight, gn_bias, *gradients, plan.channels, n, GROUPS=32, WIDTH=width
    )
    return [g.to(p.dtype).view_as(p) for g, p in zip(gradients, attention, strict=True)]


def _like(u: Tensor, dense: Tensor) -> Tensor:
    """Return the map in the strides that the op promises."""
    return dense if dense.stride() == torch.empty_like(u).stride() else torch.empty_like(u).copy_(dense)
