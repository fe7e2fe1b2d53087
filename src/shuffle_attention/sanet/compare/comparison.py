"""Train one recipe with several models and seeds, in runs that can be stopped and continued."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals
from typing import Any, ClassVar

import torch
import yaml

from ...errors import InputError
from ...files import remove_left_over, write_json, write_text
from ..device import Process
from ..profile.costs import AnySize
from ..recipes.settings import read_yaml
from ..tasks import task_named
from ..tasks.task import Score
from ..training.loop import train
from ..training.run_folder import RunFolder, read_rows
from ..training.run_lock import LOCK, run_lock
from ..training.signals import Interrupted
from .variants import FURTHER, Variant

_CLASSIFIERS = "classifiers"  # kind in the folders of version 0.1


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
        """Return the metrics of each epoch.

        Raises:
            InputError: If the history cannot be read, or its number of epochs is not ``epochs``.
        """
        path = self.files.metrics
        rows = {row.get("epoch", number): row for number, row in enumerate(read_rows(path))}
        if len(rows) != epochs:
            raise InputError(
                f"{path} has {len(rows)} epochs and the comparison {epochs}; delete {self.files.folder}, and the "
                f"command that trained it will train it again"
            )
        return [*rows.values()]

    @property
    def seconds(self) -> float | None:
        """Wall time of a finished run, or None if it was trained by another command, or not in one go."""
        seconds = self.files.read_summary().get("seconds")
        return seconds if isinstance(seconds, int | float) else None

    def curve(self) -> list[dict[str, float]]:
        """Return the metrics of the evaluations within its epochs, empty without any."""
        return read_rows(self.files.curve) if self.files.curve.exists() else []


@dataclass(frozen=True)
class Comparison:
    """Variants, the recipe that they share, the seeds, and the folder of their runs.

    The folder holds ``comparison.yaml`` and ``VARIANT/seed-N`` for each run, as the loop of all tasks leaves it. A
    comparison of models that something else trains is a subclass.

    Attributes:
        variants: The models compared; the first is the baseline.
        base: The recipe; each run replaces its model and seed.
        seeds: Seeds of the runs of each variant.
        folder: Folder of the runs.
        num_classes: Number of classes.
        until: Least difference of interest, in points, if seeds are trained until all differences are decided.
        run_folder: Class of a run's folder.
        may_change: Settings that change the speed of a run, or when it evaluates or saves, but not its results.
    """

    variants: list[Variant]
    base: Any
    seeds: list[int]
    folder: Path
    num_classes: int
    until: float | None = None

    run_folder: ClassVar[type[RunFolder]] = RunFolder
    may_change: ClassVar[tuple[str, ...]] = ("workers", "check_images", "checkpoint_steps", "report")

    @property
    def task(self) -> Any:
        """The task whose models are compared."""
        return task_named(self.base.kind)

    @property
    def score(self) -> Score:
        """The metric that decides plans and stopping; the task may compare further ones."""
        return self.task.compared[0]

    @property
    def command(self) -> str:
        """Command that runs the comparison."""
        return self.base.command.replace("train", "compare")

    @property
    def compared(self) -> list[Variant]:
        """The variants whose difference to the baseline is of interest."""
        return [variant for variant in self.variants[1:] if not (variant.twin or variant.cost)]

    def trained_seeds(self) -> list[int]:
        """Return the seeds of all runs of these variants in the folder."""
        names = {path.name for variant in self.variants for path in (self.folder / variant.name).glob("seed-*")}
        return sorted(int(name.removeprefix("seed-")) for name in names if re.fullmatch("seed-[0-9]+", name))

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that a part of them is balanced."""
        return [
            Run(variant, seed, self.run_folder(self.folder / variant.name / f"seed-{seed}"))
            for seed in self.seeds
            for variant in self.variants
        ]

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Create the folder or check that it holds this comparison, and reserve it for this process.

        Seeds and variants may be added; before the first run has begun, everything may change.

        Raises:
            InputError: If the folder holds something else, or another process is working in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with run_lock(self.folder):
            remove_left_over(self.folder)
            self._write_settings()
            yield

    def _write_settings(self) -> None:
        path = self.folder / "comparison.yaml"
        content: dict[str, Any] = {
            "kind": self.base.kind,
            "num_classes": self.num_classes,
            "recipe": self.shared_fields(),
            "variants": {variant.name: variant.to_list() for variant in self.variants},
        }
        if self.until is not None:
            content["until"] = self.until
        trained = any(RunFolder(config.parent).trained for config in self.folder.glob("*/seed-*/config.yaml"))
        trained = trained or any(self.folder.glob("*/seed-*/weights/last.pt"))  # by ultralytics
        if trained and path.exists():
            before = _read(path)
            other = read_comparison(self.folder)
            old, new = (
                {**each.base.defaults(), "kind": each.base.kind, **each.shared_fields()} for each in (other, self)
            )
            differences = [
                f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
                for name in dict.fromkeys([*new, *old])
                if name not in self.may_change and old.get(name) != new.get(name)
            ]
            if other.base.kind != self.base.kind:  # and so are all fields
                differences = [text for text in differences if text.startswith("kind ")]
            differences += [
                f"{name} was {before['variants'][name]} and is {value}"
                for name, value in content["variants"].items()
                if _defining(before["variants"].get(name, value)) != _defining(value)
            ]
            if differences:
                raise InputError(f"{self.folder} holds another comparison: {'; '.join(differences)}")
            content["variants"] = before["variants"] | content["variants"]
            if other.until is not None:  # the number of seeds depends on their scores from then on
                content.setdefault("until", other.until)
        elif not path.exists() and any(entry.name != LOCK for entry in self.folder.iterdir()):
            raise InputError(f"{self.folder} is not empty and holds no comparison; name another --output")
        write_text(path, yaml.safe_dump(content, sort_keys=False))

    def sizes(self) -> dict[str, AnySize]:
        """Return parameters and multiply-adds of each variant.

        Raises:
            InputError: If a model cannot be created.
        """
        return {variant.name: self.size(variant.recipe(self.base, self.seeds[0])) for variant in self.variants}

    def size(self, recipe: Any) -> AnySize:
        """Return parameters and multiply-adds of a model."""
        return self.task.size(recipe, self.num_classes)

    def train_run(self, run: Run, process: Process, *, checked: bool) -> Signals | None:
        """Train one run, or continue it; return the signal that arrived as it ended, if one did.

        Args:
            run: Run that is not finished.
            process: Process to train in.
            checked: Whether the images were checked before.

        Raises:
            Interrupted: If a signal to stop arrived, and the run is saved.
        """
        recipe = run.variant.recipe(self.base, run.seed)
        if checked:
            recipe = recipe.replaced(check_images=False)
        resume = run.files.last.exists()
        return train(recipe, run.files.folder, process, task=self.task, resume=resume).stop

    def train(self, process: Process, announce: Callable[[Run, int], None]) -> dict[str, str]:
        """Train the runs that are not finished, and return the reasons of those that failed, by folder.

        A run that fails does not stop the others. The images are checked once, not for every run.

        Args:
            process: Process to train in; every process of a distributed comparison calls this.
            announce: Called with each run that is about to start, and its number among all of them.

        Raises:
            Interrupted: If a signal to stop arrived; the run in training is saved or finished.
        """
        failed: dict[str, str] = {}
        checked = False
        for number, run in enumerate(self.runs, 1):
            if run.finished:
                continue
            announce(run, number)
            began, resumed = time.perf_counter(), run.files.last.exists()
            try:
                stop = self.train_run(run, process, checked=checked)
                if process.rank == 0 and not resumed:
                    timed = run.files.read_summary() | {"seconds": time.perf_counter() - began}
                    write_json(run.files.summary, timed)
            except (InputError, RuntimeError, OSError) as error:
                # Processes that do not fail together would wait for one another.
                if process.world_size > 1:
                    raise
                failed[os.fspath(run.files.folder)] = str(error) or type(error).__name__
            else:
                checked = True
                if stop is not None:
                    raise Interrupted(stop)
            if process.device.type == "cuda":
                torch.cuda.empty_cache()
        return failed

    def shared_fields(self) -> dict[str, Any]:
        """Return the fields of the recipe that all runs share; arguments of the model are added to each variant's."""
        own = (self.base.network[0], "seed")
        return {name: value for name, value in self.base.to_dict().items() if name not in own}


