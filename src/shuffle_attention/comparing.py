"""Training the same recipe with several networks and seeds, in runs that can be stopped and taken up again."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from .attention import attention_names
from .errors import InputError
from .families import resnet_with
from .loading import Place
from .network import create_network
from .profiling import Size, size_of
from .recipe import Recipe
from .reporting import RunFiles, write_text
from .training import open_data, train

# What changes how fast a run goes, or when it looks or saves, and not what comes out of it.
_MAY_CHANGE = ("workers", "check_images", "checkpoint_steps")


@dataclass(frozen=True)
class Variant:
    """One of the networks that are compared.

    Attributes:
        name: What it is called in tables, and its folder.
        model: timm's name of it.
        model_args: What to create it with, before what the recipe says.
        attach: Attention put into it.
    """

    name: str
    model: str
    model_args: dict[str, Any]
    attach: dict[str, Any] = field(default_factory=dict)

    def recipe(self, base: Recipe, seed: int) -> Recipe:
        """Returns the recipe of the run with a seed."""
        own = {"attach": self.attach} if self.attach else {}
        return base.replaced(model=self.model, model_args=self.model_args | base.model_args, seed=seed, **own)


def variants_of(attentions: Sequence[str], depth: int, models: Sequence[str]) -> list[Variant]:
    """Returns ResNets with attentions of the family, or models of timm by their names.

    Raises:
        InputError: If both or neither are given, one is named twice, or there is no such attention or depth.
    """
    if bool(attentions) == bool(models):
        raise InputError("give what to compare: --attention none,se,shuffle with --depth, or --models resnet18,...")
    names = list(attentions or models)
    if len(names) < 2:
        raise InputError(f"a comparison needs two or more, the first as the baseline; got {', '.join(names)}")
    if len(set(names)) < len(names):
        raise InputError(f"each can be compared once, got {', '.join(names)}")
    if attentions:
        return [Variant(name, *resnet_with(name, depth)) for name in names]
    for name in names:
        if Path(name).name != name:
            raise InputError(f"the name of a model names its folder as well, which {name!r} cannot")
    return [Variant(name, name, {}) for name in names]


def attached_variants(attentions: Sequence[str], plain: Recipe, where: str, preserve: str) -> list[Variant]:
    """Returns the network of a recipe with attention attached, with or without its function preserved, or both.

    Args:
        attentions: Names of the family; ``none`` is the network as it is.
        plain: Recipe that the network was trained with.
        where: Where the attention goes, as :func:`attach` takes it.
        preserve: ``yes``, ``no`` or ``both``.

    Raises:
        InputError: If there is no such attention, or fewer than two variants come of it.
    """
    unknown = sorted(set(attentions) - set(attention_names()))
    if unknown:
        raise InputError(f"no attention {', '.join(unknown)}; there are {', '.join(attention_names())}")
    found = []
    for name in attentions:
        if name == "none":
            found.append(Variant(name, plain.model, plain.model_args))
            continue
        for keep in {"yes": [True], "no": [False], "both": [True, False]}[preserve]:
            options: dict[str, Any] = {"name": name, "where": where, "preserve": keep}
            if name in ("shuffle", "sge"):
                options["groups"] = "auto"
            label = f"{name}-{'preserved' if keep else 'unpreserved'}"
            found.append(Variant(label, plain.model, plain.model_args, options))
    if len(found) < 2 or len({v.name for v in found}) < len(found):
        raise InputError(
            f"a comparison needs two or more, each once; --attention gave {', '.join(attentions) or 'none'}"
        )
    return found


@dataclass(frozen=True)
class Run:
    """One variant trained with one seed."""

    variant: Variant
    seed: int
    files: RunFiles

    @property
    def finished(self) -> bool:
        return self.files.summary.exists()

    def history(self) -> list[dict[str, float]]:
        """Returns the figures of its epochs."""
        return _rows(self.files.metrics)

    def curve(self) -> list[dict[str, float]]:
        """Returns the figures of the evaluations within its epochs, if there were any."""
        return _rows(self.files.curve) if self.files.curve.exists() else []


@dataclass(frozen=True)
class Comparison:
    """Variants, the recipe that they share, the seeds, and the folder of their runs.

    The folder holds ``comparison.yaml`` and ``VARIANT/seed-N`` for each run, as ``sanet train`` leaves it.

    Attributes:
        variants: What is compared; the first is the baseline.
        base: The recipe; its model and seed are replaced.
        seeds: Seeds of the runs of each.
        folder: Where the runs lie.
    """

    variants: list[Variant]
    base: Recipe
    seeds: list[int]
    folder: Path

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that what is there after a part of them is balanced."""
        return [
            Run(variant, seed, RunFiles(self.folder / variant.name / f"seed-{seed}"))
            for seed in self.seeds
            for variant in self.variants
        ]

    def begin(self) -> None:
        """Makes the folder, or makes sure that what it holds is this comparison; seeds and variants may be added.

        Raises:
            InputError: If the folder holds something else.
        """
        path = self.folder / "comparison.yaml"
        said = {
            "recipe": self.shared_fields(),
            "variants": {v.name: [v.model, v.model_args, v.attach] for v in self.variants},
        }
        if path.exists():
            before = _read(path)
            differences = [
                f"{name} was {before['recipe'].get(name)!r} and is {value!r}"
                for name, value in said["recipe"].items()
                if name not in _MAY_CHANGE and before["recipe"].get(name) != value
            ]
            differences += [
                f"{name} was {before['variants'][name]} and is {what}"
                for name, what in said["variants"].items()
                if before["variants"].get(name, what) != what
            ]
            if differences:
                raise InputError(f"{self.folder} holds another comparison: {'; '.join(differences)}")
            said["variants"] = before["variants"] | said["variants"]
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} is not empty and holds no comparison; name another --output")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, yaml.safe_dump(said, sort_keys=False))

    def sizes(self) -> dict[str, Size]:
        """Returns what each network has and computes for one image; nothing is stored for it.

        Raises:
            InputError: If a network cannot be made, or the data cannot be used.
        """
        *_, num_classes = open_data(self.base.replaced(check_images=False), check=False)
        found = {}
        for variant in self.variants:
            recipe = variant.recipe(self.base, self.seeds[0])
            with torch.device("meta"):
                network = create_network(recipe, num_classes, restored=True)
            found[variant.name] = size_of(network, recipe.in_chans, recipe.img_size)
        return found

    def train(self, place: Place, announce: Callable[[Run, int], None]) -> dict[str, str]:
        """Trains what is not finished, and returns what failed and why, by the folder of the run.

        A run that fails does not stop the others. What could be looked at once is not looked at again.

        Args:
            place: Where to train; every process of a distributed comparison calls this.
            announce: Called with each run that is about to start, and its place among all of them.

        Raises:
            Interrupted: If SIGTERM or SIGINT arrived while a network trained; its run is saved.
        """
        failed = {}
        base = self.base
        for number, run in self._unfinished():
            announce(run, number)
            recipe = run.variant.recipe(base, run.seed)
            try:
                train(recipe, run.files.folder, place, resume=run.files.last.exists())
                base = base.replaced(check_images=False)
            except (InputError, RuntimeError, OSError) as error:
                # Processes that do not fail together would wait for one another.
                if place.world > 1:
                    raise
                failed[os.fspath(run.files.folder)] = str(error) or type(error).__name__
            if place.device.type == "cuda":
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
    seeds = {int(found.name.removeprefix("seed-")) for v in variants for found in (folder / v.name).glob("seed-[0-9]*")}
    return Comparison(variants, Recipe().replaced(**said["recipe"]), sorted(seeds), folder)


def _rows(path: Path) -> list[dict[str, float]]:
    with open(path, newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _read(path: Path) -> dict[str, Any]:
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(said, dict) or not all(isinstance(said.get(key), dict) for key in ("recipe", "variants")):
        raise InputError(f"{path} does not say what is compared")
    return said
