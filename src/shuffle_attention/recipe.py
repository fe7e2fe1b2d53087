"""A training recipe: every setting of a run, its default, and the YAML files that name some."""

import contextlib
import dataclasses
import difflib
import math
import os
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal

import yaml

from .errors import InputError


def _option(default: Any, help: str, group: str) -> Any:
    metadata = {"help": help, "group": group}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class Recipe:
    """Settings of one training run; the help of each field is its documentation.

    Raises:
        InputError: If a value is of the wrong type or out of range.
    """

    data: str = _option("digits", "folder with train/ and val/, 'digits', or a name of timm's create_dataset", "data")
    data_dir: str | None = _option(None, "where a named data set lies (or shards, for wds/)", "data")
    train_split: str = _option("train", "name of the split to train on", "data")
    val_split: str = _option("validation", "name of the split to evaluate on", "data")
    num_classes: int | None = _option(None, "classes; read from the data where it can be", "data")
    workers: int = _option(2, "loader processes on each device", "data")
    check_images: bool = _option(True, "look at every image file before the first step", "data")
    skip_bad_images: bool = _option(False, "leave unreadable images out, counted, instead of stopping", "data")

    img_size: int = _option(224, "side of the input, pixels", "images")
    in_chans: int = _option(3, "channels of the input: 3 or 1", "images")
    mean: list[float] | None = _option(None, "mean of each channel, 0 to 1; the model's own by default", "images")
    std: list[float] | None = _option(None, "deviation of each channel; the model's own by default", "images")
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"] = _option(
        "bilinear", "how images are resized", "images"
    )
    crop_pct: float = _option(0.875, "side of the evaluated centre crop over the shorter side", "images")
    scale: list[float] = _option([0.08, 1.0], "area range of the random resized crop", "images")
    ratio: list[float] = _option([0.75, 4 / 3], "aspect range of the random resized crop", "images")
    hflip: float = _option(0.5, "probability of a horizontal flip", "images")
    color_jitter: float = _option(0.0, "strength of colour jitter", "images")
    auto_augment: str | None = _option(None, "timm's augmentation string, such as rand-m7-mstd0.5-inc1", "images")
    random_erasing: float = _option(0.0, "probability of random erasing", "images")
    mixup: float = _option(0.0, "alpha of mixup; 0 is off", "images")
    cutmix: float = _option(0.0, "alpha of cutmix; 0 is off", "images")

    model: str = _option("sa_resnet50", "any model of timm, or one of docs/networks.md", "model")
    model_args: dict[str, Any] = _option({}, "further arguments of timm.create_model, as YAML", "model")
    small_stem: bool = _option(False, "3x3 stem of stride 1, for images of at most 64 pixels", "model")
    drop_rate: float = _option(0.0, "dropout before the classifier", "model")
    drop_path_rate: float = _option(0.0, "stochastic depth", "model")
    initial: str | None = _option(None, "checkpoint to start from", "model")
    may_differ: list[str] = _option([], "entries that may differ from the initial checkpoint, such as fc.*", "model")
    freeze_bn: bool = _option(False, "keep BatchNorm in evaluation mode while training", "model")
    sync_bn: bool = _option(False, "BatchNorm over all processes", "model")
    grad_checkpointing: bool = _option(False, "recompute activations in the backward pass", "model")

    epochs: int = _option(100, "passes over the training data", "optimisation")
    batch_size: int = _option(256, "images per optimiser step, over all processes", "optimisation")
    grad_accum: int = _option(1, "forward passes that make up one step", "optimisation")
    opt: str = _option("momentum", "any optimiser of timm; its sgd is Nesterov's, momentum is not", "optimisation")
    lr: float = _option(0.1, "learning rate at batch_size", "optimisation")
    momentum: float = _option(0.9, "momentum", "optimisation")
    weight_decay: float = _option(1e-4, "weight decay", "optimisation")
    decay_norm_and_bias: bool = _option(True, "decay norms, biases and gates too, as published", "optimisation")
    sched: str = _option("step", "any scheduler of timm: step, cosine, ...", "optimisation")
    decay_epochs: float = _option(30, "epochs between decays of the step schedule", "optimisation")
    decay_rate: float = _option(0.1, "factor of each decay", "optimisation")
    warmup_epochs: float = _option(0, "epochs of linear warm-up", "optimisation")
    warmup_lr: float = _option(1e-5, "learning rate at the start of the warm-up", "optimisation")
    min_lr: float = _option(0.0, "lowest learning rate", "optimisation")
    clip_grad: float | None = _option(None, "largest norm of the gradient", "optimisation")
    loss: Literal["ce", "bce"] = _option("ce", "softmax or binary cross-entropy", "optimisation")
    smoothing: float = _option(0.0, "label smoothing", "optimisation")
    ema_decay: float | None = _option(
        None, "decay of averaged weights, which are then what is evaluated", "optimisation"
    )

    seed: int = _option(0, "seed of everything that is random", "machine")
    device: str = _option("auto", "cpu, cuda, mps, ...; auto takes a GPU where there is one", "machine")
    precision: Literal["fp32", "bf16", "fp16"] = _option(
        "fp32", "mixed precision, with loss scaling for fp16", "machine"
    )
    channels_last: bool = _option(False, "NHWC memory format", "machine")
    compile: bool = _option(False, "torch.compile the model", "machine")
    checkpoint_steps: int = _option(1000, "steps between checkpoints within an epoch; 0 for none", "machine")

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for option in dataclasses.fields(self):
            setattr(self, option.name, _converted(option.name, getattr(self, option.name), hints[option.name]))
        for name in ("img_size", "epochs", "batch_size", "grad_accum"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("workers", "checkpoint_steps", "warmup_epochs", "lr", "weight_decay", "mixup", "cutmix", "seed"):
            _require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("min_lr", "warmup_lr", "momentum", "color_jitter", "decay_rate"):
            _require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("hflip", "random_erasing", "drop_rate", "drop_path_rate"):
            _require(0 <= getattr(self, name) <= 1, name, "between 0 and 1", getattr(self, name))
        _require(0 <= self.smoothing < 1, "smoothing", "at least 0 and below 1", self.smoothing)
        _require(self.momentum < 1, "momentum", "below 1", self.momentum)
        _require(self.seed < 2**32, "seed", "below 2**32", self.seed)
        _require(0 < self.crop_pct <= 1, "crop_pct", "above 0 and at most 1", self.crop_pct)
        _require(self.in_chans in (1, 3), "in_chans", "3 or 1", self.in_chans)
        _require(self.decay_epochs > 0, "decay_epochs", "above 0", self.decay_epochs)
        for name in ("scale", "ratio"):
            low_high = getattr(self, name)
            ordered = len(low_high) == 2 and 0 < low_high[0] <= low_high[1]
            _require(ordered, name, "two rising numbers above 0", low_high)
        for name in ("mean", "std"):
            values = getattr(self, name)
            _require(values is None or len(values) in (1, 3), name, "one number for each channel, 3 or 1", values)
        _require(self.std is None or min(self.std) > 0, "std", "above 0", self.std)
        _require(self.scale[1] <= 1, "scale", "at most 1", self.scale)
        own = sorted({"num_classes", "in_chans", "features_only", "scriptable"} & self.model_args.keys())
        _require(
            not own, "model_args", f"without {', '.join(own)} (num_classes and in_chans are fields)", self.model_args
        )
        _require(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", "between 0 and 1", self.ema_decay)
        _require(self.clip_grad is None or self.clip_grad > 0, "clip_grad", "above 0", self.clip_grad)
        _require(self.num_classes is None or self.num_classes >= 1, "num_classes", "at least 1", self.num_classes)

    def replaced(self, **overrides: Any) -> "Recipe":
        """Returns this recipe with some fields changed.

        Raises:
            InputError: If a name is not a field, or a value cannot be one.
        """
        known = [option.name for option in dataclasses.fields(self)]
        for name in overrides:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
                hint = f"; did you mean {' or '.join(close)}?" if close else f"; the fields are {', '.join(known)}"
                raise InputError(f"a recipe has no field {name!r}{hint}")
        return dataclasses.replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def load_recipe(name: str | os.PathLike) -> Recipe:
    """Returns a recipe by its name among the shipped ones, or from a YAML file.

    Raises:
        InputError: If there is no such recipe, or a field of it is unknown or cannot be.
    """
    shipped = resources.files("shuffle_attention") / "recipes"
    if str(name) in recipe_names():
        text, source = (shipped / f"{name}.yaml").read_text(encoding="utf-8"), f"recipe {name}"
    elif Path(name).is_file():
        source = str(name)
        try:
            text = Path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{source} is not a text file") from error
    else:
        raise InputError(f"no recipe {str(name)!r}: there are {', '.join(recipe_names())}, or give a YAML file")
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not YAML: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{source} must hold 'field: value' lines, got {type(fields).__name__}")
    try:
        return Recipe().replaced(**{str(key): value for key, value in fields.items()})
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def recipe_names() -> list[str]:
    """Returns the names of the shipped recipes."""
    return sorted(
        p.name[:-5] for p in (resources.files("shuffle_attention") / "recipes").iterdir() if p.name.endswith(".yaml")
    )


def _require(holds: bool, name: str, contract: str, received: Any) -> None:
    if not holds:
        raise InputError(f"{name} must be {contract}, got {received}")


def _converted(name: str, value: Any, hint: Any) -> Any:
    """The value as the type that its field declares; YAML reads 1e-4 as text and 30 as an integer."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is UnionType:
        return None if value is None else _converted(name, value, next(a for a in args if a is not type(None)))
    if origin is Literal:
        _require(value in args, name, f"one of {', '.join(args)}", value)
        return value
    if origin is list:
        _require(isinstance(value, list | tuple), name, "a list", value)
        return [_converted(name, item, args[0]) for item in value]
    if origin is dict:
        _require(isinstance(value, dict), name, "a mapping", value)
        return dict(value)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)
        _require(isinstance(value, float) and math.isfinite(value), name, "a finite number", value)
    right = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    _require(right, name, f"of type {hint.__name__}", repr(value))
    return value
