"""The command ``sanet train``."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import InputError
from ..recipes.recipe import Recipe, RunRecipe, load_recipe, recipe_names
from ..recipes.settings import option
from . import Command

if TYPE_CHECKING:
    from ..device import Process
    from ..training.state import RunState

R = TypeVar("R", bound=RunRecipe)


@dataclass(kw_only=True)
class Train(Command):
    """Train a classifier. Every field of the recipe is an option as well."""

    name = "train"
    summary = "train a classifier"
    recipe_type = Recipe

    recipe: str | None = option(None, "{recipes}, or a YAML file")
    output: str | None = option(None, "folder of the run; by default runs/MODEL-TIME", metavar="DIR")
    resume: str | None = option(
        None, "continue the run in DIR, or in --output; 'auto' starts it if there is none yet", metavar="DIR", const=""
    )

    def run(self) -> int:
        """Train, or continue a run."""
        from ...checkpoints import read_checkpoint
        from ..console import console
        from ..device import open_process
        from ..network import recipe_of
        from ..tasks import task_named
        from ..training.loop import train
        from ..training.run_folder import RunFolder
        from ..training.signals import Interrupted

        task = task_named(self.recipe_type.kind)
        overrides, output, resume = self.overrides, self.output, self.resume
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
            continued = RunFolder(Path(output or ""))
            if continued.last.exists():
                if self.recipe is not None and resume != "auto" and not restarted:
                    raise InputError(
                        f"--resume continues with the recipe in {output}; single fields can be given, --recipe not"
                    )
                content = read_checkpoint(continued.last)
                recipe = recipe_of(content, continued.last, task.Recipe)[0].replaced(**overrides)
            elif resume == "auto" or restarted:
                continued = None
            else:
                raise InputError(f"no run to continue in {output}: there is no {continued.last}")
        if recipe is None:
            recipe = named_recipe(self.recipe, overrides, task.Recipe)
            if resume is None and output is not None and not restarted and RunFolder(Path(output)).config.exists():
                raise InputError(
                    f"{output} holds a run already; continue it with --resume {output}, or name another --output"
                )
        with open_process(recipe.device) as process:
            folder = _shared(output or f"runs/{recipe.title}-{time.strftime('%Y%m%d-%H%M%S')}", process)
            if process.rank == 0:
                verb = "continuing" if continued else "training"
                console.print(
                    f"{verb} {recipe.title} on {recipe.data}, {recipe.epochs} epochs, {_where(process)}, in {folder}"
                )
            try:
                state = train(recipe, folder, process, resume=continued is not None, task=task)
            except Interrupted as interrupted:
                if process.rank == 0:
                    console.print(str(interrupted))
                return interrupted.exit_code
            if process.rank == 0:
                _print_outcome(state)
        return 0


def named_recipe(name: str | None, overrides: dict[str, Any], kind: type[R] = Recipe) -> R:
    """Return the recipe that a command names, by default that of the digits, with the fields that were given."""
    if name is None and overrides.get("data", "digits") != "digits":
        others = [known for known in recipe_names(kind) if known != "digits"]
        raise InputError(f"name a recipe for these data: --recipe {', '.join(others)}")
    return load_recipe(name or "digits", kind).replaced(**overrides)


def _shared(value: str, process: Process) -> str:
    """Return the first process's value on all of them."""
    from torch import distributed

    values = [value]
    if process.world_size > 1:
        distributed.broadcast_object_list(values, src=0, device=process.device)
    return values[0]


def _where(process: Process) -> str:
    return (
        f"{process.device}" if process.world_size == 1 else f"{process.world_size} processes on {process.device.type}"
    )


def _print_outcome(state: RunState) -> None:
    from rich.table import Table

    from ..console import console
    from ..tasks.task import outcome

    best, files = state.best or {}, state.files
    table = Table(title=f"best epoch: {best['epoch']:.0f}", title_justify="left", show_header=False)
    for name, text in outcome(state.task.metrics, best).items():
        table.add_row(name, text)
    for name, path in (("checkpoint", files.best), ("curves", files.curves), ("metrics", files.metrics)):
        table.add_row(name, str(path))
    if files.report.exists():
        table.add_row("report", str(files.report))
    console.print(table)
