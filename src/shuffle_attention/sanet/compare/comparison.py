"""Training the same recipe with several networks and seeds, in runs that can be stopped and taken up again."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ...errors import InputError
from ...files import LOCK, locked, remove_left_over, write_text
from ..device import Process
from ..network import create_network
from ..profile.costs import Size, size_of
from ..recipes.recipe import Recipe
from ..tasks.classification.task import Classification
from ..training.loop import train
from ..training.run_folder import RunFolder, read_rows
from ..training.signals import Interrupted
from .variants import Variant

# What changes how fast a run goes, or when it looks or saves, and not what comes out of it.
_MAY_CHANGE = ("workers", "check_images", "checkpoint_steps", "report")


@dataclass(frozen=True)
class Run:
    """One variant trained with one seed."""

    variant: Variant
    seed: int
    files: RunFolder

    @property
    def finished(self) -> bool:
        return self.files.summary.exists()

    def history(self, epochs: int) -> list[dict[str, float]]:
        """Returns the figures of its epochs.

        Raises:
            InputError: If they cannot be read, or are of other epochs than ``epochs``.
        """
        rows = read_rows(self.files.metrics)
        if len(rows) != epochs:
            raise InputError(
                f"{self.files.metrics} has {len(rows)} epochs and the comparison {epochs}; delete "
                f"{self.files.folder}, and the command that trained it trains it anew"
            )
        if "val_top1" not in rows[0]:
            raise InputError(f"{self.files.metrics} has no val_top1; it is of no classifier")
        return rows

    def curve(self) -> list[dict[str, float]]:
        """Returns the figures of the evaluations within its epochs, if there were any."""
        return read_rows(self.files.curve) if self.files.curve.exists() else []


@dataclass(frozen=True)
class Comparison:
    """Variants, the recipe that they share, the seeds, and the folder of their runs.

    The folder holds ``comparison.yaml`` and ``VARIANT/seed-N`` for each run, as ``sanet train`` leaves it.

    Attributes:
        variants: What is compared; the first is the baseline.
        base: The recipe; its model and seed are replaced.
        seeds: Seeds of the runs of each.
        folder: Where the runs lie.
        num_classes: What the networks tell apart.
    """

    variants: list[Variant]
    base: Recipe
    seeds: list[int]
    folder: Path
    num_classes: int

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that what is there after a part of them is balanced."""
        return [
            Run(variant, seed, RunFolder(self.folder / variant.name / f"seed-{seed}"))
            for seed in self.seeds
            for variant in self.variants
        ]

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Makes the folder, or makes sure that what it holds is this comparison, and keeps other processes out of it.

        Seeds and variants may be added, and everything may change while no run has begun.

        Raises:
            InputError: If the folder holds something else, or another process is working in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            remove_left_over(self.folder)
            self._say_what_is_compared()
            yield

    def _say_what_is_compared(self) -> None:
        path = self.folder / "comparison.yaml"
        said: dict[str, Any] = {
            "num_classes": self.num_classes,
            "recipe": self.shared_fields(),
            "variants": {v.name: [v.model, v.model_args, v.attach] for v in self.variants},
        }
        if any(self.folder.glob("*/seed-*/config.yaml")) and path.exists():
            before = _read(path)
            recipe = _recipe(before, path).to_dict()
            differences = [
                f"{name} was {recipe[name]!r} and is {value!r}"
                for name, value in said["recipe"].items()
                if name not in _MAY_CHANGE and recipe[name] != value
            ]
            differences += [
                f"{name} was {before['variants'][name]} and is {what}"
                for name, what in said["variants"].items()
                if before["variants"].get(name, what) != what
            ]
            if differences:
                raise InputError(f"{self.folder} holds another comparison: {'; '.join(differences)}")
            said["variants"] = before["variants"] | said["variants"]
        elif not path.exists() and any(entry.name != LOCK for entry in self.folder.iterdir()):
            raise InputError(f"{self.folder} is not empty and holds no comparison; name another --output")
        write_text(path, yaml.safe_dump(said, sort_keys=False))

    def sizes(self) -> dict[str, Size]:
        """Returns what each network has and computes for one image; nothing is stored for it.

        Raises:
            InputError: If a network cannot be made.
        """
        found = {}
        for variant in self.variants:
            recipe = variant.recipe(self.base, self.seeds[0])
            with torch.device("meta"):
                network = create_network(recipe, self.num_classes, restored=True)
            found[variant.name] = size_of(network, recipe.in_chans, recipe.img_size)
        return found

    def train(self, process: Process, announce: Callable[[Run, int], None]) -> dict[str, str]:
        """Trains what is not finished, and returns what failed and why, by the folder of the run.

        A run that fails does not stop the others. What could be looked at once is not looked at again.

        Args:
            process: Where to train; every process of a distributed comparison calls this.
            announce: Called with each run that is about to start, and its process among all of them.

        Raises:
            Interrupted: If a signal to stop arrived; the run in training is saved or finished.
        """
        failed = {}
        base = self.base
        for number, run in self._unfinished():
            announce(run, number)
            recipe = run.variant.recipe(base, run.seed)
            try:
                result = train(recipe, run.files.folder, process, task=Classification, resume=run.files.last.exists())
            except (InputError, RuntimeError, OSError) as error:
                # Processes that do not fail together would wait for one another.
                if process.world_size > 1:
                    raise
                failed[os.fspath(run.files.folder)] = str(error) or type(error).__name__
            else:
                base = base.replaced(check_images=False)
                if result.stop is not None:
                    raise Interrupted(result.stop)
            if process.device.type == "cuda":
                torch.cuda.empty_cache()
        return failed

    def _unfinished(self) -> Iterator[tuple[int, Run]]:
        for number, run in enumerate(self.runs, 1):
            if not run.finished:
                yield number, run

    def shared_fields(self) -> dict[str, Any]:
        """Returns the fields of the recipe that all runs share, ``model_args`` those that each takes further."""
        return {name: value for name, value in self.base.to_dict().items() if name not in ("model", "seed")}


def read_comparison(folder: Path) -> Comparison:
    """Returns the comparison in a folder, with the seeds that any of its runs has.

    Raises:
        InputError: If there is none.
    """
    path = folder / "comparison.yaml"
    if not path.exists():
        raise InputError(f"no comparison in {folder}: there is no {path}")
    said = _read(path)
    variants = [Variant(name, *what) for name, what in said["variants"].items()]
    names = {found.name for variant in variants for found in (folder / variant.name).glob("seed-*")}
    seeds = sorted(int(name.removeprefix("seed-")) for name in names if re.fullmatch("seed-[0-9]+", name))
    base = _recipe(said, path)
    return Comparison(variants, base, seeds, folder, said.get("num_classes") or count_classes(base))


def count_classes(recipe: Recipe) -> int:
    """Returns how many classes the networks of a recipe tell apart.

    Raises:
        InputError: If the data cannot be used.
    """
    return Classification.open(recipe.replaced(check_images=False), check=False).num_classes


def _recipe(said: dict[str, Any], path: Path) -> Recipe:
    try:
        return Recipe().replaced(**{str(name): value for name, value in said["recipe"].items()})
    except InputError as error:
        raise InputError(f"{path} holds a recipe that cannot be used: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    right = isinstance(said, dict) and all(isinstance(said.get(key), dict) for key in ("recipe", "variants"))
    kinds = (str, dict, dict)
    if not right or not all(
        isinstance(what, list) and len(what) == len(kinds) and all(map(isinstance, what, kinds))
        for what in said["variants"].values()
    ):
        raise InputError(f"{path} does not say what is compared")
    return said
