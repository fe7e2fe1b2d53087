r"""The tail of a residual block in plain PyTorch, and the algebra that lets a kernel do it in two passes.

The tail is ``relu(sa(bn(u)) + shortcut)``: BatchNorm over batch and plane, the attention of
:mod:`.reference`, the shortcut, ReLU. With :math:`P` pixels in a plane and :math:`N = B P` values of a
channel, a plane of one sample has the mean :math:`m` and the variance :math:`v`, a channel :math:`M` and
:math:`V`; over the samples :math:`M = \overline m` and :math:`V = \overline{v + (m - M)^2}`, so that
BatchNorm's statistics follow from those of the planes.

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
"""

import torch
from torch import Tensor

from . import reference


def block_tail(
    u: Tensor,
    shortcut: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    cweight: Tensor,
    cbias: Tensor,
    sweight: Tensor,
    sbias: Tensor,
    gn_weight: Tensor,
    gn_bias: Tensor,
    norm_eps: float,
    eps: float,
    shuffle: bool,
    relu: bool,
    gain: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, the statistics of the planes (B, 3, C) and those of BatchNorm (2, C).

    The statistics of a plane are a value near its mean, the mean less that value, and the biased variance; those of
    BatchNorm are its mean and biased variance.
    """
    x, uhat, _, moments = _normalise(u, mean, var, norm_eps)
    z = uhat * _of_channels(weight, x) + _of_channels(bias, x)
    y = reference.shuffle_attention(z, cweight, cbias, sweight, sbias, gn_weight, gn_bias, eps, shuffle, gain)
    if shortcut is not None:
        y = y + shortcut
    if relu:
        y = y.relu()
    return y.to(u.dtype), _plane_statistics(x), moments


def block_tail_backward(
    grad: Tensor,
    u: Tensor,
    out: Tensor | None,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    cweight: Tensor,
    cbias: Tensor,
    sweight: Tensor,
    sbias: Tensor,
    gn_weight: Tensor,
    gn_bias: Tensor,
    norm_eps: float,
    eps: float,
    shuffle: bool,
    has_shortcut: bool,
    gain: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of ``u``, the shortcut, BatchNorm's weight and bias and the six parameters.

    ``out`` is the output if ReLU made it. The gradient of the shortcut is empty where it is ``grad`` itself, without
    ReLU, or where there is no shortcut. Everything is recomputed from ``u``, so that this can be differentiated once
    more; ``statistics`` are for kernels.
    """
    x, uhat, invstd, _ = _normalise(u, mean, var, norm_eps)
    scale = _of_channels(weight, x)
    passed = grad if out is None else torch.where(out <= 0, torch.zeros_like(grad), grad)
    z = uhat * scale + _of_channels(bias, x)
    dz, *d_attention = reference.shuffle_attention_backward(
        passed.to(x.dtype), z, cweight, cbias, sweight, sbias, gn_weight, gn_bias, eps, shuffle, gain
    )
    over = _sample_and_plane(x)
    dbias, dweight = dz.sum(over, keepdim=True), (dz * uhat).sum(over, keepdim=True)
    through = 0 if mean is not None else (dbias + uhat * dweight) / max(x.numel() // x.shape[1], 1)
    du = scale * invstd * (dz - through)
    dshortcut = passed if out is not None and has_shortcut else u.new_empty(0)
    cw, cb, sw, sb, gw, gb = d_attention
    return du.to(u.dtype), dshortcut, _like(weight, dweight), _like(bias, dbias), cw, cb, sw, sb, gw, gb


def _normalise(u: Tensor, mean: Tensor | None, var: Tensor | None, eps: float) -> tuple[Tensor, ...]:
    """Return ``u`` in the type of the sums, normalised, 1 / deviation, and mean and variance (2, C)."""
    x = u.to(torch.float64 if u.dtype == torch.float64 else torch.float32)
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
    return x, centred * invstd, invstd, torch.stack([centre.flatten(), spread.flatten()])


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
