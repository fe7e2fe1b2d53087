"""The commands ``sanet train`` and ``sanet eval``; what they do is imported when they run."""

import argparse
from typing import Any

from ..recipes.arguments import add_evaluation, add_training, overrides
from ..recipes.recipe import Recipe

_EVALUATION_FIELDS = (
    "data data_dir val_split workers check_images skip_bad_images img_size mean std interpolation crop_pct "
    "model model_args in_chans small_stem device precision channels_last"
)


def add_classification(commands: Any) -> None:
    """Adds both commands."""
    add_training(commands, Recipe, _train)
    held = "checkpoint of sanet train, a published one, or bare weights"
    add_evaluation(commands, Recipe, _evaluate, checkpoint=held, batch_size=128, fields=_EVALUATION_FIELDS)


def _train(options: argparse.Namespace) -> int:
    from ..tasks.classification.task import Classification
    from .train import train_command

    return train_command(Classification, options.recipe, overrides(options), options.output, options.resume)


def _evaluate(options: argparse.Namespace) -> int:
    from .evaluate import evaluate_command

    return evaluate_command(
        options.checkpoint, overrides(options), options.batch_size, ema=options.ema, json_file=options.json
    )
