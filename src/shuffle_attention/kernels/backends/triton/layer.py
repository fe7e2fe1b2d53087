"""Triton kernels of the layer for CUDA.

With ``d = x - mean``, the gate of a plane is ``sigmoid(slope * d + offset)``:

    channel branch    slope = 0                          offset = cweight * mean + cbias
    spatial branch    slope = sweight * gn_weight * rstd, offset = sweight * gn_bias + sbias

so that both branches are one computation with other coefficients. In the backward, with
``t = grad * x * gate * (1 - gate)`` and T0, T1 the means over a plane of ``t`` and of ``t * d * rstd``,

    channel branch    dx = gate * grad + cweight * T0
    spatial branch    dx = gate * grad + slope * (t - T0 - d * rstd * T1)

and the gradients of the parameters are sums of T0, T1 and T0 * mean over samples and groups. A map is
read once from memory and written once, in the backward it and the gradient are read once each; what does
not fit a program's registers is read again, from the cache. Sums and gates are float32.
"""
# pyright: reportArgumentType=false
# Triton's types do not describe the arguments of a launch.

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tail_rows import halves, load_tile, store_tile

_TILE = 4096  # values that a program holds of each map
_CHANNELS = 32  # channels of each half that a program takes in channels_last: 64 bytes of a row in half precision


@triton.jit
def _coefficients(parameters, channel, mean, rstd, n, inside):
    """Return slope and offset of the gates of channels, cweight, and which channels have a channel gate."""
    r = channel % (2 * n)
    j = r % n
    cw = tl.load(parameters + j, inside, 0.0)
    cb = tl.load(parameters + n + j, inside, 0.0)
    sw = tl.load(parameters + 2 * n + j, inside, 0.0)
    sb = tl.load(parameters + 3 * n + j, inside, 0.0)
    gw = tl.load(parameters + 4 * n + j, inside, 0.0)
    gb = tl.load(parameters + 5 * n + j, inside, 0.0)
    by_channel = r < n
    slope = tl.where(by_channel, 0.0, sw * gw * rstd)
    offset = tl.where(by_channel, cw * mean + cb, sw * gb + sb)
    return slope, offset, tl.where(by_channel, cw, 0.0), by_channel


@triton.jit
def _moments(total, square, first, pixels, eps):
    """Return mean and reciprocal deviation from sums about the first pixel, so that a large mean costs no digits."""
    shift = total / pixels
    return first + shift, 1.0 / tl.sqrt(tl.maximum(square / pixels - shift * shift, 0.0) + eps)


@triton.jit
def _tangent(value, grad, d, slope, offset, gain):
    """Return the gate with its gain, and the gradient of its argument."""
    gate = 1.0 / (1.0 + tl.exp(-(slope * d + offset)))
    return gain * gate, gain * grad * value * gate * (1.0 - gate)


@triton.jit
def _gradient(gate, t, grad, d, slope, cweight, rstd, by_channel, t0, t1):
    through = tl.where(by_channel, cweight * t0, slope * (t - t0 - d * rstd * t1))
    return gate * grad + through


