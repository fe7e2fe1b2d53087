r"""Shuffle attention in plain PyTorch: the definition that every kernel is compared with.

With :math:`n` = ``cweight.numel()``, a map of :math:`C` channels has :math:`G = C / 2n` groups.
Channel :math:`c` has the index :math:`r = c \bmod 2n` inside its group. With :math:`\mu_c` and
:math:`\sigma_c^2` the mean and the biased variance of one plane of one sample,

.. math::
    y_c = \gamma\, x_c \cdot \sigma(\text{cweight}_r\,\mu_c + \text{cbias}_r)
        \qquad r < n \text{ (channel branch)}

    y_c = \gamma\, x_c \cdot \sigma(\text{sweight}_j\,(\text{gn.weight}_j\,\hat x_c + \text{gn.bias}_j)
        + \text{sbias}_j), \quad \hat x_c = \frac{x_c - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}},\ j = r - n
        \qquad r \ge n \text{ (spatial branch)}

The gain :math:`\gamma` is 1 in the paper; with :math:`1 / \sigma(1)` a layer whose gates are at their start is the
identity. The shuffle sends channel :math:`c` to :math:`2\,(c \bmod C/2) + \lfloor c / (C/2) \rfloor`.

Source: Zhang & Yang, "SA-Net: Shuffle Attention for Deep Convolutional Neural Networks",
ICASSP 2021, arXiv:2102.00240, section 3 (equations 1 to 5).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

in_use = False


def is_exporting() -> bool:
    """Return whether ``torch.export`` traces. PyTorch 2.11's own function returns True whenever it compiles, too."""
    flag = getattr(torch.compiler, "_is_exporting_flag", None)
    return torch.compiler.is_exporting() if flag is None else flag


@contextmanager
def use_reference() -> Iterator[None]:
    """Run the layer and the end of a block as PyTorch's own operators, as exporters need them, and without kernels."""
    global in_use
    before, in_use = in_use, True
    try:
        yield
    finally:
        in_use = before


