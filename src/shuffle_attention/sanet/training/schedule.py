"""Optimiser and learning-rate schedule of a run."""

from functools import partial
from typing import Any, cast

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from ...attention import gate_names
from ...errors import asked_for
from ..recipes.recipe import RunRecipe


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
    return schedule


def _parameter_groups(model: nn.Module, recipe: RunRecipe) -> Any:
    """Return parameters with and without weight decay; gates, also of attached layers, count as norms and biases."""
    left_out = set()
    if not recipe.decay_norm_and_bias:
        left_out = gate_names(model) | set(getattr(model, "no_weight_decay", set)())
    return param_groups_weight_decay(
        model,
        recipe.weight_decay,
        weight_decay_exclude_1d=not recipe.decay_norm_and_bias,
        no_weight_decay_list=left_out,
    )
