"""Comparison of ultralytics' detectors, plain and with attention, each trained by ultralytics."""

from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, ClassVar

import ultralytics
from ultralytics import YOLO
from ultralytics.cfg import DEFAULT_CFG_DICT, check_dict_alignment, get_cfg, parse_key_value_pair
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.torch_utils import init_seeds

from ...attach import attach
from ...errors import InputError
from ...files import write_json
from ...models import yolo  # noqa: F401 - lets model files have rows ShuffleAttention
from ..device import Process
from ..environment import environment
from ..profile.costs import Size, size_of
from ..recipes.settings import Settings, option
from ..tasks.task import Score
from ..training.run_folder import RunFolder
from .comparison import Comparison, Run

# What the comparison sets itself: the last epoch of every run is compared.
_SET_HERE = "mode task project name exist_ok resume save save_dir val patience time pretrained cfg seed".split()


@dataclass(kw_only=True)
class YoloRecipe(Settings):
    """Settings of a training by ultralytics.

    Raises:
        InputError: If ultralytics has no such setting, or cannot use its value.
    """

    kind = "yolo"
    command = "sanet yolo train"
    network = ("model", "")
    network_args: ClassVar[dict[str, Any]] = {}  # the file has all

    model: str = option("yolo11n.pt", "model of ultralytics, a .pt or .yaml file", "model")
    attach: dict[str, Any] = option({}, "attention attached to the model", "model")
    data: str = option("coco8.yaml", "data set of ultralytics, a .yaml file", "data")
    epochs: int = option(100, "passes over the training data", "optimisation", minimum=1)
    settings: dict[str, Any] = option({}, "further settings of ultralytics", "optimisation")
    seed: int = option(0, "seed of all random numbers", "machine", minimum=0)
    report: bool = option(True, "write report.html", "machine")

    def __post_init__(self) -> None:
        super().__post_init__()
        taken = sorted(self.settings.keys() & {*_SET_HERE})
        if taken:
            raise InputError(f"{', '.join(taken)} cannot be given: the comparison sets them for all runs alike")
        try:
            check_dict_alignment(DEFAULT_CFG_DICT, self.settings)
            get_cfg(overrides=dict(self.settings))
        except (SyntaxError, TypeError, ValueError) as error:
            raise InputError(str(error).strip()) from error

    def replaced(self, **overrides: Any) -> "YoloRecipe":
        """Return these settings with some changed, those of ultralytics by their own names."""
        own = {name: value for name, value in overrides.items() if name in self.options()}
        further = {name: value for name, value in overrides.items() if name not in own}
        return super().replaced(**{"settings": {**self.settings, **further}, **own})

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, those of ultralytics by their own names."""
        own = super().to_dict()
        return own | own.pop("settings")

    def defaults(self) -> dict[str, Any]:
        return {**DEFAULT_CFG_DICT, **super().defaults()}


class YoloFolder(RunFolder):
    """Folder of a run as ultralytics writes it, and the summary of a finished one."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.last, self.best = folder / "weights/last.pt", folder / "weights/best.pt"
        self.config, self.metrics = folder / "args.yaml", folder / "results.csv"


class Yolo:
    """The part of a task that :class:`Comparison` needs; ultralytics does the rest."""

    Recipe = YoloRecipe
    compared = (
        Score("map50_95", "mAP50-95", "metrics/mAP50-95(B)", 100.0),
        Score("map50", "mAP50", "metrics/mAP50(B)", 100.0),
        Score("mask_map50_95", "mask mAP50-95", "metrics/mAP50-95(M)", 100.0),
    )

    @staticmethod
    def count_classes(recipe: YoloRecipe) -> int:
        """Return the number of classes of the data, which ultralytics downloads if it knows where from.

        Raises:
            InputError: If the data cannot be used.
        """
        try:
            return check_det_dataset(recipe.data)["nc"]
        except (SyntaxError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{recipe.data} cannot be used: {error}") from error

    @staticmethod
    def size(recipe: YoloRecipe, num_classes: int) -> Size:
        """Return parameters and multiply-adds of a model with so many classes."""
        model = _model(recipe).model
        twin = type(model)(model.yaml, nc=num_classes, verbose=False)
        _attach(twin, recipe)
        try:
            side: Any = check_imgsz({**DEFAULT_CFG_DICT, **recipe.settings}["imgsz"], max_dim=1)
        except (TypeError, ValueError) as error:
            raise InputError(f"imgsz={recipe.settings['imgsz']} cannot be used: {error}") from error
        return size_of(twin, 3, side)


class YoloComparison(Comparison):
    """A comparison whose runs are trained by ultralytics, in ``VARIANT/seed-N`` as ``yolo train`` leaves it.

    With one seed all variants start from the same weights, those of the model's file or, for a YAML file, those drawn
    with the seed.
    """

    run_folder = YoloFolder
    may_change = ("workers", "device", "cache", "plots", "verbose", "save_period", "report")

    @property
    def task(self) -> type[Yolo]:
        return Yolo

    def train_run(self, run: Run, process: Process, *, checked: bool) -> Signals | None:
        files, recipe = run.files, run.variant.recipe(self.base, run.seed)
        try:
            self._train(files, recipe)
        except (AssertionError, KeyError, TypeError, ValueError) as error:  # ultralytics' errors for all that can fail
            raise InputError(f"{type(error).__name__}: {error}") from error
        summary = {"model": recipe.model, "data": recipe.data, "checkpoint": str(files.best)}
        write_json(files.summary, {**summary, **environment(), "ultralytics": ultralytics.__version__})
        return None

    def _train(self, files: RunFolder, recipe: YoloRecipe) -> None:
        if files.last.exists():
            model: Any = YOLO(files.last)
            epoch = model.ckpt.get("epoch", -1)
            if 0 <= epoch < recipe.epochs - 1:
                machine = {k: v for k, v in recipe.settings.items() if k in self.may_change}
                model.train(**machine, data=recipe.data, resume=True, save_dir=str(files.folder.resolve()))
            return  # or stopped between its last epoch and its summary
        init_seeds(recipe.seed)
        model = _model(recipe)
        _attach(model.model, recipe)
        model.ckpt = model.ckpt or {"model": model.model}  # these weights, and not others from the YAML file
        model.train(
            **recipe.settings, data=recipe.data, epochs=recipe.epochs, seed=recipe.seed, patience=0,
            project=str(files.folder.resolve().parent), name=files.folder.name, exist_ok=True,
        )  # fmt: skip


def recipe_from(words: list[str]) -> YoloRecipe:
    """Return the recipe that words such as ``model=yolo11n.pt`` give, as the command ``yolo`` reads them.

    Raises:
        InputError: If a word is not a setting of ultralytics.
    """
    settings = {}
    for word in words:
        try:
            name, value = parse_key_value_pair(word)
        except (AssertionError, ValueError) as error:
            raise InputError(f"a setting is given as name=value, such as epochs=100; got {word!r}") from error
        settings[name] = value
    for name in ("model", "data"):
        if name not in settings:
            raise InputError(f"give {name}=..., as for yolo train")
    return YoloRecipe().replaced(**settings)


def _model(recipe: YoloRecipe) -> Any:
    try:
        model = YOLO(recipe.model)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"ultralytics cannot create {recipe.model}: {type(error).__name__}: {error}") from error
    if model.task not in ("detect", "segment", "pose", "obb"):
        raise InputError(f"{recipe.model} is a model for the task {model.task}, which has no mAP of boxes")
    return model


def _attach(model: Any, recipe: YoloRecipe) -> None:
    if recipe.attach:
        options = dict(recipe.attach)
        attach(model, options.pop("name"), **options)
