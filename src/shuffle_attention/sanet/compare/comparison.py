"""Train one recipe with several models and seeds, in runs that can be stopped and continued."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from ...attention import get_spec, register_attention
from ...attention.spec import Attention
from ...errors import InputError
from ...files import LOCK, locked, remove_left_over, write_text
from ...models.attention_resnet import resnet_with
from ..device import Process
from ..network import create_network
from ..profile.costs import Size, size_of
from ..recipes.recipe import Recipe
from ..recipes.settings import read_yaml
from ..tasks.classification.task import Classification
from ..training.loop import train
from ..training.run_folder import RunFolder, read_rows
from ..training.signals import Interrupted

# Settings that change the speed of a run, or when it evaluates or saves, but not its results.
_MAY_CHANGE = ("workers", "check_images", "checkpoint_steps", "report")


@dataclass(frozen=True)
class Variant:
    """One of the models compared.

    Attributes:
        name: Name in tables, and of its folder.
        model: Name of the model in timm.
        model_args: Arguments to create it with; those of the recipe come on top.
        attach: Attention attached to it: arguments of :func:`attach`.
    """

    name: str
    model: str
    model_args: dict[str, Any]
    attach: dict[str, Any] = field(default_factory=dict)

    def recipe(self, base: Recipe, seed: int) -> Recipe:
        """Return the recipe of the run with a seed."""
        own = {"attach": self.attach} if self.attach else {}
        return base.replaced(model=self.model, model_args=self.model_args | base.model_args, seed=seed, **own)


def variants_of(attentions: Sequence[Attention], depth: int, models: Sequence[str]) -> list[Variant]:
    """Return ResNets with these attentions, or models of timm by their names.

    Raises:
        InputError: If both or neither are given, a name is repeated, or there is no such attention or depth.
    """
    if bool(attentions) == bool(models):
        raise InputError("give what to compare: --attention none,se,shuffle with --depth, or --models resnet18,...")
    names = [_registered(attention) for attention in attentions] or list(models)
    if len(names) < 2:
        raise InputError(f"a comparison needs two or more, the first as the baseline; got {', '.join(names)}")
    if len(set(names)) < len(names):
        raise InputError(f"each can be compared once, got {', '.join(names)}")
    if attentions:
        return [Variant(name, *resnet_with(name, depth)) for name in names]
    for name in names:
        if Path(name).name != name:
            raise InputError(f"a model's name is also the name of its folder, which {name!r} cannot be")
    return [Variant(name, name, {}) for name in names]


def attached_variants(attentions: Sequence[Attention], plain: Recipe, where: str, preserve: str) -> list[Variant]:
    """Return the model of a recipe with attentions attached, preserving its function, not preserving it, or both.

    Args:
        attentions: Attentions; ``none`` leaves the model as it is.
        plain: Recipe that the model was trained with.
        where: Where the attention goes, as :func:`attach` takes it.
        preserve: ``yes``, ``no`` or ``both``.

    Raises:
        InputError: If there is no such attention, the model has one already, or there are fewer than two variants.
    """
    if plain.attach:
        raise InputError(f"the model has attention attached already ({plain.attach}); start from a plain one")
    names = [_registered(attention) for attention in attentions]
    variants = []
    for name in names:
        if name == "none":
            variants.append(Variant(name, plain.model, plain.model_args))
            continue
        for keep in {"yes": [True], "no": [False], "both": [True, False]}[preserve]:
            options: dict[str, Any] = {"name": name, "where": where, "preserve": keep}
            if get_spec(name).group_parts is not None:
                options["groups"] = "auto"
            label = f"{name}-{'preserved' if keep else 'unpreserved'}"
            variants.append(Variant(label, plain.model, plain.model_args, options))
    if len(variants) < 2 or len({v.name for v in variants}) < len(variants):
        raise InputError(f"a comparison needs two or more, each once; --attention gave {', '.join(names) or 'nothing'}")
    return variants


def _registered(attention: Attention) -> str:
    """Return the name of an attention. A callable is registered, since recipes contain names."""
    return register_attention(get_spec(attention)).name


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
        """Return the metrics of its epochs.

        Raises:
            InputError: If they cannot be read, or their number is not ``epochs``.
        """
        rows = read_rows(self.files.metrics)
        if len(rows) != epochs:
            raise InputError(
                f"{self.files.metrics} has {len(rows)} epochs and the comparison {epochs}; delete "
                f"{self.files.folder}, and the command that trained it will train it again"
            )
        if "val_top1" not in rows[0]:
            raise InputError(f"{self.files.metrics} has no val_top1; it is not of a classifier")
        return rows

    def curve(self) -> list[dict[str, float]]:
        """Return the metrics of the evaluations within its epochs, empty without any."""
        return read_rows(self.files.curve) if self.files.curve.exists() else []


@dataclass(frozen=True)
class Comparison:
    """Variants, the recipe that they share, the seeds, and the folder of their runs.

    The folder holds ``comparison.yaml`` and ``VARIANT/seed-N`` for each run, as ``sanet train`` leaves it.

    Attributes:
        variants: The models compared; the first is the baseline.
        base: The recipe; each run replaces its model and seed.
        seeds: Seeds of the runs of each variant.
        folder: Folder of the runs.
        num_classes: Number of classes.
    """

    variants: list[Variant]
    base: Recipe
    seeds: list[int]
    folder: Path
    num_classes: int

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that a part of them is balanced."""
        return [
            Run(variant, seed, RunFolder(self.folder / variant.name / f"seed-{seed}"))
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
        with locked(self.folder):
            remove_left_over(self.folder)
            self._write_settings()
            yield

    def _write_settings(self) -> None:
        path = self.folder / "comparison.yaml"
        content: dict[str, Any] = {
            "num_classes": self.num_classes,
            "recipe": self.shared_fields(),
            "variants": {v.name: [v.model, v.model_args, v.attach] for v in self.variants},
        }
        trained = any(RunFolder(config.parent).trained for config in self.folder.glob("*/seed-*/config.yaml"))
        if trained and path.exists():
            before = _read(path)
            recipe = _recipe(before, path).to_dict()
            differences = [
                f"{name} was {recipe[name]!r} and is {value!r}"
                for name, value in content["recipe"].items()
                if name not in _MAY_CHANGE and recipe[name] != value
            ]
            differences += [
                f"{name} was {before['variants'][name]} and is {value}"
                for name, value in content["variants"].items()
                if before["variants"].get(name, value) != value
            ]
            if differences:
                raise InputError(f"{self.folder} holds another comparison: {'; '.join(differences)}")
            content["variants"] = before["variants"] | content["variants"]
        elif not path.exists() and any(entry.name != LOCK for entry in self.folder.iterdir()):
            raise InputError(f"{self.folder} is not empty and holds no comparison; name another --output")
        write_text(path, yaml.safe_dump(content, sort_keys=False))

    def sizes(self) -> dict[str, Size]:
        """Return parameters and multiply-adds of each model; no weights are allocated for it.

        Raises:
            InputError: If a model cannot be created.
        """
        sizes = {}
        for variant in self.variants:
            recipe = variant.recipe(self.base, self.seeds[0])
            with torch.device("meta"):
                model = create_network(recipe, self.num_classes, restored=True)
            sizes[variant.name] = size_of(model, recipe.in_chans, recipe.img_size)
        return sizes

    def train(self, process: Process, announce: Callable[[Run, int], None]) -> dict[str, str]:
        """Train the runs that are not finished, and return the reasons of those that failed, by folder.

        A run that fails does not stop the others. The images are checked once, not for every run.

        Args:
            process: Process to train in; every process of a distributed comparison calls this.
            announce: Called with each run that is about to start, and its number among all of them.

        Raises:
            Interrupted: If a signal to stop arrived; the run in training is saved or finished.
        """
        failed = {}
        base = self.base
        for number, run in enumerate(self.runs, 1):
            if run.finished:
                continue
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

    def shared_fields(self) -> dict[str, Any]:
        """Return the fields of the recipe that all runs share; ``model_args`` are added to those of each variant."""
        return {name: value for name, value in self.base.to_dict().items() if name not in ("model", "seed")}


def read_comparison(folder: Path) -> Comparison:
    """Return the comparison in a folder, with the seeds of all its runs.

    Raises:
        InputError: If the folder has no comparison, or its file cannot be used.
    """
    path = folder / "comparison.yaml"
    if not path.exists():
        raise InputError(f"no comparison in {folder}: there is no {path}")
    content = _read(path)
    variants = [Variant(name, *what) for name, what in content["variants"].items()]
    names = {path.name for variant in variants for path in (folder / variant.name).glob("seed-*")}
    seeds = sorted(int(name.removeprefix("seed-")) for name in names if re.fullmatch("seed-[0-9]+", name))
    base = _recipe(content, path)
    return Comparison(variants, base, seeds, folder, content.get("num_classes") or count_classes(base))


def count_classes(recipe: Recipe) -> int:
    """Return the number of classes of a recipe's data.

    Raises:
        InputError: If the data cannot be used.
    """
    return Classification.open(recipe.replaced(check_images=False), check=False).num_classes


def _recipe(content: dict[str, Any], path: Path) -> Recipe:
    try:
        return Recipe.of(content["recipe"])
    except InputError as error:
        raise InputError(f"{path} holds a recipe that cannot be used: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not YAML, or not text
        raise InputError(f"{path} cannot be used: {error}") from error
    right = isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in ("recipe", "variants"))
    kinds = (str, dict, dict)
    if not right or not all(
        isinstance(what, list) and len(what) == len(kinds) and all(map(isinstance, what, kinds))
        for what in content["variants"].values()
    ):
        raise InputError(f"{path} does not name what is compared")
    return content
