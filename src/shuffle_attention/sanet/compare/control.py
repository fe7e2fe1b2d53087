"""A wider plain network that costs as much as attention does: what the same time buys without attention."""

import gc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ...errors import InputError
from ..console import console
from ..device import Process, autocast
from ..profile.costs import training_step
from ..tasks.evaluation import to_device
from ..timing import Times, interleaved
from .comparison import Comparison, read_comparison
from .variants import Variant

_CHANNELS = [64, 128, 256, 512]  # of timm's ResNet
_BATCH = 32  # images of a timed step, at most
_REPETITIONS = 15
_LEAST = 1.02  # a ratio of times below this is noise
_EXPONENT = 1.5  # time grows with the width at least, and at most with its square
_CLOSE, _MATCHED, _TRIES = 0.03, 0.1, 6  # errors of the matched time that end the search, and that are accepted


def with_control(comparison: Comparison, process: Process) -> Comparison:
    """Return the comparison with a wider baseline whose training step takes as long as that of the costliest variant.

    Multiply-adds cannot measure the cost of attention, which is mostly elementwise. Steps are timed in turn on the
    device of the run, and widths are tried until one takes as long. The width and the times are kept in
    ``comparison.yaml``, so the same command goes on with them. If no variant takes 2 % longer than the baseline, the
    baseline is the control, and none is added.

    Raises:
        InputError: If the baseline is not a plain ResNet.
    """
    return process.first(_with_control(comparison, process.device) if process.rank == 0 else None)


def _with_control(comparison: Comparison, device: torch.device) -> Comparison:
    baseline, seed = comparison.variants[0], comparison.base.seed
    recipes = {v.name: v.recipe(comparison.base, seed) for v in comparison.variants if not v.twin}
    if not baseline.model.startswith("resnet") or recipes[baseline.name].attach:
        raise InputError(f"--control width widens a plain ResNet: the baseline must be none, got {baseline.name}")
    stored = _stored(comparison)
    times: dict[str, Any] = dict(stored.cost["step"]) if stored else {}
    new = {name: recipe for name, recipe in recipes.items() if name not in times}
    if new:
        times |= _over(baseline.name, step_times({baseline.name: recipes[baseline.name]} | new, comparison, device))
    if stored:
        control = replace(stored, cost=stored.cost | {"step": times})
        return replace(comparison, variants=[*comparison.variants, control])
    costliest = max(times, key=lambda name: times[name][0])
    base, target, ratio = recipes[baseline.name], recipes[costliest], times[costliest][0]
    wide = _widened(base, target, ratio, comparison, device) if ratio >= _LEAST else base
    if wide is base:
        console.print(
            f"a training step of {costliest}, the costliest, takes {ratio:.2f} of the time of {baseline.name}, which "
            f"is its own control of width"
        )
        return comparison
    name, own = f"{baseline.name}-wide", {"channels": wide.network_args["channels"]}
    # All are timed in one round, since the load of a machine changes from round to round.
    times = _over(baseline.name, step_times(recipes | {name: wide}, comparison, device))
    match = times[name][0] / times[costliest][0]
    if abs(match - 1) > _MATCHED:
        raise InputError(
            f"no width of {baseline.name} was found whose training step takes as long as that of {costliest}, but one "
            f"of {match:.2f} of it; if the machine is busy, try again when it is not"
        )
    console.print(
        f"{name}: channels {', '.join(map(str, own['channels']))}; a training step takes {times[name][0]:.2f} of the "
        f"time of {baseline.name}, and {match:.2f} of that of {costliest}"
    )
    control = replace(baseline, name=name, own_args=own, cost={"like": costliest, "step": times})
    return replace(comparison, variants=[*comparison.variants, control])


def timed_again(comparison: Comparison, device: torch.device) -> Comparison:
    """Return the comparison with the training steps of all models timed again, in one round.

    Raises:
        InputError: If it has no control of width.
    """
    if (stored := _stored(comparison)) is None:
        raise InputError(f"{comparison.folder} has no control of width, whose comparison needs the times of steps")
    recipes = {v.name: v.recipe(comparison.base, comparison.base.seed) for v in comparison.variants if not v.twin}
    times = _over(comparison.variants[0].name, step_times(recipes, comparison, device))
    control = replace(stored, cost=stored.cost | {"step": times})
    return replace(comparison, variants=[control if v.cost else v for v in comparison.variants])


def _widened(base: Any, target: Any, ratio: float, comparison: Comparison, device: torch.device) -> Any:
    """Return the recipe of the width whose training step takes as long as that of another recipe.

    Args:
        base: Recipe of the plain network.
        target: Recipe of the other one.
        ratio: Time of its step over that of the plain network.
        comparison: The comparison.
        device: Device to measure on.
    """
    channels = base.network_args.get("channels", _CHANNELS)
    best, tried, factor = (base, 1 / ratio), [channels], ratio ** (1 / _EXPONENT)
    while abs(best[1] - 1) > _CLOSE and len(tried) <= _TRIES:
        width = [round(factor * each) for each in channels]
        if width in tried:
            break
        tried.append(width)
        wide = base.replaced(**{base.network[1]: base.network_args | {"channels": width}})
        times = step_times({"target": target, "wide": wide}, comparison, device)
        match = times["wide"].over(times["target"])[0]
        best = min(best, (wide, match), key=lambda each: abs(each[1] - 1))
        factor *= match ** (-1 / _EXPONENT)
    return best[0]


def _stored(comparison: Comparison) -> Variant | None:
    """Return the control that the folder of the comparison has already."""
    if not (comparison.folder / "comparison.yaml").exists():
        return None
    return next((variant for variant in read_comparison(comparison.folder).variants if variant.cost), None)


def _over(baseline: str, times: Mapping[str, Times]) -> dict[str, list[float]]:
    """Return the median of the ratios of each to the baseline, with quartiles."""
    return {name: list(each.over(times[baseline])) for name, each in times.items()}


def step_times(recipes: Mapping[str, Any], comparison: Comparison, device: torch.device) -> dict[str, Times]:
    """Return the times of training steps of models, in the precision and memory format of their recipe."""
    process, steps = Process(device), {}
    for name, recipe in recipes.items():
        model = comparison.task.untrained(recipe, comparison.num_classes)
        inputs = comparison.task.step_inputs(recipe, model, min(recipe.batch_size, _BATCH))
        model = process.to_device(model, channels_last=recipe.channels_last)
        steps[name] = training_step(model, *to_device(inputs, device))
    with autocast(process, comparison.base.precision):
        times = interleaved(steps, _REPETITIONS)
    steps.clear()
    gc.collect()
    return times
