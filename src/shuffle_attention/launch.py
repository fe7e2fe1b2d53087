"""What the commands do around the jobs: processes, devices, folders, and the figures that they print."""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.table import Table
from timm.utils.distributed import init_distributed_device_so
from torch import distributed

from .checkpoints import read_checkpoint
from .datasets import open_split
from .errors import DataError, InputError
from .evaluation import evaluate
from .files import require_folder_of
from .loading import Place, evaluation_batches
from .network import recipe_of, restore_network
from .problem import Problem
from .progress import console
from .recipe import Recipe, RunRecipe, load_recipe, recipe_names
from .reporting import RunFiles, versions, write_text
from .training import Interrupted, Outcome, train

R = TypeVar("R", bound=RunRecipe)


def train_command(
    problem: type[Problem], name: str | None, overrides: dict[str, Any], output: str | None, resume: str | None
) -> int:
    """Runs ``sanet train`` or its like for another kind of network, and returns its exit code."""
    if resume not in (None, "", "auto"):
        if output is not None and output != resume:
            raise InputError(f"--resume {resume} and --output {output} name two folders; give one")
        output = resume
    if resume in ("", "auto") and output is None:
        raise InputError("--resume needs the folder of a run: --resume DIR, or --output DIR --resume auto")
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    if output is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0:
        raise InputError("torchrun with --max-restarts needs --output DIR, so that a restart finds the run")
    recipe = continued = None
    if (output is not None and resume is not None) or restarted:
        continued = RunFiles(Path(output or ""))
        if continued.last.exists():
            if name is not None and resume != "auto" and not restarted:
                raise InputError(
                    f"--resume continues with the recipe in {output}; single fields can be given, --recipe not"
                )
            content = read_checkpoint(continued.last)
            recipe = recipe_of(content, continued.last, problem.recipe_type)[0].replaced(**overrides)
        elif resume == "auto" or restarted:
            continued = None
        else:
            raise InputError(f"no run to continue in {output}: there is no {continued.last}")
    if recipe is None:
        recipe = named_recipe(name, overrides, problem.recipe_type)
        if resume is None and output is not None and not restarted and RunFiles(Path(output)).config.exists():
            raise InputError(
                f"{output} holds a run already; continue it with --resume {output}, or name another --output"
            )
    with place_on(recipe.device) as place:
        folder = _shared(output or f"runs/{recipe.title}-{time.strftime('%Y%m%d-%H%M%S')}", place)
        if place.rank == 0:
            verb = "continuing" if continued else "training"
            console.print(
                f"{verb} {recipe.title} on {recipe.data}, {recipe.epochs} epochs, {_where(place)}, in {folder}"
            )
        try:
            outcome = train(recipe, folder, place, resume=continued is not None, problem=problem)
        except Interrupted as interrupted:
            if place.rank == 0:
                console.print(str(interrupted))
            return interrupted.exit_code
        if place.rank == 0:
            _print_outcome(outcome, problem.best_figures(outcome.best))
    return 0