def shuffle_attention(
    x: Tensor,
    cweight: Tensor,
    cbias: Tensor,
    sweight: Tensor,
    sbias: Tensor,
    gn_weight: Tensor,
    gn_bias: Tensor,
    eps: float,
    shuffle: bool,
    gain: float = 1.0,
) -> Tensor:
    """Return the attended map, contiguous, of the shape and type of ``x``."""
    channel, spatial, *params = _split(x, cweight, cbias, sweight, sbias, gn_weight, gn_bias)
    channel_gate, spatial_gate = _gates(channel, spatial, *params, eps=eps, gain=gain)
    y = torch.stack([channel * channel_gate, spatial * spatial_gate], dim=2)
    y = y.reshape(x.shape[0], 2, x.shape[1] // 2, channel.shape[-1])
    if shuffle:
        y = y.transpose(1, 2)
    return y.reshape(x.shape).to(x.dtype)


def halves(
    x: Tensor,
    cweight: Tensor,
    cbias: Tensor,
    sweight: Tensor,
    sbias: Tensor,
    gn_weight: Tensor,
    gn_bias: Tensor,
    eps: float,
    gain: float = 1.0,
) -> Tensor:
    """Return the attended map for one group without shuffle, in few of the operators that exported graphs have.

    Each of the parameters has a value for each channel of its half. Instance normalisation runs over all channels, with
    a scale of 0 in the channel branch: that takes fewer operators than splitting the map, and no more time.
    """
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    cw, cb, sw, sb, gw, gb = (p.to(wide.dtype).flatten() for p in (cweight, cbias, sweight, sbias, gn_weight, gn_bias))
    n, over = cw.numel(), tuple(range(2, x.dim()))
    scale, shift = functional.pad(sw * gw, (n, 0)), torch.cat([cb, sw * gb + sb])
    normed = torch.instance_norm(wide, scale, shift, None, None, True, 0.0, eps, False)
    of_mean = functional.pad(cw, (0, n)).reshape(-1, *[1] * len(over))
    y = wide * torch.sigmoid(normed + of_mean * wide.mean(over, keepdim=True))
    return (y if gain == 1 else gain * y).to(x.dtype)


def gates(
    x: Tensor,
    cweight: Tensor,
    cbias: Tensor,
    sweight: Tensor,
    sbias: Tensor,
    gn_weight: Tensor,
    gn_bias: Tensor,
    eps: float,
    gain: float = 1.0,
) -> Tensor:
    """Return the factor of every value of ``x`` before the shuffle, in the shape of ``x`` and the type of the sums.

    A plane of the channel branch has one gate, a plane of the spatial branch one per position.
    """
    channel, spatial, *params = _split(x, cweight, cbias, sweight, sbias, gn_weight, gn_bias)
    channel_gate, spatial_gate = _gates(channel, spatial, *params, eps=eps, gain=gain)
    return torch.stack([channel_gate.expand_as(channel), spatial_gate], dim=2).reshape(x.shape)


def shuffle_attention_backward(
    grad: Tensor,
    x: Tensor,
    cweight: Tensor,
    cbias: Tensor,
    sweight: Tensor,
    sbias: Tensor,
    gn_weight: Tensor,
    gn_bias: Tensor,
    eps: float,
    shuffle: bool,
    gain: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of ``x`` and of the six parameters, given that of the output.

    The gates are recomputed from ``x``, so that nothing else has to be saved.
    """
    channel, spatial, cw, cb, sw, sb, gw, gb = _split(x, cweight, cbias, sweight, sbias, gn_weight, gn_bias)
    if shuffle:
        grad = grad.reshape(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
    grad_channel, grad_spatial, *_ = _split(gain * grad, cweight)

    mean = _mean(channel)
    gate = torch.sigmoid(cw * mean + cb)
    at_gate = gate * (1 - gate) * (grad_channel * channel).sum(-1, keepdim=True)
    dx_channel = gate * grad_channel + cw * at_gate / max(channel.shape[-1], 1)

    xhat, rstd = _standardise(spatial, eps)
    gate = torch.sigmoid(sw * (gw * xhat + gb) + sb)
    at_plane = gate * (1 - gate) * grad_spatial * spatial
    dxhat = sw * gw * at_plane
    dx_spatial = gate * grad_spatial + rstd * (dxhat - _mean(dxhat) - xhat * _mean(dxhat * xhat))

    shift = at_plane.sum((0, 1, 3)).view_as(sb)
    scale = (at_plane * xhat).sum((0, 1, 3)).view_as(sb)
    return (
        torch.stack([dx_channel, dx_spatial], dim=2).reshape(x.shape).to(x.dtype),
        _like(cweight, (at_gate * mean).sum((0, 1))),
        _like(cbias, at_gate.sum((0, 1))),
        _like(sweight, gw * scale + gb * shift),
        _like(sbias, shift),
        _like(gn_weight, sw * scale),
        _like(gn_bias, sw * shift),
    )


def _gates(
    channel: Tensor,
    spatial: Tensor,
    cw: Tensor,
    cb: Tensor,
    sw: Tensor,
    sb: Tensor,
    gw: Tensor,
    gb: Tensor,
    *,
    eps: float,
    gain: float,
) -> tuple[Tensor, Tensor]:
    """Return the gates of the two branches: (B, groups, n, 1) and (B, groups, n, plane)."""
    xhat, _ = _standardise(spatial, eps)
    return gain * torch.sigmoid(cw * _mean(channel) + cb), gain * torch.sigmoid(sw * (gw * xhat + gb) + sb)


def _split(x: Tensor, *params: Tensor) -> list[Tensor]:
    """Return the two branches of ``x``, each (B, groups, n, plane), and the parameters (n, 1), in the sums' type."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    n = params[0].numel()
    groups, plane = x.shape[1] // (2 * n), math.prod(x.shape[2:])  # numel() would fix the size of an exported program
    branches = x.to(dtype).reshape(x.shape[0], groups, 2, n, plane).unbind(2)
    return [*branches, *(p.to(dtype).reshape(n, 1) for p in params)]


def _standardise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return ``x`` with zero mean and unit variance over each plane, and the reciprocal of its standard deviation."""
    centred = x - _mean(x)
    rstd = torch.rsqrt(_mean(centred.square()) + eps)
    return centred * rstd, rstd


def _mean(x: Tensor) -> Tensor:
    """Return the mean of each plane, zero for planes without pixels, so that their gradients are zero too."""
    return x.sum(-1, keepdim=True) / max(x.shape[-1], 1)


def _like(parameter: Tensor, grad: Tensor) -> Tensor:
    return grad.reshape(parameter.shape).to(parameter.dtype)
