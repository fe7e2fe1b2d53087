"""The formulas of both ops for Triton, each once, and the kernels that work on planes and channels, not on maps.

The algebra and its letters are those of :mod:`...block_reference`; in the layer z is the map itself and a is 1.
Statistics of planes have shape (B, 3, C): a pivot near the mean, the mean less the pivot, and the biased variance.
Where several programs sum a plane in chunks, those of chunks have shape (B, chunks, 3, C), and are merged here in one
order, so that results do not vary. Sums over samples are float64: they are few, and a large mean then costs the
variance no digits.
"""
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportGeneralTypeIssues=false
# Triton's types describe neither the arguments of a launch nor the operators of a tensor.

import triton
import triton.language as tl

# Rows of the per-channel constants, shape (NUMBERS, C), float32.
SCALE = tl.constexpr(0)  # a
SHIFT = tl.constexpr(1)  # z = scale * (u - centre) + shift
CENTRE = tl.constexpr(2)  # the mean M, rounded; shift has the rest of it
REST = tl.constexpr(3)
CWEIGHT = tl.constexpr(4)  # 0 in the spatial branch
ALPHA = tl.constexpr(5)  # 0 in the channel branch
INVSTD = tl.constexpr(6)
NUMBERS = 7

# Rows of the coefficients of planes, shape (B, COEFFICIENTS, C), float32. With d = u - pivot the gate is
# sigmoid(slope * d + offset), and du = scale * q + slope * h + by_mean + by_distance * d. Every thread that has a value
# of the plane needs them, so that they are few and computed beforehand.
PIVOT = tl.constexpr(0)
PLANE_CENTRE = tl.constexpr(1)
PLANE_SCALE = tl.constexpr(2)
PLANE_SHIFT = tl.constexpr(3)
SLOPE = tl.constexpr(4)
OFFSET = tl.constexpr(5)
BY_MEAN = tl.constexpr(6)
BY_DISTANCE = tl.constexpr(7)
COEFFICIENTS = tl.constexpr(8)


@triton.jit
def gate_coefficients(coefficients, sample, c, channels, inside):
    """Load pivot, centre, scale, shift, slope and offset of planes."""
    at = coefficients + sample * (COEFFICIENTS * channels) + c
    pivot = tl.load(at + PIVOT * channels, inside, 0.0)
    centre = tl.load(at + PLANE_CENTRE * channels, inside, 0.0)
    scale = tl.load(at + PLANE_SCALE * channels, inside, 0.0)
    shift = tl.load(at + PLANE_SHIFT * channels, inside, 0.0)
    slope = tl.load(at + SLOPE * channels, inside, 0.0)
    return pivot, centre, scale, shift, slope, tl.load(at + OFFSET * channels, inside, 0.0)


@triton.jit
def gradient_coefficients(coefficients, sample, c, channels, inside):
    """Load by_mean and by_distance, which only the backward pass needs."""
    at = coefficients + sample * (COEFFICIENTS * channels) + c
    return tl.load(at + BY_MEAN * channels, inside, 0.0), tl.load(at + BY_DISTANCE * channels, inside, 0.0)


# ---- Formulas of values ----


@triton.jit
def normalised_z(u, centre, scale, shift):
    return scale * (u - centre) + shift


@triton.jit
def exponent_of(u, pivot, slope, offset):
    """Return the argument of the gate; in the channel branch it does not depend on u, which may be infinite."""
    return tl.where(slope == 0.0, offset, slope * (u - pivot) + offset)


@triton.jit
def attended(z, t, gain):
    return gain * z / (1.0 + tl.exp(-t))


@triton.jit
def gate_gradient(g, z, t, gain):
    """Return ``q`` and ``h``: the gradient behind the gate, and the gradient of the gate's argument times z."""
    gate = 1.0 / (1.0 + tl.exp(-t))
    q = gain * gate * g
    return q, (1.0 - gate) * q * z


# ---- Formulas of planes ----


