"""The passes of a residual block's end over channels_last maps; Triton, for CUDA.

A program takes CHANNELS channels of the lower half and those of the upper half that they are shuffled
with, as tiles (PIXELS, CHANNELS, 2): before the shuffle the last two dimensions are two runs of channels,
after it they are one, so that both sides are read and written in whole runs. Tiles follow one another
along the pixels of a sample: ``tiles`` of them, the chunk of the program's number. What a pass computes
stands in :mod:`...block_reference`.
"""
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's types describe neither the arguments of a launch nor the operators of a tensor.

import triton
import triton.language as tl

from .tail_gates import attended, gate_coefficients, gate_gradient, gradient_coefficients


@triton.jit
def _locate(half, chunks, tiles, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the sample of the program, its chunk, the chunk's first pixel, and its first channel of each half."""
    program = tl.program_id(0)
    blocks = tl.cdiv(half, CHANNELS)
    base = program % blocks * CHANNELS
    chunk = program // blocks % chunks
    sample = (program // blocks // chunks).to(tl.int64)
    return sample, chunk, chunk.to(tl.int64) * tiles * PIXELS, base


@triton.jit
def halves(base, half, CHANNELS: tl.constexpr):
    """Return the channels (CHANNELS, 2) of a program, and which of them exist."""
    c = base + tl.arange(0, CHANNELS)[:, None] + tl.zeros((1, 2), tl.int32)
    return c + half * tl.arange(0, 2)[None, :], c < half


@triton.jit
def load_tile(
    source, left, base, half, shuffled: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Load a tile (PIXELS, CHANNELS, 2) whose first pixel is at ``source``; ``left`` pixels exist."""
    if shuffled:
        pixel = tl.arange(0, PIXELS)[:, None]
        c = 2 * base + tl.arange(0, 2 * CHANNELS)[None, :]
        run = tl.load(source + pixel * (2 * half) + c, (pixel < left) & (c < 2 * half), 0.0)
        return tl.reshape(run, (PIXELS, CHANNELS, 2))
    pixel = tl.arange(0, PIXELS)[:, None, None]
    c, valid = halves(base, half, CHANNELS)
    return tl.load(source + pixel * (2 * half) + c[None, :, :], (pixel < left) & valid[None, :, :], 0.0)


@triton.jit
def store_tile(
    target, values, left, base, half, shuffled: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    values = values.to(target.dtype.element_ty)
    if shuffled:
        pixel = tl.arange(0, PIXELS)[:, None]
        c = 2 * base + tl.arange(0, 2 * CHANNELS)[None, :]
        run = tl.reshape(values, (PIXELS, 2 * CHANNELS))
        tl.store(target + pixel * (2 * half) + c, run, (pixel < left) & (c < 2 * half))
    else:
        pixel = tl.arange(0, PIXELS)[:, None, None]
        c, valid = halves(base, half, CHANNELS)
        tl.store(target + pixel * (2 * half) + c[None, :, :], values, (pixel < left) & valid[None, :, :])


@triton.jit
def statistics_rows(
    u, partial, half, pixels, chunks, tiles, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Write the statistics about the mean of the first tile, which is within a few deviations of the mean."""
    sample, chunk, begin, base = _locate(half, chunks, tiles, PIXELS, CHANNELS)
    channels = 2 * half
    c = 2 * base + tl.arange(0, 2 * CHANNELS)
    valid = (c < channels)[None, :]
    pixel = tl.arange(0, PIXELS)[:, None]
    u += (sample * pixels + begin) * channels
    at = u + pixel * channels + c[None, :]
    left = pixels - begin
    mask = (pixel < left) & valid
    value = tl.load(at, mask, 0.0).to(tl.float32)
    pivot = tl.sum(value, 0) / tl.minimum(left, PIXELS).to(tl.float32)
    d = tl.where(mask, value - pivot[None, :], 0.0)
    total = d
    square = d * d
    for tile in range(1, tiles):
        at += PIXELS * channels
        mask = (pixel + tile * PIXELS < left) & valid
        value = tl.load(at, mask, 0.0).to(tl.float32)
        d = tl.where(mask, value - pivot[None, :], 0.0)
        total += d
        square += d * d
    count = tl.minimum(left, tiles * PIXELS).to(tl.float32)
    rest = tl.sum(total, 0) / count
    variance = tl.sum(square, 0) / count - rest * rest
    to = partial + (sample * chunks + chunk) * 3 * channels + c
    tl.store(to, pivot, c < channels)
    tl.store(to + channels, rest, c < channels)
    tl.store(to + 2 * channels, tl.where(variance < 0.0, 0.0, variance), c < channels)


@triton.jit
def output_rows(
    u, shortcut, out, coefficients, gain, half, pixels, chunks, tiles,
    shuffle: tl.constexpr, add: tl.constexpr, relu: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    sample, _, begin, base = _locate(half, chunks, tiles, PIXELS, CHANNELS)
    c, valid = halves(base, half, CHANNELS)
    pivot, scale, shift, slope, offset = gate_coefficients(coefficients, sample, c, 2 * half, valid)
    for _tile in range(tiles):
        left = pixels - begin
        first = (sample * pixels + begin) * (2 * half)
        d = load_tile(u + first, left, base, half, False, PIXELS, CHANNELS).to(tl.float32) - pivot[None, :, :]
        y = attended(d, scale[None, :, :], shift[None, :, :], slope[None, :, :], offset[None, :, :], gain)
        if add:
            y += load_tile(shortcut + first, left, base, half, shuffle, PIXELS, CHANNELS).to(tl.float32)
        if relu:
            y = tl.where(y < 0.0, 0.0, y)
        store_tile(out + first, y, left, base, half, shuffle, PIXELS, CHANNELS)
        begin += PIXELS


@triton.jit
def sums_rows(
    grad, u, out, dshortcut, raw, coefficients, gain, half, pixels, chunks, tiles,
    shuffle: tl.constexpr, relu: tl.constexpr, separate: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write the sums of q, q d, h and h d, and the gradient that ReLU let through, if it is asked for."""
    sample, chunk, begin, base = _locate(half, chunks, tiles, PIXELS, CHANNELS)
    c, valid = halves(base, half, CHANNELS)
    channels = 2 * half
    pivot, scale, shift, slope, offset = gate_coefficients(coefficients, sample, c, 2 * half, valid)
    sum_q = tl.zeros((PIXELS, CHANNELS, 2), tl.float32)
    sum_qd = tl.zeros((PIXELS, CHANNELS, 2), tl.float32)
    sum_h = tl.zeros((PIXELS, CHANNELS, 2), tl.float32)
    sum_hd = tl.zeros((PIXELS, CHANNELS, 2), tl.float32)
    for _tile in range(tiles):
        left = pixels - begin
        first = (sample * pixels + begin) * channels
        g = load_tile(grad + first, left, base, half, shuffle, PIXELS, CHANNELS).to(tl.float32)
        if relu:
            y = load_tile(out + first, left, base, half, shuffle, PIXELS, CHANNELS).to(tl.float32)
            g = tl.where(y <= 0.0, 0.0, g)
        if separate:
            store_tile(dshortcut + first, g, left, base, half, shuffle, PIXELS, CHANNELS)
        d = load_tile(u + first, left, base, half, False, PIXELS, CHANNELS).to(tl.float32) - pivot[None, :, :]
        # Both are 0 beyond the plane, as g is.
        q, h = gate_gradient(g, d, scale[None, :, :], shift[None, :, :], slope[None, :, :], offset[None, :, :], gain)
        sum_q += q
        sum_qd += q * d
        sum_h += h
        sum_hd += h * d
        begin += PIXELS
    at = raw + (sample * chunks + chunk) * 4 * channels + c
    tl.store(at, tl.sum(sum_q, 0), valid)
    tl.store(at + channels, tl.sum(sum_qd, 0), valid)
    tl.store(at + 2 * channels, tl.sum(sum_h, 0), valid)
    tl.store(at + 3 * channels, tl.sum(sum_hd, 0), valid)


@triton.jit
def gradient_rows(
    grad, u, out, du, coefficients, gain, half, pixels, chunks, tiles,
    shuffle: tl.constexpr, relu: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    sample, _, begin, base = _locate(half, chunks, tiles, PIXELS, CHANNELS)
    c, valid = halves(base, half, CHANNELS)
    pivot, scale, shift, slope, offset = gate_coefficients(coefficients, sample, c, 2 * half, valid)
    by_mean, by_distance = gradient_coefficients(coefficients, sample, c, 2 * half, valid)
    for _tile in range(tiles):
        left = pixels - begin
        first = (sample * pixels + begin) * (2 * half)
        d = load_tile(u + first, left, base, half, False, PIXELS, CHANNELS).to(tl.float32) - pivot[None, :, :]
        g = load_tile(grad + first, left, base, half, shuffle, PIXELS, CHANNELS).to(tl.float32)
        if relu:
            y = load_tile(out + first, left, base, half, shuffle, PIXELS, CHANNELS).to(tl.float32)
            g = tl.where(y <= 0.0, 0.0, g)
        q, h = gate_gradient(g, d, scale[None, :, :], shift[None, :, :], slope[None, :, :], offset[None, :, :], gain)
        dx = scale[None, :, :] * q + slope[None, :, :] * h + by_mean[None, :, :] + by_distance[None, :, :] * d
        store_tile(du + first, dx, left, base, half, False, PIXELS, CHANNELS)
        begin += PIXELS
