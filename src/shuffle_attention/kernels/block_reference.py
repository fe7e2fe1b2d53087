r"""The tail of a residual block in plain PyTorch, and the algebra that lets a kernel do it in two passes.

The tail is ``relu(sa(bn(u)) + shortcut)``: BatchNorm over batch and plane, the attention of
:mod:`.reference`, the shortcut, ReLU, each of which may be absent. With :math:`P` pixels in a plane and
:math:`N = B P` values of a channel, a plane of one sample has the mean :math:`m` and the variance :math:`v`, a
channel :math:`M` and :math:`V`; over the samples :math:`M = \overline m` and
:math:`V = \overline{v + (m - M)^2}`, so that BatchNorm's statistics follow from those of the planes.

**Forward.** With :math:`a = \text{weight} / \sqrt{V + \epsilon_{bn}}`, BatchNorm's output is
:math:`z = a d + \mu` in :math:`d = u - m` and :math:`\mu = a (m - M) + \text{bias}`. Its planes have the
mean :math:`\mu` and the variance :math:`a^2 v`; with :math:`\rho = 1 / \sqrt{a^2 v + \epsilon}` the gate is
:math:`\sigma(S d + o)`,

.. math::
    S = \alpha \rho a,\ \alpha = \text{sweight} \cdot \text{gn.weight},\
        o = \text{sweight} \cdot \text{gn.bias} + \text{sbias} \quad \text{(spatial branch)}

    S = 0,\ o = \text{cweight}\,\mu + \text{cbias} \quad \text{(channel branch)}

One pass gathers :math:`m, v`; a second writes the output.

**Backward.** Let :math:`g` be the gradient where ReLU passed it, which is that of the shortcut, and
:math:`\gamma` the gain,

.. math:: q = \gamma \cdot \text{gate} \cdot g, \qquad h = (1 - \text{gate})\, q\, z.

Through the statistics of its plane (sums are over the plane; cweight is 0 in the spatial branch,
:math:`\alpha` in the channel branch),

.. math::
    dz = q + \alpha\rho\,h + \tfrac1P (\text{cweight} - \alpha\rho) \sum h
        - \tfrac1P \alpha\rho\,(a\rho)^2\,d \sum h d

and, as :math:`\sum d = 0`, :math:`\sum d^2 = P v` and :math:`1 - a^2 v \rho^2 = \epsilon \rho^2`, BatchNorm
needs

.. math:: \sum dz = \sum q + \text{cweight} \sum h, \qquad \sum dz\,d = \sum q d + \alpha \epsilon \rho^3 \sum h d.

So the four sums of :math:`q, q d, h, h d` over each plane are all that a first pass has to gather. Summed
over the samples they give d bias :math:`= \sum dz` and d weight :math:`= \sum dz\,\hat u` with
:math:`\hat u = (d + m - M) / \sqrt{V + \epsilon_{bn}}`, and a second pass writes

.. math:: du = a \left(dz - \tfrac1N (\text{d bias} + \hat u\ \text{d weight})\right),

without the last term where BatchNorm's statistics are given and not those of the batch. As
:math:`a q + S h` is known in the first pass and the rest of it is linear in :math:`d`, the first pass
stores that part in ``du``, and no gate is computed twice.

**Without attention** :math:`dz = g`, nothing is needed of single planes, and where there is no shortcut either, ReLU
let through what has :math:`z > 0`, which :math:`u` tells: the output is not kept.
"""

from typing import Any

import torch
from torch import Tensor

from . import reference