@triton.jit
def chunk_moments(total, square, count):
    """Return the distance of the mean from the pivot, and the variance, from sums of d and d^2 about the pivot."""
    rest = total / count
    variance = square / count - rest * rest
    variance = tl.where(variance < 0.0, 0.0, variance)
    return rest, tl.where(square == float("inf"), square, variance)  # not infinity - infinity


@triton.jit
def parameters_of(cweight, cbias, sweight, sbias, gn_weight, gn_bias, c, n, inside):
    """Return whether channels are spatial, cweight and alpha, each 0 in the other branch, and beta."""
    j = c % n
    spatial = c % (2 * n) >= n
    cw = tl.load(cweight + j, inside, 0.0).to(tl.float32)
    cb = tl.load(cbias + j, inside, 0.0).to(tl.float32)
    sw = tl.load(sweight + j, inside, 0.0).to(tl.float32)
    sb = tl.load(sbias + j, inside, 0.0).to(tl.float32)
    gw = tl.load(gn_weight + j, inside, 0.0).to(tl.float32)
    gb = tl.load(gn_bias + j, inside, 0.0).to(tl.float32)
    return spatial, tl.where(spatial, 0.0, cw), tl.where(spatial, sw * gw, 0.0), tl.where(spatial, sw * gb + sb, cb)


@triton.jit
def reciprocal_deviation(spatial, variance, eps):
    """Return rho, 0 where nothing passes through the variance: in the channel branch, and where it overflows."""
    return tl.where(spatial, 1.0 / tl.sqrt(variance + eps), 0.0)


@triton.jit
def gate_line(spatial, cweight, slope, beta, mean, rest):
    """Return the offset of the gate's argument ``slope * d + offset`` from the means of z and of d."""
    return beta + tl.where(spatial, -slope * rest, cweight * mean)


@triton.jit
def weighted_sum(spatial, h, hd, rest, mean, a_rho):
    """Return the sum of h times what the gate weighs, the normalised plane or its mean; hd is about the pivot."""
    return tl.where(spatial, tl.where(a_rho == 0.0, 0.0, a_rho * (hd - rest * h)), mean * h)


@triton.jit
def through_statistics(h, weighted, slope, a_rho, a_cweight, rest, pixels):
    """Return by_mean and by_distance, what the statistics of the plane pass on to each of its values."""
    by_distance = tl.where(slope == 0.0, 0.0, -slope * a_rho * weighted / pixels)
    return (a_cweight - slope) * h / pixels - by_distance * rest, by_distance


@triton.jit
def _of_planes(statistics, sample, c, channels, part):
    at = statistics + sample * (3 * channels) + c
    return tl.load(at, part, 0.0), tl.load(at + channels, part, 0.0), tl.load(at + 2 * channels, part, 0.0)


@triton.jit
def _normalised_variance(scale, variance):
    return tl.where(scale == 0.0, 0.0, scale * scale * variance)


# ---- Kernels ----


