"""The Triton passes over maps, for CUDA: each once, for NCHW and NHWC (channels_last).

A program takes some planes, GROUP of them in NCHW, GROUP channels of each half of one image in NHWC, tile by tile of
BLOCK pixels: ``tiles`` of them, the chunk of its number. Only the first functions know the layout. What belongs to
planes has the shape (GROUP,) in NCHW and (GROUP, 2) in NHWC, a tile (GROUP, BLOCK) or (BLOCK, GROUP, 2); the halves are
neighbours after the shuffle, so that NHWC is read and written in whole runs on both sides. Pixels are counted in units
of MULTIPLE, which divides them, so that the compiler knows how planes are aligned in NCHW. While a tile is computed,
STAGES - 1 others are on their way to shared memory.
"""
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false
# Triton's types describe neither the arguments of a launch nor the operators of a tensor.
# ruff: noqa: RET505 - a branch on a constant is compiled alone only if the other one is its `else`

import triton
import triton.language as tl

from .formulas import (
    attended,
    chunk_moments,
    exponent_of,
    gate_coefficients,
    gate_gradient,
    gate_line,
    gradient_coefficients,
    normalised_z,
    parameters_of,
    reciprocal_deviation,
    through_statistics,
    weighted_sum,
)


@triton.jit
def _locate(planes, half, chunks, tiles, NHWC: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Return sample, channel and existence of the program's planes, its first channel, its chunk and first pixel."""
    program = tl.program_id(0)
    if NHWC:
        blocks = tl.cdiv(half, GROUP)
        first = program % blocks * GROUP
        chunk = program // blocks % chunks
        sample = (program // blocks // chunks).to(tl.int64)
        k = first + tl.arange(0, GROUP)[:, None] + tl.zeros((1, 2), tl.int32)
        return sample, k + half * tl.arange(0, 2)[None, :], k < half, first, chunk, chunk.to(tl.int64) * tiles * BLOCK
    else:
        plane = (program // chunks).to(tl.int64) * GROUP + tl.arange(0, GROUP)
        chunk = program % chunks
        return plane // (2 * half), plane % (2 * half), plane < planes, 0, chunk, chunk.to(tl.int64) * tiles * BLOCK


@triton.jit
def _pointers(
    source, sample, c, inside, first, start, pixels, half,
    shuffled: tl.constexpr, NHWC: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the pointers of the tile that begins at pixel ``start``, and which of its values exist."""
    if NHWC:
        source += (sample * pixels + start) * (2 * half)
        if shuffled:
            pixel = tl.arange(0, BLOCK)[:, None]
            run = 2 * first + tl.arange(0, 2 * GROUP)[None, :]
            return source + pixel * (2 * half) + run, (pixel < pixels - start) & (run < 2 * half)
        else:
            pixel = tl.arange(0, BLOCK)[:, None, None]
            return source + pixel * (2 * half) + c[None, :, :], (pixel < pixels - start) & inside[None, :, :]
    else:
        pixel = start + tl.arange(0, BLOCK)[None, :]
        plane = sample * (2 * half) + (c % half * 2 + c // half if shuffled else c)
        return source + plane[:, None] * pixels + pixel, inside[:, None] & (pixel < pixels)


@triton.jit
def _load(
    source, sample, c, inside, first, start, pixels, half,
    shuffled: tl.constexpr, NHWC: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, mask = _pointers(source, sample, c, inside, first, start, pixels, half, shuffled, NHWC, GROUP, BLOCK)
    values = tl.load(at, mask, 0.0)
    if NHWC and shuffled:
        values = tl.reshape(values, (BLOCK, GROUP, 2))
    return values.to(tl.float32)


@triton.jit
def _store(
    target, values, sample, c, inside, first, start, pixels, half,
    shuffled: tl.constexpr, NHWC: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, mask = _pointers(target, sample, c, inside, first, start, pixels, half, shuffled, NHWC, GROUP, BLOCK)
    values = values.to(target.dtype.element_ty)
    if NHWC and shuffled:
        values = tl.reshape(values, (BLOCK, 2 * GROUP))
    tl.store(at, values, mask)


@triton.jit
def _spread(of_planes, NHWC: tl.constexpr):
    """Return values of planes in a shape that broadcasts to a tile."""
    if NHWC:
        return of_planes[None, :, :]
    else:
        return of_planes[:, None]


@triton.jit
def _zeros(NHWC: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Return sums to which :func:`_partial` is added: NHWC sums its tiles at the end, since that crosses threads."""
    if NHWC:
        return tl.zeros((BLOCK, GROUP, 2), tl.float32)
    else:
        return tl.zeros((GROUP,), tl.float32)


@triton.jit
def _partial(tile, NHWC: tl.constexpr):
    if NHWC:
        return tile
    else:
        return tl.sum(tile, 1)


@triton.jit
def _total(partial, NHWC: tl.constexpr):
    if NHWC:
        return tl.sum(partial, 0)
    else:
        return partial


@triton.jit
def _statistics(
    u, sample, c, inside, first, begin, pixels, half, tiles,
    NHWC: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Return pivot, rest and variance of a chunk, and its first tile.

    The pivot is the mean of the first tile, which is within a few deviations of the mean.
    """
    value = _load(u, sample, c, inside, first, begin, pixels, half, False, NHWC, GROUP, BLOCK)
    pivot = tl.sum(value, 0 if NHWC else 1) / tl.minimum(pixels - begin, BLOCK).to(tl.float32)
    pivot = tl.where(tl.abs(pivot) < float("inf"), pivot, 0.0)
    _, mask = _pointers(u, sample, c, inside, first, begin, pixels, half, False, NHWC, GROUP, BLOCK)
    total = tl.where(mask, value - _spread(pivot, NHWC), 0.0)
    square = total * total
    for tile in tl.range(1, tiles, num_stages=STAGES):
        start = begin + tile * BLOCK
        _, mask = _pointers(u, sample, c, inside, first, start, pixels, half, False, NHWC, GROUP, BLOCK)
        more = _load(u, sample, c, inside, first, start, pixels, half, False, NHWC, GROUP, BLOCK)
        d = tl.where(mask, more - _spread(pivot, NHWC), 0.0)
        total += d
        square += d * d
    count = tl.minimum(pixels - begin, tiles * BLOCK).to(tl.float32)
    rest, variance = chunk_moments(tl.sum(total, 0 if NHWC else 1), tl.sum(square, 0 if NHWC else 1), count)
    return pivot, rest, variance, value


@triton.jit
def _passed(
    grad, out, sample, c, inside, first, start, pixels, half,
    shuffle: tl.constexpr, relu: tl.constexpr, NHWC: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the gradient that ReLU lets through."""
    g = _load(grad, sample, c, inside, first, start, pixels, half, shuffle, NHWC, GROUP, BLOCK)
    if relu:
        y = _load(out, sample, c, inside, first, start, pixels, half, shuffle, NHWC, GROUP, BLOCK)
        g = tl.where(y <= 0.0, 0.0, g)
    return g


@triton.jit
def statistics(
    u, partial, planes, half, units, chunks, tiles,
    NHWC: tl.constexpr, MULTIPLE: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    sample, c, inside, first, chunk, begin = _locate(planes, half, chunks, tiles, NHWC, GROUP, BLOCK)
    pivot, rest, variance, _ = _statistics(
        u, sample, c, inside, first, begin, units * MULTIPLE, half, tiles, NHWC, GROUP, BLOCK, STAGES
    )
    at = partial + (sample * chunks + chunk) * (6 * half) + c
    tl.store(at, pivot, inside)
    tl.store(at + 2 * half, rest, inside)
    tl.store(at + 4 * half, variance, inside)


@triton.jit
def output(
    u, shortcut, out, coefficients, gain, planes, half, units, chunks, tiles,
    shuffle: tl.constexpr, add: tl.constexpr, relu: tl.constexpr,
    NHWC: tl.constexpr, MULTIPLE: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    sample, c, inside, first, _, begin = _locate(planes, half, chunks, tiles, NHWC, GROUP, BLOCK)
    pixels = units * MULTIPLE
    pivot, centre, scale, shift, slope, offset = gate_coefficients(coefficients, sample, c, 2 * half, inside)
    for tile in tl.range(0, tiles, num_stages=STAGES):
        start = begin + tile * BLOCK
        x = _load(u, sample, c, inside, first, start, pixels, half, False, NHWC, GROUP, BLOCK)
        t = exponent_of(x, _spread(pivot, NHWC), _spread(slope, NHWC), _spread(offset, NHWC))
        y = attended(normalised_z(x, _spread(centre, NHWC), _spread(scale, NHWC), _spread(shift, NHWC)), t, gain)
        if add:
            y += _load(shortcut, sample, c, inside, first, start, pixels, half, shuffle, NHWC, GROUP, BLOCK)
        if relu:
            y = tl.where(y < 0.0, 0.0, y)
        _store(out, y, sample, c, inside, first, start, pixels, half, shuffle, NHWC, GROUP, BLOCK)


@triton.jit
def gradient_sums(
    grad, u, out, dshortcut, raw, coefficients, gain, planes, half, units, chunks, tiles,
    shuffle: tl.constexpr, relu: tl.constexpr, separate: tl.constexpr,
    NHWC: tl.constexpr, MULTIPLE: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write the sums of q, q d, h and h d, and the gradient that ReLU let through, if it is asked for."""
    sample, c, inside, first, chunk, begin = _locate(planes, half, chunks, tiles, NHWC, GROUP, BLOCK)
    pixels = units * MULTIPLE
    pivot, centre, scale, shift, slope, offset = gate_coefficients(coefficients, sample, c, 2 * half, inside)
    sum_q = _zeros(NHWC, GROUP, BLOCK)
    sum_qd = _zeros(NHWC, GROUP, BLOCK)
    sum_h = _zeros(NHWC, GROUP, BLOCK)
    sum_hd = _zeros(NHWC, GROUP, BLOCK)
    for tile in tl.range(0, tiles, num_stages=STAGES):
        start = begin + tile * BLOCK
        g = _passed(grad, out, sample, c, inside, first, start, pixels, half, shuffle, relu, NHWC, GROUP, BLOCK)
        if separate:
            _store(dshortcut, g, sample, c, inside, first, start, pixels, half, shuffle, NHWC, GROUP, BLOCK)
        x = _load(u, sample, c, inside, first, start, pixels, half, False, NHWC, GROUP, BLOCK)
        d = x - _spread(pivot, NHWC)
        t = exponent_of(x, _spread(pivot, NHWC), _spread(slope, NHWC), _spread(offset, NHWC))
        z = normalised_z(x, _spread(centre, NHWC), _spread(scale, NHWC), _spread(shift, NHWC))
        q, h = gate_gradient(g, z, t, gain)  # both are 0 beyond the plane, as g is
        sum_q += _partial(q, NHWC)
        sum_qd += _partial(q * d, NHWC)
        sum_h += _partial(h, NHWC)
        sum_hd += _partial(h * d, NHWC)
    at = raw + (sample * chunks + chunk) * (8 * half) + c
    tl.store(at, _total(sum_q, NHWC), inside)
    tl.store(at + 2 * half, _total(sum_qd, NHWC), inside)
    tl.store(at + 4 * half, _total(sum_h, NHWC), inside)
    tl.store(at + 6 * half, _total(sum_hd, NHWC), inside)


@triton.jit
def gradient(
    grad, u, out, du, coefficients, gain, planes, half, units, chunks, tiles,
    shuffle: tl.constexpr, relu: tl.constexpr,
    NHWC: tl.constexpr, MULTIPLE: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    sample, c, inside, first, _, begin = _locate(planes, half, chunks, tiles, NHWC, GROUP, BLOCK)
    pixels = units * MULTIPLE
    pivot, centre, scale, shift, slope, offset = gate_coefficients(coefficients, sample, c, 2 * half, inside)
    by_mean, by_distance = gradient_coefficients(coefficients, sample, c, 2 * half, inside)
    for tile in tl.range(0, tiles, num_stages=STAGES):
        start = begin + tile * BLOCK
        x = _load(u, sample, c, inside, first, start, pixels, half, False, NHWC, GROUP, BLOCK)
        g = _passed(grad, out, sample, c, inside, first, start, pixels, half, shuffle, relu, NHWC, GROUP, BLOCK)
        t = exponent_of(x, _spread(pivot, NHWC), _spread(slope, NHWC), _spread(offset, NHWC))
        z = normalised_z(x, _spread(centre, NHWC), _spread(scale, NHWC), _spread(shift, NHWC))
        q, h = gate_gradient(g, z, t, gain)
        dx = _spread(scale, NHWC) * q + _spread(slope, NHWC) * h
        dx += _spread(by_mean, NHWC) + _spread(by_distance, NHWC) * (x - _spread(pivot, NHWC))
        _store(du, dx, sample, c, inside, first, start, pixels, half, False, NHWC, GROUP, BLOCK)


@triton.jit
def layer(
    x, grad, out, plane_sums, cweight, cbias, sweight, sbias, gn_weight, gn_bias, eps, gain, n,
    planes, half, units, chunks, tiles, shuffle: tl.constexpr, backward: tl.constexpr, whole: tl.constexpr,
    NHWC: tl.constexpr, MULTIPLE: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Run the layer, forward or backward, in one read of memory: a program has whole planes, in one chunk.

    A tile that is ``whole`` stays in registers; otherwise tiles are read again, from the cache.
    """
    sample, c, inside, first, _, begin = _locate(planes, half, chunks, tiles, NHWC, GROUP, BLOCK)
    pixels = units * MULTIPLE
    pivot, rest, variance, v = _statistics(
        x, sample, c, inside, first, begin, pixels, half, tiles, NHWC, GROUP, BLOCK, STAGES
    )
    spatial, cw, alpha, beta = parameters_of(cweight, cbias, sweight, sbias, gn_weight, gn_bias, c, n, inside)
    rho = reciprocal_deviation(spatial, variance, eps)
    slope = alpha * rho
    offset = gate_line(spatial, cw, slope, beta, pivot + rest, rest)
    if not backward:
        for tile in tl.range(0, tiles, num_stages=STAGES):
            start = tile * BLOCK
            if not whole:
                v = _load(x, sample, c, inside, first, start, pixels, half, False, NHWC, GROUP, BLOCK)
            t = exponent_of(v, _spread(pivot, NHWC), _spread(slope, NHWC), _spread(offset, NHWC))
            _store(
                out, attended(v, t, gain), sample, c, inside, first, start, pixels, half, shuffle, NHWC, GROUP, BLOCK
            )
    else:
        sum_h = _zeros(NHWC, GROUP, BLOCK)
        sum_hd = _zeros(NHWC, GROUP, BLOCK)
        g = _load(grad, sample, c, inside, first, begin, pixels, half, shuffle, NHWC, GROUP, BLOCK)
        for tile in tl.range(0, tiles, num_stages=STAGES):
            start = tile * BLOCK
            if not whole:
                v = _load(x, sample, c, inside, first, start, pixels, half, False, NHWC, GROUP, BLOCK)
                g = _load(grad, sample, c, inside, first, start, pixels, half, shuffle, NHWC, GROUP, BLOCK)
            t = exponent_of(v, _spread(pivot, NHWC), _spread(slope, NHWC), _spread(offset, NHWC))
            q, h = gate_gradient(g, v, t, gain)
            sum_h += _partial(h, NHWC)
            sum_hd += _partial(h * (v - _spread(pivot, NHWC)), NHWC)
        h_sum = _total(sum_h, NHWC)
        weighted = weighted_sum(spatial, h_sum, _total(sum_hd, NHWC), rest, pivot + rest, rho)
        at = plane_sums + sample * (4 * half) + c
        tl.store(at, h_sum, inside)
        tl.store(at + 2 * half, weighted, inside)
        by_mean, by_distance = through_statistics(h_sum, weighted, slope, rho, cw, rest, pixels)
        for tile in tl.range(0, tiles, num_stages=STAGES):
            start = tile * BLOCK
            if not whole:
                v = _load(x, sample, c, inside, first, start, pixels, half, False, NHWC, GROUP, BLOCK)
                g = _load(grad, sample, c, inside, first, start, pixels, half, shuffle, NHWC, GROUP, BLOCK)
            t = exponent_of(v, _spread(pivot, NHWC), _spread(slope, NHWC), _spread(offset, NHWC))
            q, h = gate_gradient(g, v, t, gain)
            dx = q + _spread(slope, NHWC) * h
            dx += _spread(by_mean, NHWC) + _spread(by_distance, NHWC) * (v - _spread(pivot, NHWC))
            _store(out, dx, sample, c, inside, first, start, pixels, half, False, NHWC, GROUP, BLOCK)