def evaluate_command(
    checkpoint: str, overrides: dict[str, Any], batch_size: int, *, ema: bool | None, json_file: str | None
) -> int:
    """Runs ``sanet eval`` and returns its exit code."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    require_folder_of("--json", json_file)
    special = {name: overrides[name] for name in ("model", "model_args", "in_chans", "small_stem") if name in overrides}
    restored = restore_network(checkpoint, ema=ema, settings=special)
    recipe = restored.recipe.replaced(**{"device": "auto", "workers": 2, **overrides})
    if restored.classes is not None and len(restored.classes) == 1000 and "data" not in overrides:
        raise InputError(f"{checkpoint} tells ImageNet's classes apart; --data DIR has to say where its images are")
    with place_on(recipe.device) as place:
        data = open_split(recipe, "val", _classes_for(recipe, restored.classes))
        known = getattr(data, "classes", None)
        if known is not None and len(known) != restored.num_classes:
            raise DataError(
                f"{checkpoint} tells {restored.num_classes} classes apart and {recipe.data} has {len(known)}, and the "
                f"file does not say what its classes are called"
            )
        scores = evaluate(
            place.take(restored.model, channels_last=recipe.channels_last),
            evaluation_batches(data, recipe, place, batch_size),
            place,
            precision=recipe.precision,
            channels_last=recipe.channels_last,
        )
        if place.rank != 0:
            return 0
        scores = replace(scores, unreadable=scores.unreadable + getattr(data, "left_out", 0))
    figures = {
        "checkpoint": str(checkpoint),
        "weights": restored.weights,
        "model": recipe.model,
        "data": recipe.data,
        "classes": restored.num_classes,
        "img_size": recipe.img_size,
        "crop_pct": recipe.crop_pct,
        **scores.to_dict(),
        "batch_size": batch_size,
        "device": str(place.device),
        **versions(),
    }
    _print_scores(figures)
    if json_file is not None:
        write_text(Path(json_file), json.dumps(figures, indent=2) + "\n")
    return 0


def named_recipe(name: str | None, overrides: dict[str, Any], kind: type[R] = Recipe) -> R:
    """Returns the recipe that a command names, that of the embedded digits by default, with what it says otherwise."""
    if name is None and overrides.get("data", "digits") != "digits":
        others = [known for known in recipe_names(kind) if known != "digits"]
        raise InputError(f"name a recipe for these data: --recipe {', '.join(others)}")
    return load_recipe(name or "digits", kind).replaced(**overrides)


def _classes_for(recipe: Recipe, classes: list[str] | None) -> list[str] | None:
    """ImageNet's class names serve a folder that is named by them; any other folder of 1000 is taken in its order."""
    if classes is None or recipe.data.startswith("digits") or not Path(recipe.data).is_dir():
        return classes
    from .folders import scan_tree

    if len(classes) == 1000 and not set(scan_tree(recipe.data, "val").classes) & set(classes):
        return None
    return classes


@contextmanager
def place_on(device: str) -> Iterator[Place]:
    """This process among those that torchrun or SLURM started, if any did."""
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator.type if accelerator else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    found = init_distributed_device_so(device)
    place = Place(torch.device(found["device"]), int(found["global_rank"]), int(found["world_size"]))
    if place.rank != 0:
        logging.getLogger(__package__).setLevel(logging.ERROR)
    try:
        yield place
    finally:
        if place.world > 1:
            distributed.destroy_process_group()


def _shared(value: str, place: Place) -> str:
    """The first process's value, on all of them."""
    values = [value]
    if place.world > 1:
        distributed.broadcast_object_list(values, src=0, device=place.device)
    return values[0]


def _where(place: Place) -> str:
    return f"{place.device}" if place.world == 1 else f"{place.world} processes on {place.device.type}"


def _print_outcome(outcome: Outcome, figures: dict[str, str]) -> None:
    table = Table(title=f"best epoch: {outcome.best['epoch']:.0f}", title_justify="left", show_header=False)
    for name, text in figures.items():
        table.add_row(name, text)
    files = outcome.files
    for name, path in (("checkpoint", files.best), ("curves", files.curves), ("figures", files.metrics)):
        table.add_row(name, str(path))
    if files.report.exists():
        table.add_row("report", str(files.report))
    console.print(table)


def _print_scores(figures: dict[str, Any]) -> None:
    table = Table(title=f"{figures['model']} from {figures['checkpoint']}", title_justify="left")
    for column in ("top-1 %", "top-5 %", "loss", "images", "images/s", "size", "classes", "weights"):
        table.add_column(column, justify="right")
    table.add_row(
        f"{figures['top1']:.3f}",
        f"{figures['top5']:.3f}",
        f"{figures['loss']:.4f}",
        f"{figures['images']:,}",
        f"{figures['images_per_second']:,.0f}",
        str(figures["img_size"]),
        str(figures["classes"]),
        figures["weights"] or "state dict",
    )
    console.print(table)
    if figures["unreadable"]:
        console.print(f"{figures['unreadable']} images could not be read and are not counted")