@triton.jit
def merge_statistics(
    partial, statistics, channels, pixels, chunks, length, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Merge the statistics of chunks of ``length`` pixels into those of planes, relative to the first chunk."""
    blocks = tl.cdiv(channels, CHANNELS)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    valid = c < channels
    partial += sample * chunks * (3 * channels)
    origin = tl.load(partial + c, valid, 0.0).to(tl.float64)
    distance = tl.zeros((CHUNKS, CHANNELS), tl.float64)
    spread = tl.zeros((CHUNKS, CHANNELS), tl.float64)
    within = tl.zeros((CHUNKS, CHANNELS), tl.float64)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)[:, None]
        part = (chunk < chunks) & valid[None, :]
        at = partial + chunk.to(tl.int64) * (3 * channels) + c[None, :]
        share = tl.where(part, tl.minimum(pixels - chunk * length, length).to(tl.float64) / pixels, 0.0)
        from_origin = tl.load(at, part, 0.0).to(tl.float64) - origin[None, :]
        from_origin += tl.load(at + channels, part, 0.0)
        distance += share * from_origin
        spread += share * from_origin * from_origin
        within += share * tl.load(at + 2 * channels, part, 0.0)
    shift = tl.sum(distance, 0)
    between = tl.sum(spread, 0) - shift * shift
    centre = origin + shift
    pivot = centre.to(tl.float32)
    at = statistics + sample * (3 * channels) + c
    tl.store(at, pivot, valid)
    tl.store(at + channels, (centre - pivot).to(tl.float32), valid)
    tl.store(at + 2 * channels, (tl.sum(within, 0) + tl.where(between < 0.0, 0.0, between)).to(tl.float32), valid)


@triton.jit
def merge_sums(partial, sums, channels, chunks, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr):
    """Add the four sums of chunks to those of planes."""
    blocks = tl.cdiv(channels, CHANNELS)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    valid = c < channels
    for row in tl.static_range(4):
        total = tl.zeros((CHUNKS, CHANNELS), tl.float32)
        for start in range(0, chunks, CHUNKS):
            chunk = start + tl.arange(0, CHUNKS)[:, None]
            at = partial + ((sample * chunks + chunk) * 4 + row) * channels + c[None, :]
            total += tl.load(at, (chunk < chunks) & valid[None, :], 0.0)
        tl.store(sums + (sample * 4 + row) * channels + c, tl.sum(total, 0), valid)


@triton.jit
def pool_statistics(
    statistics, moments, numbers, coefficients, weight, bias, mean, var,
    cweight, cbias, sweight, sbias, gn_weight, gn_bias, norm_eps, eps, batch, channels, n,
    by_batch: tl.constexpr, SAMPLES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Pool planes to channels, relative to the first sample, and write the constants of channels and planes."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid = c < channels
    if by_batch:
        origin = tl.load(statistics + c, valid, 0.0).to(tl.float64)
        distance = tl.zeros((SAMPLES, CHANNELS), tl.float64)
        spread = tl.zeros((SAMPLES, CHANNELS), tl.float64)
        within = tl.zeros((SAMPLES, CHANNELS), tl.float64)
        for start in range(0, batch, SAMPLES):
            sample = (start + tl.arange(0, SAMPLES)[:, None]).to(tl.int64)
            part = (sample < batch) & valid[None, :]
            pivot, rest, variance = _of_planes(statistics, sample, c[None, :], channels, part)
            from_origin = tl.where(part, (pivot.to(tl.float64) - origin[None, :]) + rest, 0.0)
            distance += from_origin
            spread += from_origin * from_origin
            within += variance
        apart = tl.sum(distance, 0) / batch
        between = tl.sum(spread, 0) / batch - apart * apart
        centre = origin + apart
        variance_of = tl.sum(within, 0) / batch + tl.where(between < 0.0, 0.0, between)
    else:
        centre = tl.load(mean + c, valid, 0.0).to(tl.float64)
        variance_of = tl.load(var + c, valid, 0.0).to(tl.float64)
    near = centre.to(tl.float32)
    far = (centre - near).to(tl.float32)
    invstd = (1.0 / tl.sqrt(variance_of + norm_eps)).to(tl.float32)
    scale = tl.load(weight + c, valid, 0.0).to(tl.float32) * invstd
    shift = tl.load(bias + c, valid, 0.0).to(tl.float32) - scale * far
    tl.store(moments + c, centre, valid)
    tl.store(moments + channels + c, variance_of, valid)
    spatial, cw, alpha, beta = parameters_of(cweight, cbias, sweight, sbias, gn_weight, gn_bias, c, n, valid)
    tl.store(numbers + SCALE * channels + c, scale, valid)
    tl.store(numbers + SHIFT * channels + c, shift, valid)
    tl.store(numbers + CENTRE * channels + c, near, valid)
    tl.store(numbers + REST * channels + c, far, valid)
    tl.store(numbers + CWEIGHT * channels + c, cw, valid)
    tl.store(numbers + ALPHA * channels + c, alpha, valid)
    tl.store(numbers + INVSTD * channels + c, invstd, valid)
    spatial, scale, shift = spatial[None, :], scale[None, :], shift[None, :]
    near, cw, alpha, beta = near[None, :], cw[None, :], alpha[None, :], beta[None, :]
    for start in range(0, batch, SAMPLES):
        sample = (start + tl.arange(0, SAMPLES)[:, None]).to(tl.int64)
        part = (sample < batch) & valid[None, :]
        pivot, rest, variance = _of_planes(statistics, sample, c[None, :], channels, part)
        mean_of = scale * ((pivot - near) + rest) + shift
        slope = alpha * reciprocal_deviation(spatial, _normalised_variance(scale, variance), eps) * scale
        at = coefficients + sample * (COEFFICIENTS * channels) + c[None, :]
        tl.store(at + PIVOT * channels, pivot, part)
        tl.store(at + PLANE_CENTRE * channels, tl.broadcast_to(near, (SAMPLES, CHANNELS)), part)
        tl.store(at + PLANE_SCALE * channels, tl.broadcast_to(scale, (SAMPLES, CHANNELS)), part)
        tl.store(at + PLANE_SHIFT * channels, tl.broadcast_to(shift, (SAMPLES, CHANNELS)), part)
        tl.store(at + SLOPE * channels, slope, part)
        tl.store(at + OFFSET * channels, gate_line(spatial, cw, slope, beta, mean_of, rest), part)


@triton.jit
def pool_gradients(
    sums, statistics, numbers, coefficients, plane_sums, channel_sums, dweight, dbias, eps, values,
    batch, channels, n, pixels, by_batch: tl.constexpr, SAMPLES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Pool the sums of q, q d, h and h d over each plane, and write the gradients and coefficients.

    ``plane_sums`` (B, 2, C) are the sums of h, and of h times the argument of the gate: the normalised plane, or its
    mean. ``channel_sums`` (2, C) are the same over the samples.
    """
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    valid = c < channels
    spatial = (c % (2 * n) >= n)[None, :]
    scale_of = tl.load(numbers + SCALE * channels + c, valid, 0.0)
    invstd = tl.load(numbers + INVSTD * channels + c, valid, 0.0)
    far = tl.load(numbers + REST * channels + c, valid, 0.0)
    scale = scale_of[None, :]
    shift_of = tl.load(numbers + SHIFT * channels + c, valid, 0.0)[None, :]
    near = tl.load(numbers + CENTRE * channels + c, valid, 0.0)[None, :]
    cweight = tl.load(numbers + CWEIGHT * channels + c, valid, 0.0)[None, :]
    alpha = tl.load(numbers + ALPHA * channels + c, valid, 0.0)[None, :]
    shift = tl.zeros((SAMPLES, CHANNELS), tl.float64)
    scaled = tl.zeros((SAMPLES, CHANNELS), tl.float64)
    all_h = tl.zeros((SAMPLES, CHANNELS), tl.float64)
    all_weighted = tl.zeros((SAMPLES, CHANNELS), tl.float64)
    for start in range(0, batch, SAMPLES):
        sample = (start + tl.arange(0, SAMPLES)[:, None]).to(tl.int64)
        part = (sample < batch) & valid[None, :]
        at = sums + sample * (4 * channels) + c[None, :]
        q = tl.load(at, part, 0.0)
        qd = tl.load(at + channels, part, 0.0)
        h = tl.load(at + 2 * channels, part, 0.0)
        hd = tl.load(at + 3 * channels, part, 0.0)
        pivot, rest, variance = _of_planes(statistics, sample, c[None, :], channels, part)
        from_centre = (pivot - near) + rest
        rho = reciprocal_deviation(spatial, _normalised_variance(scale, variance), eps)
        mean_of = scale * from_centre + shift_of
        weighted = weighted_sum(spatial, h, hd, rest, mean_of, scale * rho)
        dz = q + cweight * h
        through_variance = tl.where(rho == 0.0, 0.0, alpha * rho * (eps * rho * rho) * (hd - rest * h))
        dzd = qd - rest * q + through_variance + (from_centre - far[None, :]) * dz
        at = plane_sums + sample * (2 * channels) + c[None, :]
        tl.store(at, h, part)
        tl.store(at + channels, weighted, part)
        shift += tl.where(part, dz, 0.0)
        scaled += tl.where(part, dzd, 0.0)
        all_h += tl.where(part, h, 0.0)
        all_weighted += tl.where(part, weighted, 0.0)
    by_bias = tl.sum(shift, 0).to(tl.float32)
    by_weight = tl.sum(scaled, 0).to(tl.float32) * invstd
    tl.store(dbias + c, by_bias, valid)
    tl.store(dweight + c, by_weight, valid)
    tl.store(channel_sums + c, tl.sum(all_h, 0).to(tl.float32), valid)
    tl.store(channel_sums + channels + c, tl.sum(all_weighted, 0).to(tl.float32), valid)
    # The gradient through BatchNorm's statistics, if they are those of the batch.
    if by_batch:
        by_bias = (scale_of * by_bias / values)[None, :]
        by_weight = (scale_of * by_weight * invstd / values)[None, :]
    else:
        by_bias = tl.zeros((1, CHANNELS), tl.float32)
        by_weight = tl.zeros((1, CHANNELS), tl.float32)
    tl.debug_barrier()  # another thread may have stored what is read below
    for start in range(0, batch, SAMPLES):
        sample = (start + tl.arange(0, SAMPLES)[:, None]).to(tl.int64)
        part = (sample < batch) & valid[None, :]
        pivot, rest, variance = _of_planes(statistics, sample, c[None, :], channels, part)
        rho = reciprocal_deviation(spatial, _normalised_variance(scale, variance), eps)
        slope = alpha * rho * scale
        at = plane_sums + sample * (2 * channels) + c[None, :]
        h, weighted = tl.load(at, part, 0.0), tl.load(at + channels, part, 0.0)
        by_mean, by_distance = through_statistics(h, weighted, slope, scale * rho, scale * cweight, rest, pixels)
        at = coefficients + sample * (COEFFICIENTS * channels) + c[None, :]
        from_mean = (pivot - near) - far[None, :]
        tl.store(at + BY_MEAN * channels, by_mean - (by_bias + by_weight * from_mean), part)
        tl.store(at + BY_DISTANCE * channels, by_distance - by_weight, part)


@triton.jit
def attention_gradients(
    channel_sums, sweight, gn_weight, gn_bias, dcweight, dcbias, dsweight, dsbias, dgn_weight, dgn_bias, channels, n,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of the six parameters over the groups, which share them."""
    j = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    valid = j < n
    cshift = tl.zeros((GROUPS, WIDTH), tl.float32)
    cscale = tl.zeros((GROUPS, WIDTH), tl.float32)
    sshift = tl.zeros((GROUPS, WIDTH), tl.float32)
    sscale = tl.zeros((GROUPS, WIDTH), tl.float32)
    for start in range(0, channels // (2 * n), GROUPS):
        c = (start + tl.arange(0, GROUPS))[:, None] * (2 * n) + j[None, :]
        part = (c < channels) & valid[None, :]
        cshift += tl.load(channel_sums + c, part, 0.0)
        cscale += tl.load(channel_sums + channels + c, part, 0.0)
        sshift += tl.load(channel_sums + n + c, part, 0.0)
        sscale += tl.load(channel_sums + channels + n + c, part, 0.0)
    shift, scale = tl.sum(sshift, 0), tl.sum(sscale, 0)
    sw = tl.load(sweight + j, valid, 0.0).to(tl.float32)
    gw = tl.load(gn_weight + j, valid, 0.0).to(tl.float32)
    gb = tl.load(gn_bias + j, valid, 0.0).to(tl.float32)
    tl.store(dcweight + j, tl.sum(cscale, 0), valid)
    tl.store(dcbias + j, tl.sum(cshift, 0), valid)
    tl.store(dsweight + j, gw * scale + gb * shift, valid)
    tl.store(dsbias + j, shift, valid)
    tl.store(dgn_weight + j, sw * scale, valid)
    tl.store(dgn_bias + j, sw * shift, valid)
