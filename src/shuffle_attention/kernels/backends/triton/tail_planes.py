"""The passes of a residual block's end over NCHW maps; Triton, for CUDA.

A program takes ROWS neighbouring planes, tile by tile of BLOCK pixels: ``tiles`` of them, the chunk of its
number. Pixels are counted in units of MULTIPLE, which divides them, so that the compiler knows how the
planes are aligned. What a pass computes stands in :mod:`...block_reference`.
"""
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's types describe neither the arguments of a launch nor the operators of a tensor.

import triton
import triton.language as tl

from .tail_gates import attended, gate_coefficients, gate_gradient, gradient_coefficients


@triton.jit
def _locate(rows, half, chunks, tiles, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the rows of the program, which of them exist, their sample and channel, its chunk and first pixel."""
    program = tl.program_id(0)
    row = (program // chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    chunk = program % chunks
    return row, row < rows, row // (2 * half), row % (2 * half), chunk, chunk.to(tl.int64) * tiles * BLOCK


@triton.jit
def _shuffled(row, c, half, shuffle: tl.constexpr):
    return row - c + c % half * 2 + c // half if shuffle else row


@triton.jit
def statistics_planes(
    u, partial, rows, half, units, chunks, tiles, MULTIPLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Write the statistics about the mean of the first tile, which is within a few deviations of the mean."""
    row, inside, sample, c, chunk, begin = _locate(rows, half, chunks, tiles, ROWS, BLOCK)
    pixels = units * MULTIPLE
    pixel = begin + tl.arange(0, BLOCK)[None, :]
    u += row[:, None] * pixels
    mask = inside[:, None] & (pixel < pixels)
    value = tl.load(u + pixel, mask, 0.0).to(tl.float32)
    pivot = tl.sum(value, 1) / tl.minimum(pixels - begin, BLOCK).to(tl.float32)
    d = tl.where(mask, value - pivot[:, None], 0.0)
    total = d
    square = d * d
    for tile in range(1, tiles):
        there = pixel + tile * BLOCK
        mask = inside[:, None] & (there < pixels)
        value = tl.load(u + there, mask, 0.0).to(tl.float32)
        d = tl.where(mask, value - pivot[:, None], 0.0)
        total += d
        square += d * d
    count = tl.minimum(pixels - begin, tiles * BLOCK).to(tl.float32)
    rest = tl.sum(total, 1) / count
    variance = tl.sum(square, 1) / count - rest * rest
    channels = 2 * half
    at = partial + (sample * chunks + chunk) * 3 * channels + c
    tl.store(at, pivot, inside)
    tl.store(at + channels, rest, inside)
    tl.store(at + 2 * channels, tl.where(variance < 0.0, 0.0, variance), inside)


@triton.jit
def output_planes(
    u, shortcut, out, coefficients, gain, rows, half, units, chunks, tiles,
    shuffle: tl.constexpr, add: tl.constexpr, relu: tl.constexpr,
    MULTIPLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, inside, sample, c, _, begin = _locate(rows, half, chunks, tiles, ROWS, BLOCK)
    pixels = units * MULTIPLE
    pixel = begin + tl.arange(0, BLOCK)[None, :]
    here = row[:, None] * pixels
    there = _shuffled(row, c, half, shuffle)[:, None] * pixels
    pivot, scale, shift, slope, offset = gate_coefficients(coefficients, sample, c, 2 * half, inside)
    for tile in range(tiles):
        at = pixel + tile * BLOCK
        mask = inside[:, None] & (at < pixels)
        d = tl.load(u + here + at, mask, 0.0).to(tl.float32) - pivot[:, None]
        y = attended(d, scale[:, None], shift[:, None], slope[:, None], offset[:, None], gain)
        if add:
            y += tl.load(shortcut + there + at, mask, 0.0).to(tl.float32)
        if relu:
            y = tl.where(y < 0.0, 0.0, y)
        tl.store(out + there + at, y.to(out.dtype.element_ty), mask)


@triton.jit
def sums_planes(
    grad, u, out, dshortcut, raw, coefficients, gain, rows, half, units, chunks, tiles,
    shuffle: tl.constexpr, relu: tl.constexpr, separate: tl.constexpr,
    MULTIPLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the sums of q, q d, h and h d, and the gradient that ReLU let through, if it is asked for."""
    row, inside, sample, c, chunk, begin = _locate(rows, half, chunks, tiles, ROWS, BLOCK)
    pixels = units * MULTIPLE
    pixel = begin + tl.arange(0, BLOCK)[None, :]
    here = row[:, None] * pixels
    there = _shuffled(row, c, half, shuffle)[:, None] * pixels
    channels = 2 * half
    pivot, scale, shift, slope, offset = gate_coefficients(coefficients, sample, c, 2 * half, inside)
    sum_q = tl.zeros((ROWS,), tl.float32)
    sum_qd = tl.zeros((ROWS,), tl.float32)
    sum_h = tl.zeros((ROWS,), tl.float32)
    sum_hd = tl.zeros((ROWS,), tl.float32)
    for tile in range(tiles):
        at = pixel + tile * BLOCK
        mask = inside[:, None] & (at < pixels)
        d = tl.load(u + here + at, mask, 0.0).to(tl.float32) - pivot[:, None]
        g = tl.load(grad + there + at, mask, 0.0).to(tl.float32)
        if relu:
            g = tl.where(tl.load(out + there + at, mask, 0.0).to(tl.float32) <= 0.0, 0.0, g)
        if separate:
            tl.store(dshortcut + there + at, g.to(dshortcut.dtype.element_ty), mask)
        # Both are 0 beyond the plane, as g is.
        q, h = gate_gradient(g, d, scale[:, None], shift[:, None], slope[:, None], offset[:, None], gain)
        sum_q += tl.sum(q, 1)
        sum_qd += tl.sum(q * d, 1)
        sum_h += tl.sum(h, 1)
        sum_hd += tl.sum(h * d, 1)
    at = raw + (sample * chunks + chunk) * 4 * channels + c
    tl.store(at, sum_q, inside)
    tl.store(at + channels, sum_qd, inside)
    tl.store(at + 2 * channels, sum_h, inside)
    tl.store(at + 3 * channels, sum_hd, inside)


@triton.jit
def gradient_planes(
    grad, u, out, du, coefficients, gain, rows, half, units, chunks, tiles,
    shuffle: tl.constexpr, relu: tl.constexpr, MULTIPLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, inside, sample, c, _, begin = _locate(rows, half, chunks, tiles, ROWS, BLOCK)
    pixels = units * MULTIPLE
    pixel = begin + tl.arange(0, BLOCK)[None, :]
    here = row[:, None] * pixels
    there = _shuffled(row, c, half, shuffle)[:, None] * pixels
    pivot, scale, shift, slope, offset = gate_coefficients(coefficients, sample, c, 2 * half, inside)
    by_mean, by_distance = gradient_coefficients(coefficients, sample, c, 2 * half, inside)
    for tile in range(tiles):
        at = pixel + tile * BLOCK
        mask = inside[:, None] & (at < pixels)
        d = tl.load(u + here + at, mask, 0.0).to(tl.float32) - pivot[:, None]
        g = tl.load(grad + there + at, mask, 0.0).to(tl.float32)
        if relu:
            g = tl.where(tl.load(out + there + at, mask, 0.0).to(tl.float32) <= 0.0, 0.0, g)
        q, h = gate_gradient(g, d, scale[:, None], shift[:, None], slope[:, None], offset[:, None], gain)
        dx = scale[:, None] * q + slope[:, None] * h + by_mean[:, None] + by_distance[:, None] * d
        tl.store(du + here + at, dx.to(du.dtype.element_ty), mask)
