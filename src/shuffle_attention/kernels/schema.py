"""The registered ops: the layer and the end of a residual block, each with its schema, shapes and gradients.

``shuffle_attention::shuffle_attention`` is the layer, ``shuffle_attention::block_tail`` computes
``relu(attention(norm(u)) + shortcut)``, of which each part is optional, and returns with it the statistics of the
planes and of BatchNorm; it changes none of its inputs. ``block_tail_`` writes the output over ``u``. Their body is
the reference; a backend's kernel takes its place through PyTorch's dispatcher, which is the only fallback.
Under the transforms of ``torch.func`` and in forward-mode differentiation the ops decompose into the operators of the
reference, which PyTorch knows how to batch and to differentiate.

The tag ``flexible_layout`` tells ``torch.compile`` that the ops take maps in any layout: without it the compiler
copies every map back into the layout that it traced.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import InputError
from . import block_reference, reference

LIBRARY = torch.library.Library("shuffle_attention", "DEF")
_SIX = "Tensor cweight, Tensor cbias, Tensor sweight, Tensor sbias, Tensor gn_weight, Tensor gn_bias"
_TAIL = "Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, " + _SIX.replace("Tensor", "Tensor?")
_TAGS = (torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag)
REFERENCES: dict[str, Callable[..., Any]] = {}  # of each op, with its outputs in the layouts that the op promises


def _register(
    schema: str,
    body: Callable[..., Any],
    fake: Callable[..., Any],
    keep: Callable[..., None],
    differentiate: Callable[..., Any],
    maps: int = 1,
) -> Callable[..., Any]:
    """Define an op and everything that does not depend on the device.

    Args:
        schema: The op's schema without its namespace.
        body: The reference: PyTorch operators only, outputs in any layout.
        fake: Returns outputs without values.
        keep: Saves in the context, its first argument, what the gradient needs of inputs and outputs.
        differentiate: Returns the gradients of the inputs from the context and the gradients of the outputs.
        maps: Number of leading outputs that have the layout of the map, the input called ``x`` or ``u``.
    """
    name = LIBRARY.define(schema, tags=_TAGS)
    op = getattr(torch.ops.shuffle_attention, name).default
    arguments = [argument.name for argument in op._schema.arguments]
    the_map = arguments.index("x") if "x" in arguments else arguments.index("u")

    def run_reference(*inputs: Any) -> Any:
        outputs = body(*inputs)
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        x = inputs[the_map]
        several = [
            torch.empty_like(x).copy_(y) if i < maps and y.shape == x.shape else y for i, y in enumerate(several)
        ]
        return tuple(several) if isinstance(outputs, tuple) else several[0]

    def run_fake(*inputs: Any) -> Any:
        device = inputs[0].device
        for argument, value in zip(arguments, inputs, strict=False):
            if isinstance(value, Tensor) and value.device != device:
                raise RuntimeError(f"{name}: {arguments[0]} is on {device}, but {argument} is on {value.device}")
        return fake(*inputs)

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):  # pyright: ignore[reportIncompatibleMethodOverride]
            with torch._C._AutoDispatchBelowAutograd():
                outputs = op(*inputs)
            keep(ctx, inputs, outputs)
            return outputs

        backward = staticmethod(differentiate)  # pyright: ignore[reportAssignmentType]

    def run_autograd(*inputs: Any) -> Any:
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return body(*inputs)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return Gradient.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    REFERENCES[name] = run_reference
    LIBRARY.impl(name, run_reference, "CompositeExplicitAutograd")
    LIBRARY.impl(name, run_autograd, "Autograd")
    LIBRARY.impl(name, body, "FuncTorchBatchedDecomposition")
    torch.library.register_fake(f"shuffle_attention::{name}", run_fake, lib=LIBRARY)
    return op


# ---- The layer. Arguments that equal their default do not reach a kernel: `settings` may lack the gain. ----


def _keep_layer(ctx, inputs, _):
    count = sum(isinstance(value, Tensor) for value in inputs)
    ctx.settings = inputs[count:]
    ctx.save_for_backward(*inputs[:count])


def _differentiate_layer(ctx, grad):
    return *_layer_backward(grad, *ctx.saved_tensors, *ctx.settings), *(None for _ in ctx.settings)


def _differentiate_layer_twice(ctx, *grads):
    """Differentiate the backward op, for gradient penalties: autograd through its reference, recomputed."""
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        outputs = reference.shuffle_attention_backward(*inputs, *ctx.settings)
    return *torch.autograd.grad(outputs, inputs, grads), *(None for _ in ctx.settings)


_layer = _register(
    f"shuffle_attention(Tensor x, {_SIX}, float eps, bool shuffle, float gain=1.0) -> Tensor",
    reference.shuffle_attention,
    lambda x, *_: torch.empty_like(x),
    _keep_layer,
    _differentiate_layer,
)
_layer_backward = _register(
    f"shuffle_attention_backward(Tensor grad, Tensor x, {_SIX}, float eps, bool shuffle, float gain=1.0) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference.shuffle_attention_backward,
    lambda _, *inputs: tuple(torch.empty_like(t) for t in inputs[:7]),
    _keep_layer,
    _differentiate_layer_twice,
)

# ---- The end of a residual block ----


def _tail_fake(u, shortcut, weight, bias, mean, var, cweight, *_):
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    batch, channels = u.shape[:2]
    statistics = u.new_empty((0,) if cweight is None else (batch, 3, channels), dtype=wide)
    return torch.empty_like(u), statistics, u.new_empty((0,) if weight is None else (2, channels), dtype=torch.float64)


def _tail_backward_fake(grad, u, out, statistics, weight, bias, mean, var, *rest):
    dshortcut = torch.empty_like(u) if out is not None and rest[9] else u.new_empty(0)
    parameters = (u.new_empty(0) if p is None else torch.empty_like(p) for p in (weight, bias, *rest[:6]))
    return torch.empty_like(u), dshortcut, *parameters


def _keep_tail(ctx, inputs, outputs):
    u, shortcut, *parameters = inputs[:12]
    *ctx.settings, relu = inputs[12:16]
    out, statistics, moments = outputs
    ctx.mark_non_differentiable(statistics, moments)
    ctx.set_materialize_grads(False)
    ctx.settings += [shortcut is not None, inputs[16] if len(inputs) > 16 else 1.0]
    attends = parameters[4] is not None
    if relu and not attends and shortcut is None:
        ctx.settings.append(True)  # u tells what ReLU let through
        relu = False
    ctx.save_for_backward(u, out if relu else None, statistics if attends else moments, *parameters)
    ctx.inputs = len(inputs)


def _differentiate_tail(ctx, grad, *_):
    if grad is None:
        return (None,) * ctx.inputs
    u, out, statistics, *parameters = ctx.saved_tensors
    du, dshortcut, *rest = _tail_backward(grad, u, out, statistics, *parameters, *ctx.settings)
    if not ctx.settings[3]:
        dshortcut = None
    elif out is None:
        dshortcut = grad
    of_norm, of_attention = (t if parameters[0] is not None else None for t in rest[:2]), rest[2:]
    if parameters[4] is None:
        of_attention = (None,) * 6
    return du, dshortcut, *of_norm, None, None, *of_attention, *(None,) * (ctx.inputs - 12)


def _keep_tail_backward(ctx, inputs, _):
    ctx.settings = inputs[14:]
    ctx.save_for_backward(*inputs[:14])


def _differentiate_tail_twice(ctx, *grads):
    """Differentiate the backward op: autograd through its reference, recomputed."""
    tensors = list(ctx.saved_tensors)
    # Neither the output and statistics nor the running mean and variance.
    differentiable = [i for i in (0, 1, 4, 5, *range(8, 14)) if tensors[i] is not None]
    with torch.enable_grad():
        for i in differentiable:
            tensors[i] = tensors[i].detach().requires_grad_()
        outputs = block_reference.block_tail_backward(*tensors, *ctx.settings)
    pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
    leaves = [tensors[i] for i in differentiable]
    outputs, given = zip(*pairs, strict=True)
    gradients = dict(zip(differentiable, torch.autograd.grad(outputs, leaves, given, allow_unused=True), strict=True))
    return *(gradients.get(i) for i in range(14)), *(None for _ in ctx.settings)


_tail = _register(
    f"block_tail(Tensor u, Tensor? shortcut, {_TAIL}, float norm_eps, float eps, bool shuffle, bool relu, "
    "float gain=1.0) -> (Tensor, Tensor, Tensor)",
    block_reference.block_tail,
    _tail_fake,
    _keep_tail,
    _differentiate_tail,
)
_tail_backward = _register(
    f"block_tail_backward(Tensor grad, Tensor u, Tensor? out, Tensor statistics, {_TAIL}, float norm_eps, float eps, "
    "bool shuffle, bool has_shortcut, float gain=1.0, bool mask=False) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    block_reference.block_tail_backward,
    _tail_backward_fake,
    _keep_tail_backward,
    _differentiate_tail_twice,
    maps=2,
)


# ---- The same over u, where no gradient is recorded. With the shuffle, a channel would be written over another. ----

LIBRARY.define(
    f"block_tail_(Tensor(a!) u, Tensor? shortcut, {_TAIL}, float norm_eps, float eps, bool relu, float gain=1.0) -> ()",
    tags=_TAGS,
)


def _write_reference(u: Tensor, *inputs: Any) -> None:
    if inputs[1] is not None and (inputs[3] is None or inputs[4] is None):
        raise RuntimeError("block_tail_ needs the statistics of BatchNorm")
    arguments: Any = (*inputs[:13], False, *inputs[13:])  # no shuffle
    u.copy_(block_reference.block_tail(u, *arguments)[0])


def _write_without_gradient(u: Tensor, *inputs: Any) -> None:
    if torch.is_grad_enabled() and torch._C._any_requires_grad(u, *inputs):
        raise RuntimeError("block_tail_ records no gradient: call block_tail where one is needed")
    with torch._C._AutoDispatchBelowAutograd():
        torch.ops.shuffle_attention.block_tail_.default(u, *inputs)
    torch.autograd.graph.increment_version(u)


REFERENCES["block_tail_"] = _write_reference
LIBRARY.impl("block_tail_", _write_reference, "CompositeExplicitAutograd")
LIBRARY.impl("block_tail_", _write_without_gradient, "Autograd")
torch.library.register_fake("shuffle_attention::block_tail_", lambda *_: None, lib=LIBRARY)


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
    """Return shuffle attention over a map: gates per channel and per position, then the channel shuffle.

    Statistics are float32 (float64 for float64) whatever the type of the map. For the equations see
    :mod:`shuffle_attention.kernels.reference`.

    Args:
        x: Map of shape (B, C, L), (B, C, H, W) or (B, C, D, H, W), any floating-point type and layout.
        cweight: Scale of the channel gate, n values in any shape; the other five have as many.
        cbias: Shift of the channel gate.
        sweight: Scale of the spatial gate.
        sbias: Shift of the spatial gate.
        gn_weight: Scale of the normalised plane.
        gn_bias: Shift of the normalised plane.
        groups: Number of groups that the channels are split into, ``C = 2 * n * groups``.
        eps: Added to the variance of a plane.
        shuffle: Whether to interleave the two halves of the channels at the end.
        gain: Factor of every gate, 1 in the paper.

    Returns:
        Map of the shape, type and memory format of ``x``.

    Raises:
        TypeError: If ``x`` does not have a floating-point type.
        InputError: If the shapes do not fit together (a ``ValueError``).

    Source: Zhang & Yang, SA-Net, arXiv:2102.00240, section 3.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be of a floating-point type, got {x.dtype}")
    if not 3 <= x.dim() <= 5:
        raise InputError(f"x must have shape (B, C, *spatial) with 1 to 3 spatial dimensions, got {tuple(x.shape)}")
    parameters = (cweight, cbias, sweight, sbias, gn_weight, gn_bias)
    n = cweight.numel()
    sizes = [p.numel() for p in parameters]
    if n == 0 or any(size != n for size in sizes):
        raise InputError(f"the six parameters must all have the same number of values, got {sizes}")
    if x.shape[1] != 2 * n * groups:
        raise InputError(
            f"x must have 2 * n * groups = {2 * n * groups} channels for groups={groups} and parameters "
            f"of n = {n} values, got {tuple(x.shape)}"
        )
    # Traces, exported programs and ONNX run elsewhere, where this package may not exist.
    if reference.in_use or torch.jit.is_tracing() or reference.is_exporting() or torch.onnx.is_in_onnx_export():
        if groups == 1 and not shuffle:
            return reference.halves(x, *parameters, eps, gain)
        return reference.shuffle_attention(x, *parameters, eps, shuffle, gain)
    return torch.ops.shuffle_attention.shuffle_attention(x, *parameters, eps, shuffle, gain)
