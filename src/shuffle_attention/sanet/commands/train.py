"""The command ``sanet train``."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ...errors import BAD_INPUT, InputError, counted
from ..recipes.recipe import Recipe, RunRecipe, load_recipe, recipe_fields
from ..recipes.settings import option
from . import Command

if TYPE_CHECKING:
    from ..device import Process
    from ..tasks.task import Task
    from ..training.run_folder import RunFolder
    from ..training.state import RunState

R = TypeVar("R", bound=RunRecipe)


@dataclass(kw_only=True)
class Train(Command):
    """Train a classifier on a folder of images.

    Every field of the recipe is an option as well. A value in brackets holds unless the recipe has another;
    sanet recipes shows the recipes.
    """

    name = "train"
    summary = "train a classifier"
    examples = (
        "sanet train --data photos --output runs/photos\n"
        "sanet train --recipe digits --output runs/digits\n"
        "sanet train --resume runs/photos"
    )
    recipe_type = Recipe

    images: ClassVar[str] = "a folder with train/CLASS/*.jpg and val/CLASS/*.jpg, or with CLASS/*.jpg"
    recipe: str | None = option(None, "{recipes}, or a YAML file; by default chosen for the data")
    output: str | None = option(None, "folder of the run; by default runs/MODEL-TIME", metavar="DIR")
    resume: str | None = option(
        None, "continue the run in DIR, or in --output; 'auto' starts it if there is none yet", metavar="DIR", const=""
    )

    def run(self) -> int:
        """Train, or continue a run."""
        if not (self.recipe or self.resume is not None or "data" in self.overrides):
            self.recipe_type().replaced(**self.overrides)  # a value that cannot be used is worth saying first
            print(self._explanation(), file=sys.stderr)
            return BAD_INPUT

        from ..console import console
        from ..device import open_process
        from ..tasks import task_named
        from ..training.loop import train
        from ..training.run_folder import RunFolder
        from ..training.signals import Interrupted

        task = task_named(self.recipe_type.kind)
        self._require_folder()
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        recipe, resume = self._recipe(task, restarted)
        device = recipe.device if recipe else self.overrides.get("device", "auto")
        with open_process(device) as process:
            # A machine that returns to a run on several starts its processes for the first time.
            returned = any(process.gather(restarted))
            with process.all_or_none():
                if process.rank == 0 and returned and not resume:
                    recipe, resume = self._recipe(task, returned)
                if process.rank == 0 and recipe is None:
                    task.check_recipe(task.Recipe().replaced(**self.overrides))  # before the images are looked at
                    recipe, why = task.choose_recipe(self.overrides)
                    console.print(why)
            recipe, resume = process.first((recipe, resume))
            assert recipe is not None
            folder = self._folder or process.first(f"runs/{recipe.title}-{time.strftime('%Y%m%d-%H%M%S')}")
            if process.rank == 0:
                verb, epochs = "continuing" if resume else "training", counted(recipe.epochs, "epoch")
                console.print(f"{verb} {recipe.title} on {recipe.data}, {epochs}, {_where(process)}, in {folder}")
            try:
                state = train(recipe, folder, process, resume=resume, task=task)
            except Interrupted as interrupted:
                if process.rank == 0:
                    console.print(str(interrupted))
                return interrupted.exit_code
            except OSError as error:
                raise InputError(f"{_reason(error)}. {_way_on(RunFolder(Path(folder)), recipe)}") from error
            if process.rank == 0:
                _print_outcome(state)
            # Its DistributedDataParallel has to end before the process group: the other way round, it waits for a
            # thread of the group that waits for Python's lock.
            del state
        return 0

    def _explanation(self) -> str:
        command = self.recipe_type.command
        return f"""{command} needs images: {self.images}.

  {command} --data photos --output runs/photos

The settings are then chosen for the images, unless --recipe names them; sanet recipes lists what there is.
To see a run without images of your own, take the recipe digits:

  {command} --recipe digits --output runs/digits

{command} --help all lists all options."""

    @property
    def _folder(self) -> str | None:
        """The folder of the run, if one was given."""
        return self.resume if self.resume not in (None, "", "auto") else self.output

    def _require_folder(self) -> None:
        if self.output is not None and self._folder != self.output:
            raise InputError(f"--resume {self.resume} and --output {self.output} name two folders; give one")
        if self.resume is not None and self._folder is None:
            raise InputError("--resume needs the folder of a run: --resume DIR, or --output DIR --resume auto")
        if self._folder is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0:
            raise InputError("torchrun with --max-restarts needs --output DIR, so that a restart finds the run")

    def _recipe(self, task: type[Task], restarted: bool) -> tuple[RunRecipe | None, bool]:
        """Return the recipe, or None if it is to be chosen for the data, and whether it is of a run to continue."""
        from ...checkpoints import read_checkpoint
        from ..network import recipe_of
        from ..training.run_folder import RunFolder

        resumes, may_start = self.resume is not None or restarted, self.resume == "auto" or restarted
        if resumes:
            files = RunFolder(Path(self._folder or ""))
            if files.last.exists():
                if self.recipe is not None and not may_start:
                    raise InputError(
                        f"--resume continues with the recipe in {files.folder}; give single fields, and not --recipe"
                    )
                content = read_checkpoint(files.last)
                return recipe_of(content, files.last, task.Recipe)[0].replaced(**self.overrides), True
            if not may_start:
                began = "; it saved nothing, and the command that started it starts it again" * files.config.exists()
                raise InputError(f"no run to continue in {files.folder}: there is no {files.last}{began}")
        return named_recipe(self.recipe, self.overrides, task.Recipe), False


def named_recipe(name: str | None, overrides: dict[str, Any], kind: type[R] = Recipe) -> R | None:
    """Return the recipe that a command names, with the fields that were given; None if it names data alone.

    Raises:
        InputError: If there is no such recipe, or neither it nor the command names data.
    """
    if name is None and overrides.get("data") == "digits":
        name = "digits"
    if name is None:
        return None
    fields, source = recipe_fields(name, kind)
    if kind.needs_data and "data" not in fields and "data" not in overrides:
        raise InputError(f"{source} does not name images; give their folder: --data DIR")
    return load_recipe(name, kind).replaced(**overrides)


def _reason(error: OSError) -> str:
    return f"{error.strerror}: {error.filename}" if error.strerror and error.filename else str(error)


def _way_on(files: RunFolder, recipe: RunRecipe) -> str:
    """Return how to go on with a run that could not write or read a file."""
    if files.last.exists():
        return f"When that is solved, continue the run with: {recipe.command} --resume {files.folder}"
    return "The run saved nothing; when that is solved, the same command starts it again"


def _where(process: Process) -> str:
    return (
        f"{process.device}" if process.world_size == 1 else f"{process.world_size} processes on {process.device.type}"
    )


def _print_outcome(state: RunState) -> None:
    from rich.table import Table

    from ..console import console
    from ..tasks.task import outcome
    from ..training.gate_activity import verdict

    best, files = state.best or {}, state.files
    table = Table(title=f"best epoch: {best['epoch']:.0f}", title_justify="left", show_header=False)
    for name, text in outcome(state.task.metrics, best).items():
        table.add_row(name, text)
    for name, path in (("checkpoint", files.best), ("curves", files.curves), ("metrics", files.metrics)):
        table.add_row(name, str(path))
    if files.report.exists():
        table.add_row("report", str(files.report))
    console.print(table)
    if state.gates:
        console.print(f"{verdict(state.gates[-1])}.")