@triton.jit
def _planes(
    x, grad, out, sums, parameters, eps, gain, rows, channels, n, pixels,
    shuffle: tl.constexpr, backward: tl.constexpr, whole: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run NCHW, forward or backward: each program takes ROWS planes, in one tile or in tiles of BLOCK pixels."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    channel = (row % channels).to(tl.int32)
    half = channels // 2
    partner = row
    if shuffle:
        partner = row - channel + channel % half * 2 + channel // half
    here = row[:, None] * pixels
    there = partner[:, None] * pixels
    pixel = tl.arange(0, BLOCK)[None, :]
    first = tl.load(x + row * pixels, inside, 0.0).to(tl.float32)
    mask = inside[:, None] & (pixel < pixels)
    value = tl.load(x + here + pixel, mask, 0.0).to(tl.float32)
    if whole:
        mean = tl.sum(value, 1) / pixels
        d = tl.where(mask, value - mean[:, None], 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(d * d, 1) / pixels + eps)
    else:
        total = tl.zeros((ROWS,), tl.float32)
        square = tl.zeros((ROWS,), tl.float32)
        for start in range(0, pixels, BLOCK):
            part = inside[:, None] & (start + pixel < pixels)
            v = tl.load(x + here + start + pixel, part, 0.0).to(tl.float32)
            shifted = tl.where(part, v - first[:, None], 0.0)
            total += tl.sum(shifted, 1)
            square += tl.sum(shifted * shifted, 1)
        mean, rstd = _moments(total, square, first, pixels, eps)
    slope, offset, cweight, by_channel = _coefficients(parameters, channel, mean, rstd, n, inside)
    slope, offset, mean = slope[:, None], offset[:, None], mean[:, None]
    if not backward:
        for start in range(0, pixels, BLOCK):
            part = inside[:, None] & (start + pixel < pixels)
            v = value
            if not whole:
                v = tl.load(x + here + start + pixel, part, 0.0).to(tl.float32)
            gate = gain / (1.0 + tl.exp(-(slope * (v - mean) + offset)))
            tl.store(out + there + start + pixel, (v * gate).to(out.dtype.element_ty), part)
    else:
        t0 = tl.zeros((ROWS,), tl.float32)
        t1 = tl.zeros((ROWS,), tl.float32)
        g = tl.load(grad + there + pixel, mask, 0.0).to(tl.float32)
        for start in range(0, pixels, BLOCK):
            part = inside[:, None] & (start + pixel < pixels)
            v = value
            if not whole:
                v = tl.load(x + here + start + pixel, part, 0.0).to(tl.float32)
                g = tl.load(grad + there + start + pixel, part, 0.0).to(tl.float32)
            _, t = _tangent(v, g, v - mean, slope, offset, gain)
            t0 += tl.sum(t, 1)
            t1 += tl.sum(t * (v - mean), 1) * rstd
        tl.store(sums + row, tl.where(by_channel, t0 * tl.sum(mean, 1), t1), inside)
        tl.store(sums + rows + row, t0, inside)
        t0 = (t0 / pixels)[:, None]
        t1 = (t1 / pixels)[:, None]
        for start in range(0, pixels, BLOCK):
            part = inside[:, None] & (start + pixel < pixels)
            v = value
            if not whole:
                v = tl.load(x + here + start + pixel, part, 0.0).to(tl.float32)
                g = tl.load(grad + there + start + pixel, part, 0.0).to(tl.float32)
            d = v - mean
            gate, t = _tangent(v, g, d, slope, offset, gain)
            dx = _gradient(gate, t, g, d, slope, cweight[:, None], rstd[:, None], by_channel[:, None], t0, t1)
            tl.store(out + here + start + pixel, dx.to(out.dtype.element_ty), part)


@triton.jit
def _rows(
    x, grad, out, sums, parameters, eps, gain, batch, channels, n, pixels,
    shuffle: tl.constexpr, backward: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Run channels_last: each program takes CHANNELS of the lower half and their partners of the upper half.

    Partners are neighbours on the shuffled side, so that both sides are read and written in whole rows.
    """
    sample = tl.program_id(1).to(tl.int64)
    base = tl.program_id(0) * CHANNELS
    half = channels // 2
    c, valid = halves(base, half, CHANNELS)
    x += sample * pixels * channels
    out += sample * pixels * channels
    pixel = tl.arange(0, PIXELS)[:, None, None]
    first = tl.load(x + c, valid, 0.0).to(tl.float32)
    total = tl.zeros((CHANNELS, 2), tl.float32)
    square = tl.zeros((CHANNELS, 2), tl.float32)
    for start in range(0, pixels, PIXELS):
        left = pixels - start
        value = load_tile(x + start * channels, left, base, half, False, PIXELS, CHANNELS).to(tl.float32)
        shifted = tl.where((pixel < left) & valid[None, :, :], value - first[None, :, :], 0.0)
        total += tl.sum(shifted, 0)
        square += tl.sum(shifted * shifted, 0)
    mean, rstd = _moments(total, square, first, pixels, eps)
    slope, offset, cweight, by_channel = _coefficients(parameters, c, mean, rstd, n, valid)
    slope, offset = slope[None, :, :], offset[None, :, :]
    if not backward:
        for start in range(0, pixels, PIXELS):
            left = pixels - start
            value = load_tile(x + start * channels, left, base, half, False, PIXELS, CHANNELS).to(tl.float32)
            y = gain * value / (1.0 + tl.exp(-(slope * (value - mean[None, :, :]) + offset)))
            store_tile(out + start * channels, y, left, base, half, shuffle, PIXELS, CHANNELS)
    else:
        grad += sample * pixels * channels
        t0 = tl.zeros((CHANNELS, 2), tl.float32)
        t1 = tl.zeros((CHANNELS, 2), tl.float32)
        for start in range(0, pixels, PIXELS):
            left = pixels - start
            value = load_tile(x + start * channels, left, base, half, False, PIXELS, CHANNELS).to(tl.float32)
            g = load_tile(grad + start * channels, left, base, half, shuffle, PIXELS, CHANNELS).to(tl.float32)
            d = value - mean[None, :, :]
            _, t = _tangent(value, g, d, slope, offset, gain)
            t0 += tl.sum(t, 0)
            t1 += tl.sum(t * d, 0) * rstd
        at = sums + sample * channels + c
        tl.store(at, tl.where(by_channel, t0 * mean, t1), valid)
        tl.store(at + batch * channels, t0, valid)
        t0, t1 = (t0 / pixels)[None, :, :], (t1 / pixels)[None, :, :]
        cweight, by_channel = cweight[None, :, :], by_channel[None, :, :]
        for start in range(0, pixels, PIXELS):
            left = pixels - start
            value = load_tile(x + start * channels, left, base, half, False, PIXELS, CHANNELS).to(tl.float32)
            g = load_tile(grad + start * channels, left, base, half, shuffle, PIXELS, CHANNELS).to(tl.float32)
            d = value - mean[None, :, :]
            gate, t = _tangent(value, g, d, slope, offset, gain)
            dx = _gradient(gate, t, g, d, slope, cweight, rstd[None, :, :], by_channel, t0, t1)
            store_tile(out + start * channels, dx, left, base, half, False, PIXELS, CHANNELS)


def forward(x: Tensor, *arguments) -> Tensor:
    """Return the attended map; arguments as those of the op."""
    parameters, settings = list(arguments[:6]), arguments[6:]
    out, _ = _run(x, None, parameters, *settings)
    return out


def backward(grad: Tensor, x: Tensor, *arguments) -> tuple[Tensor, ...]:
    """Return the gradients of the map and of the six parameters; arguments as those of the op."""
    parameters, settings = list(arguments[:6]), arguments[6:]
    dx, sums = _run(x, grad, parameters, *settings)
    _, _, sw, _, gw, gb = (p.float() for p in parameters)
    n = sw.numel()
    # (scale or shift, branch, n): the first branch's are those of the channel gate, the second's of the spatial one.
    scale, shift = sums.view(2, -1, 2, n).sum(1)
    gradients = (  # clones, since outputs of an op may not share memory
        scale[0].clone(),
        shift[0].clone(),
        gw.flatten() * scale[1] + gb.flatten() * shift[1],
        shift[1].clone(),
        sw.flatten() * scale[1],
        sw.flatten() * shift[1],
    )
    return dx, *(g.to(p.dtype).view_as(p) for g, p in zip(gradients, parameters, strict=True))


def _run(
    x: Tensor, grad: Tensor | None, parameters: list[Tensor], eps: float, shuffle: bool, gain: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the output, or the gradient of the map if ``grad`` is given, and the sums of each plane."""
    batch, channels = x.shape[:2]
    pixels = x.numel() // (batch * channels)
    n = parameters[0].numel()
    in_rows = is_in_rows(x)
    dense = in_layout(x, in_rows)
    out = torch.empty_like(dense)
    sums = torch.empty(2, batch * channels if grad is not None else 0, dtype=torch.float32, device=x.device)
    packed = torch.cat([p.reshape(-1).float() for p in parameters])
    upstream = dense if grad is None else in_layout(grad, in_rows)
    backward = grad is not None
    if in_rows:
        tile = min(triton.next_power_of_2(pixels), _TILE // _CHANNELS)
        grid = (triton.cdiv(channels // 2, _CHANNELS), batch)
        _rows[grid](
            dense, upstream, out, sums, packed, eps, gain, batch, channels, n, pixels,
            shuffle=shuffle, backward=backward, PIXELS=tile, CHANNELS=_CHANNELS,
        )  # fmt: skip
    else:
        block = min(triton.next_power_of_2(pixels), _TILE)
        rows = _TILE // block
        _planes[(triton.cdiv(batch * channels, rows),)](
            dense, upstream, out, sums, packed, eps, gain, batch * channels, channels, n, pixels,
            shuffle=shuffle, backward=backward, whole=block >= pixels, ROWS=rows, BLOCK=block,
        )  # fmt: skip
    return (out if out.stride() == torch.empty_like(x).stride() else torch.empty_like(x).copy_(out)), sums


def is_in_rows(x: Tensor) -> bool:
    """Return whether the channels of a position are neighbours in memory: channels_last."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def in_layout(x: Tensor, in_rows: bool) -> Tensor:
    """Return the map, copied if it does not have the layout."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if in_rows else x.contiguous()