def read_comparison(folder: Path) -> Comparison:
    """Return the comparison in a folder, with the seeds of all its runs.

    Raises:
        InputError: If the folder has no comparison, or its file cannot be used.
    """
    path = folder / "comparison.yaml"
    if not path.exists():
        raise InputError(f"no comparison in {folder}: there is no {path}")
    content = _read(path)
    kind, cls, task = content.get("kind", _CLASSIFIERS), Comparison, None
    if kind == "yolo":
        from .yolo import Yolo, YoloComparison

        cls, task = YoloComparison, Yolo
    task: Any = task or task_named("classifier" if kind == _CLASSIFIERS else str(kind))
    try:
        base = task.Recipe().replaced(**{str(name): value for name, value in content["recipe"].items()})
    except InputError as error:
        raise InputError(f"{path} holds a recipe that cannot be used: {error}") from error
    variants = [Variant(name, *what[:3], **dict(*what[3:])) for name, what in content["variants"].items()]
    classes, until = content.get("num_classes") or task.count_classes(base), content.get("until")
    found = cls(variants, base, [], folder, classes, until if isinstance(until, int | float) else None)
    return replace(found, seeds=found.trained_seeds())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not YAML, or not text
        raise InputError(f"{path} cannot be used: {error}") from error
    right = isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in ("recipe", "variants"))
    if not right or not all(_is_variant(what) for what in content["variants"].values()):
        raise InputError(f"{path} does not name what is compared")
    return content


def _defining(what: list[Any]) -> list[Any]:
    """Return a variant's values without the cost of others, which is measured when they are added."""
    return [*what[:3], *({k: v for k, v in each.items() if k != "cost"} for each in what[3:])]


def _is_variant(what: Any) -> bool:
    """Return whether a value is what :meth:`Variant.to_list` returns."""
    kinds = (str, dict, dict, dict)
    right = isinstance(what, list) and len(what) in (3, 4) and all(map(isinstance, what, kinds))
    return right and set(*what[3:]) <= {*FURTHER}
