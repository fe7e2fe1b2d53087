"""Optimiser and learning-rate schedule of a run."""

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, cast

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from ...attach.weights import attention_parameters
from ...attention import gate_names
from ...errors import InputError, asked_for, brief, listed
from ..recipes.recipe import RunRecipe

logger = logging.getLogger(__name__)


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude the parameters whose names match a pattern, such as ``layer1.*``, from training.

    Raises:
        InputError: If a pattern matches no parameter, or nothing is left to train.
    """
    for pattern in patterns:
        matching = [parameter for name, parameter in model.named_parameters() if fnmatchcase(name, pattern)]
        if not matching:
            names = [name for name, _ in model.named_parameters()]
            raise InputError(f"freeze: no parameter matches {brief(pattern)}; there are {listed(names, 5)}")
        for parameter in matching:
            parameter.requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"freeze: {listed(list(patterns))} leaves nothing to train")


def create_optimizer(model: nn.Module, recipe: RunRecipe) -> torch.optim.Optimizer:
    """Return the optimiser of a recipe.

    Raises:
        InputError: If timm has no such optimiser.
    """
    with asked_for(opt=recipe.opt):
        return create_optimizer_v2(
            model,
            recipe.opt,
            lr=recipe.peak_lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            param_group_fn=partial(_parameter_groups, recipe=recipe),
        )


def create_schedule(optimizer: torch.optim.Optimizer, recipe: RunRecipe, steps_per_epoch: int) -> Scheduler | None:
    """Return the learning-rate schedule of a recipe, which is updated after every step; None for a constant rate.

    Raises:
        InputError: If timm has no such schedule.
    """
    with asked_for(sched=recipe.sched):
        schedule, _ = create_scheduler_v2(
            optimizer,
            recipe.sched,
            num_epochs=recipe.epochs,
            decay_epochs=recipe.decay_epochs,
            decay_milestones=tuple(recipe.decay_milestones),  # pyright: ignore[reportArgumentType]
            decay_rate=recipe.decay_rate,
            warmup_epochs=cast(int, recipe.warmup_epochs),  # fractions of an epoch work as well
            warmup_lr=recipe.warmup_lr,
            min_lr=recipe.min_lr,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )
    if schedule is None:  # schedules apply the factors of the groups
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
    return schedule


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the present learning rate of an optimiser, without the factor of any group."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)


def _parameter_groups(model: nn.Module, recipe: RunRecipe) -> Any:
    """Return parameters with and without weight decay; gates, also of attached layers, count as norms and biases.

    The parameters of attention are in groups of their own, with ``lr_scale``, if their learning rate differs.
    """
    left_out = set()
    if not recipe.decay_norm_and_bias:
        left_out = gate_names(model) | set(getattr(model, "no_weight_decay", set)())
    groups = param_groups_weight_decay(
        model,
        recipe.weight_decay,
        weight_decay_exclude_1d=not recipe.decay_norm_and_bias,
        no_weight_decay_list=left_out,
    )
    if recipe.attention_lr == 1:
        return groups
    own = {id(parameter) for parameter in attention_parameters(model)}
    if not own:
        logger.warning("attention_lr %g has no effect: %s has no attention", recipe.attention_lr, recipe.title)
    others = [{**group, "params": [p for p in group["params"] if id(p) not in own]} for group in groups]
    scaled = [{**group, "params": [p for p in group["params"] if id(p) in own]} for group in groups]
    return [g for g in (*others, *({**g, "lr_scale": recipe.attention_lr} for g in scaled)) if g["params"]]
