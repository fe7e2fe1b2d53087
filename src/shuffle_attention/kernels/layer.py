"""The registered op ``shuffle_attention::shuffle_attention``: schema, checks, shapes and autograd.

Its body is :mod:`.reference`; a kernel registered for a device takes its place there through
PyTorch's dispatcher, which is the only fallback there is. The tag tells ``torch.compile`` that the op
takes a map in any layout: without it the compiler copies every map back into the layout it was traced in.
"""

import torch
from torch import Tensor

from ..errors import InputError
from . import reference
from .backends.cpu import HAS_TRITON


@torch.library.custom_op("shuffle_attention::shuffle_attention", mutates_args=(), tags=torch.Tag.flexible_layout)
def _forward(
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
    y = reference.shuffle_attention(x, cweight, cbias, sweight, sbias, gn_weight, gn_bias, eps, shuffle, gain)
    return torch.empty_like(x).copy_(y)


@torch.library.custom_op(
    "shuffle_attention::shuffle_attention_backward", mutates_args=(), tags=torch.Tag.flexible_layout
)
def _backward(
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
    dx, *dparams = reference.shuffle_attention_backward(
        grad, x, cweight, cbias, sweight, sbias, gn_weight, gn_bias, eps, shuffle, gain
    )
    dcw, dcb, dsw, dsb, dgw, dgb = dparams
    return torch.empty_like(x).copy_(dx), dcw, dcb, dsw, dsb, dgw, dgb


@_forward.register_fake
def _(x, cweight, cbias, sweight, sbias, gn_weight, gn_bias, eps, shuffle, gain=1.0):
    return torch.empty_like(x)


@_backward.register_fake
def _(grad, x, cweight, cbias, sweight, sbias, gn_weight, gn_bias, eps, shuffle, gain=1.0):
    tensors = (x, cweight, cbias, sweight, sbias, gn_weight, gn_bias)
    return tuple(torch.empty_like(t) for t in tensors)


def _keep(ctx, inputs, output):
    *tensors, ctx.eps, ctx.shuffle, ctx.gain = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad):
    return *_backward(grad, *ctx.saved_tensors, ctx.eps, ctx.shuffle, ctx.gain), None, None, None


def _differentiate_twice(ctx, *grads):
    """Gradients of the backward op, for gradient penalties: autograd through its reference, recomputed."""
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        arguments = [*inputs, ctx.eps, ctx.shuffle, ctx.gain]
        outputs = reference.shuffle_attention_backward(*arguments)
    return *torch.autograd.grad(outputs, inputs, grads), None, None, None


if HAS_TRITON:

    @_forward.register_kernel("cuda")
    def forward_cuda(*arguments):
        from .backends.triton import layer as triton_kernels

        return triton_kernels.forward(*arguments)

    @_backward.register_kernel("cuda")
    def backward_cuda(*arguments):
        from .backends.triton import layer as triton_kernels

        return triton_kernels.backward(*arguments)


_forward.register_autograd(_differentiate, setup_context=_keep)
_backward.register_autograd(_differentiate_twice, setup_context=_keep)


def shuffle_attention(
    x: Tensor,
    cweight: Tensor,
    cbias: Tensor,
    sweight: Tensor,
    sbias: Tensor,
    gn_weight: Tensor,
    gn_bias: Tensor,
    *,
    groups: int,
    eps: float = 1e-5,
    shuffle: bool = True,
    gain: float = 1.0,
) -> Tensor:
    """Returns shuffle attention over a map: gates by channel and by position, then the channel shuffle.

    Statistics are taken in float32 (float64 for float64) whatever the type of the map. The equations
    stand in :mod:`shuffle_attention.ops.reference`.

    Args:
        x: Map of shape (B, C, L), (B, C, H, W) or (B, C, D, H, W), any floating-point type and layout.
        cweight: Scale of the channel gate, n values in any shape; the same holds for the other five.
        cbias: Shift of the channel gate.
        sweight: Scale of the spatial gate.
        sbias: Shift of the spatial gate.
        gn_weight: Scale of the normalised plane.
        gn_bias: Shift of the normalised plane.
        groups: Groups that the channels are split into, ``C = 2 * n * groups``.
        eps: Added to the variance of a plane.
        shuffle: Whether the two halves of the channels are interleaved at the end.
        gain: Factor of every gate; 1 in the paper.

    Returns:
        Map of the shape, type and memory format of ``x``.

    Raises:
        TypeError: If ``x`` is not of a floating-point type.
        InputError: If the shapes do not fit together (a ``ValueError``).

    Source: Zhang & Yang, SA-Net, arXiv:2102.00240, section 3.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be of a floating-point type, got {x.dtype}")
    if not 3 <= x.dim() <= 5:
        raise InputError(f"x must have shape (B, C, *spatial) with 1 to 3 spatial dimensions, got {tuple(x.shape)}")
    n = cweight.numel()
    sizes = [p.numel() for p in (cbias, sweight, sbias, gn_weight, gn_bias)]
    if n == 0 or any(size != n for size in sizes):
        raise InputError(f"the six parameters must all have the same number of values, got {[n, *sizes]}")
    if x.shape[1] != 2 * n * groups:
        raise InputError(
            f"x must have 2 * n * groups = {2 * n * groups} channels for groups={groups} and parameters "
            f"of n = {n} values, got {tuple(x.shape)}"
        )
    if (
        reference.in_use or torch.onnx.is_in_onnx_export()
    ):  # ONNX knows PyTorch's own operations, of which the definition is made
        return reference.shuffle_attention(x, cweight, cbias, sweight, sbias, gn_weight, gn_bias, eps, shuffle, gain)
    return torch.ops.shuffle_attention.shuffle_attention(
        x, cweight, cbias, sweight, sbias, gn_weight, gn_bias, eps, shuffle, gain
    )
