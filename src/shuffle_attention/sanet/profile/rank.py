"""Positions for attention, ranked by what attention there is expected to gain for its time."""

import copy
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...attach import attach
from ...attention.spec import Attention
from ...errors import InputError
from ..timing import interleaved

_SAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True, kw_only=True)
class RankedPosition:
    """One position for attention.

    Attributes:
        position: Name of the module that attention follows, which ``attach(where=[...])`` takes.
        shape: Channels, height and width of the map.
        gain: Estimate of the squared norm of the loss's gradient with respect to the attention's parameters.
        low: Lower end of the 95 % bootstrap interval of the gain.
        high: Upper end.
        microseconds: Time of the layer on such a map, for one image.
        per_microsecond: Gain by microsecond, which the order is by.
        in_best: Share of the bootstrap samples in which the position is among the best three.
    """

    position: str
    shape: tuple[int, ...]
    gain: float
    low: float
    high: float
    microseconds: float
    per_microsecond: float
    in_best: float


def rank_positions(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    attention: Attention = "shuffle",
    where: Any = "residual",
    *,
    best: int = 3,
    repetitions: int = 21,
    **options: Any,
) -> list[RankedPosition]:
    """Return positions for attention in a classifier, the most promising first.

    Attention is attached at all positions as the identity, to a copy of the model in evaluation mode, so that all
    gradients are taken at the function that the model computes. With g_b the gradient of the mean cross-entropy of
    batch b with respect to the parameters of one layer, a step of gradient descent with rate r changes the loss by
    -r |E g|^2 to first order. Over K batches, |E g|^2 is estimated without bias by the mean of <g_b, g_c> over all
    pairs b != c; noise alone has the estimate 0, and may have a negative one. The interval is from the bootstrap over
    batches; pairs of a batch with itself are left out there too.

    The estimate compares positions for one kind of attention. It cannot tell what training makes of a layer later on,
    and part of it are constant gates, which norms could learn as well.

    Args:
        model: Model that returns logits, without attached attention.
        batches: At least 4 batches of images (B, C, H, W) and labels (B,), in random order.
        attention: What :func:`create_attention` accepts.
        where: Positions, as :func:`attach` takes them.
        best: Number of positions that ``in_best`` counts.
        repetitions: Repetitions of the time measurement.
        **options: Options of the layer.

    Raises:
        InputError: If attention cannot be attached there, there are fewer than 4 batches, or all gradients are zero.
    """
    model = copy.deepcopy(model).eval()
    batches = list(batches)
    if len(batches) < 4:
        raise InputError(f"ranking needs at least 4 batches, got {len(batches)}")
    report = attach(model, attention, where=where, example=batches[0][0][:2], **options)
    layers = {row.place: model.get_submodule(row.name) for row in report.layers}
    inputs: dict[str, Tensor] = {}

    def keep(place: str, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs[place] = given[0][:8].detach()

    for place, layer in layers.items():
        layer.register_forward_pre_hook(functools.partial(keep, place))
    gradients: dict[str, list[Tensor]] = {place: [] for place in layers}
    parameters = {place: [*layer.parameters()] for place, layer in layers.items()}
    flat = [p for own in parameters.values() for p in own]
    for images, labels in batches:
        loss = functional.cross_entropy(model(images), labels)
        grads = iter(torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True))
        for place, own in parameters.items():
            gradients[place].append(torch.cat([next(grads).flatten() for _ in own]))
    if not any(bool(gradient.any()) for own in gradients.values() for gradient in own):
        raise InputError(
            "the loss does not depend on attention at any position: the norms before the additions may start at zero. "
            "Rank a trained model, or create it with zero_init_last=False"
        )
    grams = {place: torch.stack(each).double() for place, each in gradients.items()}
    grams = {place: (each @ each.T).cpu() for place, each in grams.items()}
    with torch.no_grad():
        for layer in layers.values():
            layer._forward_pre_hooks.clear()
        by_shape = {str(x.shape): lambda p=place, x=x: layers[p](x) for place, x in inputs.items()}
        times = interleaved(by_shape, repetitions)
    # The shortest time: other work on the machine only adds to it.
    shortest = {shape: min(each.seconds) for shape, each in times.items()}
    microseconds = {place: 1e6 * shortest[str(x.shape)] / len(x) for place, x in inputs.items()}
    once = torch.ones(1, len(batches), dtype=torch.float64)
    draws = torch.randint(len(batches), (_SAMPLES, len(batches)), generator=torch.Generator().manual_seed(0))
    counts = functional.one_hot(draws, len(batches)).sum(1).double()
    counts = counts[counts.amax(1) < len(batches)]  # one batch alone has no pairs
    samples = torch.stack([_squared_norm(gram, counts) / microseconds[p] for p, gram in grams.items()])
    chosen = samples.argsort(0, descending=True)[:best]
    rows = []
    for index, (place, gram) in enumerate(grams.items()):
        gain = float(_squared_norm(gram, once))
        low, high = (samples[index] * microseconds[place]).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        rows.append(
            RankedPosition(
                position=place,
                shape=tuple(inputs[place].shape[1:]),
                gain=gain,
                low=low,
                high=high,
                microseconds=microseconds[place],
                per_microsecond=gain / microseconds[place],
                in_best=float((chosen == index).any(0).double().mean()),
            )
        )
    return sorted(rows, key=lambda row: -row.per_microsecond)


def _squared_norm(gram: Tensor, counts: Tensor) -> Tensor:
    """Return unbiased estimates of the squared norm of a mean gradient, one per row of counts.

    Args:
        gram: Inner products of the gradients of K batches, (K, K).
        counts: How often each batch is in the sample, (samples, K).
    """
    apart = gram - gram.diag().diag()
    pairs = counts.sum(1).square() - counts.square().sum(1)
    return ((counts @ apart) * counts).sum(1) / pairs