def block_tail(
    u: Tensor,
    shortcut: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    cweight: Tensor | None,
    cbias: Tensor | None,
    sweight: Tensor | None,
    sbias: Tensor | None,
    gn_weight: Tensor | None,
    gn_bias: Tensor | None,
    norm_eps: float,
    eps: float,
    shuffle: bool,
    relu: bool,
    gain: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the statistics of the planes (B, 3, C) and those of BatchNorm (2, C), which are float64.

    The statistics of a plane are a value near its mean, the mean less that value, and the biased variance; those of
    BatchNorm are its mean and biased variance. Given back as ``mean`` and ``var``, they lead to the same output.
    Without attention, ``cweight`` and the other five being None, the statistics of planes are empty; without
    BatchNorm, ``weight`` and the other three being None, its statistics are.
    """
    x, uhat, _, moments = _normalise(u, weight, mean, var, norm_eps)
    y = _affine(uhat, weight, bias)
    if cweight is not None:
        arguments: Any = (cweight, cbias, sweight, sbias, gn_weight, gn_bias, eps, shuffle, gain)
        y = reference.shuffle_attention(y, *arguments)
    if shortcut is not None:
        y = y + shortcut
    if relu:
        y = y.relu()
    return y.to(u.dtype, copy=True), x.new_empty(0) if cweight is None else _plane_statistics(x), moments


def block_tail_backward(
    grad: Tensor,
    u: Tensor,
    out: Tensor | None,
    statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    cweight: Tensor | None,
    cbias: Tensor | None,
    sweight: Tensor | None,
    sbias: Tensor | None,
    gn_weight: Tensor | None,
    gn_bias: Tensor | None,
    norm_eps: float,
    eps: float,
    shuffle: bool,
    has_shortcut: bool,
    gain: float = 1.0,
    mask: bool = False,
) -> tuple[Tensor, ...]:
    """Return the gradients of ``u``, the shortcut, BatchNorm's weight and bias and the six parameters.

    ``out`` is the output if ReLU made it; with ``mask``, ReLU made it of BatchNorm's output alone, and its mask is
    rebuilt. The gradient of the shortcut is empty where it is ``grad`` itself, without ReLU, or where there is no
    shortcut, and that of a parameter where there is none. Everything is recomputed from ``u``, so that this can be
    differentiated once more; ``statistics``, those of the planes or without attention those of BatchNorm, are for
    kernels.
    """
    x, uhat, invstd, _ = _normalise(u, weight, mean, var, norm_eps)
    z = _affine(uhat, weight, bias)
    made = z if mask else out
    passed = grad if made is None else torch.where(made <= 0, torch.zeros_like(grad), grad)
    dz, d_attention = passed.to(x.dtype), [u.new_empty(0) for _ in range(6)]
    if cweight is not None:
        arguments: Any = (cweight, cbias, sweight, sbias, gn_weight, gn_bias, eps, shuffle, gain)
        dz, *d_attention = reference.shuffle_attention_backward(dz, z, *arguments)
    dshortcut = passed.clone() if out is not None and has_shortcut else u.new_empty(0)
    if weight is None or bias is None or invstd is None:
        return dz.to(u.dtype, copy=True), dshortcut, u.new_empty(0), u.new_empty(0), *d_attention
    over = _sample_and_plane(x)
    dbias, dweight = dz.sum(over, keepdim=True), (dz * uhat).sum(over, keepdim=True)
    through = 0 if mean is not None else (dbias + uhat * dweight) / max(x.numel() // x.shape[1], 1)
    du = _of_channels(weight, x) * invstd * (dz - through)
    return du.to(u.dtype), dshortcut, _like(weight, dweight), _like(bias, dbias), *d_attention


def _affine(uhat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is None or bias is None:
        return uhat
    return uhat * _of_channels(weight, uhat) + _of_channels(bias, uhat)


def _normalise(
    u: Tensor, weight: Tensor | None, mean: Tensor | None, var: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return ``u`` in the type of the sums, normalised if there is a weight, 1 / deviation, and the moments (2, C)."""
    x = u.to(torch.float64 if u.dtype == torch.float64 else torch.float32)
    if weight is None:
        return x, x, None, x.new_empty(0, dtype=torch.float64)
    if mean is None or var is None:
        over, values = _sample_and_plane(x), max(x.numel() // x.shape[1], 1)
        centre = x.sum(over, keepdim=True) / values
        centred = x - centre
        centred = centred - centred.sum(over, keepdim=True) / values  # a large mean is rounded
        spread = centred.square().sum(over, keepdim=True) / values
    else:
        centre, spread = _of_channels(mean, x), _of_channels(var, x)
        centred = x - centre
    invstd = torch.rsqrt(spread + eps)
    return x, centred * invstd, invstd, torch.stack([centre.flatten(), spread.flatten()]).double()


def _plane_statistics(x: Tensor) -> Tensor:
    planes = x.reshape(*x.shape[:2], x.shape[2:].numel())
    pixels = max(planes.shape[-1], 1)
    pivot = planes.sum(-1) / pixels
    centred = planes - pivot[..., None]
    rest = centred.sum(-1) / pixels
    return torch.stack([pivot, rest, centred.square().sum(-1) / pixels - rest.square()], dim=1)


def _sample_and_plane(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _of_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype).reshape(-1, *[1] * (x.dim() - 2))


def _like(parameter: Tensor, grad: Tensor) -> Tensor:
    return grad.reshape(parameter.shape).to(parameter.dtype)
