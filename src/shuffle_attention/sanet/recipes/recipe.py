"""A training recipe: every setting of a run, its default, and the YAML files that name some."""

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml

from ...errors import InputError
from .settings import Settings, option, require

R = TypeVar("R", bound="RunRecipe")


@dataclass(kw_only=True)
class RunRecipe(Settings):
    """Settings of a run whatever is trained; the help of each field is its documentation.

    Raises:
        InputError: If a value is of the wrong type or out of range.
    """

    kind: ClassVar[str]  # of network that is trained
    command: ClassVar[str]  # that trains it
    shipped: ClassVar[str]  # folder of the package with the recipes that come with it

    data: str = option("digits", "folder with images, or 'digits'", "data")
    workers: int = option(2, "loader processes on each device", "data")
    check_images: bool = option(True, "look at every image file before the first step", "data")
    skip_bad_images: bool = option(False, "leave unreadable images out, counted, instead of stopping", "data")

    hflip: float = option(0.5, "probability of a horizontal flip", "images")

    initial: str | None = option(None, "checkpoint to start from", "model")
    may_differ: list[str] = option([], "entries that may differ from the initial checkpoint, such as fc.*", "model")
    sync_bn: bool = option(False, "BatchNorm over all processes", "model")

    epochs: int = option(100, "passes over the training data", "optimisation")
    batch_size: int = option(256, "images per optimiser step, over all processes", "optimisation")
    grad_accum: int = option(1, "forward passes that make up one step", "optimisation")
    opt: str = option("momentum", "any optimiser of timm; its sgd is Nesterov's, momentum is not", "optimisation")
    lr: float = option(0.1, "learning rate, at lr_base_size where that is given", "optimisation")
    lr_base_size: int | None = option(
        None, "batch size that lr is meant for: it is scaled linearly to batch_size", "optimisation"
    )
    momentum: float = option(0.9, "momentum", "optimisation")
    weight_decay: float = option(1e-4, "weight decay", "optimisation")
    decay_norm_and_bias: bool = option(True, "decay norms, biases and gates too, as published", "optimisation")
    sched: str = option("step", "any scheduler of timm: step, multistep, cosine, ...", "optimisation")
    decay_epochs: float = option(30, "epochs between decays of the step schedule", "optimisation")
    decay_milestones: list[int] = option([], "epochs after which the multistep schedule decays", "optimisation")
    decay_rate: float = option(0.1, "factor of each decay", "optimisation")
    warmup_epochs: float = option(0, "epochs of linear warm-up", "optimisation")
    warmup_lr: float = option(1e-5, "learning rate at the start of the warm-up", "optimisation")
    min_lr: float = option(0.0, "lowest learning rate", "optimisation")
    clip_grad: float | None = option(None, "largest norm of the gradient", "optimisation")
    ema_decay: float | None = option(
        None, "decay of averaged weights, which are then what is evaluated", "optimisation"
    )

    seed: int = option(0, "seed of everything that is random", "machine")
    device: str = option("auto", "cpu, cuda, mps, ...; auto takes a GPU where there is one", "machine")
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "mixed precision, with loss scaling for fp16", "machine"
    )
    channels_last: bool = option(False, "NHWC memory format", "machine")
    eval_steps: int = option(0, "steps between evaluations from step 0 on, into curve.csv; 0 for none", "machine")
    checkpoint_steps: int = option(1000, "steps between checkpoints within an epoch; 0 for none", "machine")
    report: bool = option(True, "end with report.html; it takes one more look at the validation data", "machine")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "grad_accum"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("workers", "eval_steps", "checkpoint_steps", "warmup_epochs", "lr", "weight_decay", "seed"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("min_lr", "warmup_lr", "momentum", "decay_rate"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        require(0 <= self.hflip <= 1, "hflip", "between 0 and 1", self.hflip)
        require(self.momentum < 1, "momentum", "below 1", self.momentum)
        require(self.seed < 2**32, "seed", "below 2**32", self.seed)
        require(self.decay_epochs > 0, "decay_epochs", "above 0", self.decay_epochs)
        rising = all(a < b for a, b in zip([0, *self.decay_milestones], self.decay_milestones, strict=False))
        require(rising, "decay_milestones", "rising epochs above 0", self.decay_milestones)
        given = self.sched != "multistep" or bool(self.decay_milestones)
        require(given, "decay_milestones", "given with sched multistep", self.decay_milestones)
        base = self.lr_base_size
        require(base is None or base >= 1, "lr_base_size", "at least 1", base)
        require(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", "between 0 and 1", self.ema_decay)
        require(self.clip_grad is None or self.clip_grad > 0, "clip_grad", "above 0", self.clip_grad)

    @property
    def peak_lr(self) -> float:
        """The learning rate at the batch size of the run."""
        return self.lr * self.batch_size / (self.lr_base_size or self.batch_size)

    @property
    def title(self) -> str:
        """What is trained, for people and for the name of a folder."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Recipe(RunRecipe):
    """Settings of a run that trains a classifier.

    Raises:
        InputError: If a value is of the wrong type or out of range.
    """

    kind = "classifier"
    command = "sanet train"
    shipped = "recipes"

    data: str = option("digits", "folder with train/ and val/, 'digits', or a name of timm's create_dataset", "data")
    data_dir: str | None = option(None, "where a named data set lies (or shards, for wds/)", "data")
    train_split: str = option("train", "name of the split to train on", "data")
    val_split: str = option("validation", "name of the split to evaluate on", "data")
    num_classes: int | None = option(None, "classes; read from the data where it can be", "data")

    img_size: int = option(224, "side of the input, pixels", "images")
    in_chans: int = option(3, "channels of the input: 3 or 1", "images")
    mean: list[float] | None = option(None, "mean of each channel, 0 to 1; the model's own by default", "images")
    std: list[float] | None = option(None, "deviation of each channel; the model's own by default", "images")
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"] = option(
        "bilinear", "how images are resized", "images"
    )
    crop_pct: float = option(0.875, "side of the evaluated centre crop over the shorter side", "images")
    scale: list[float] = option([0.08, 1.0], "area range of the random resized crop", "images")
    ratio: list[float] = option([0.75, 4 / 3], "aspect range of the random resized crop", "images")
    color_jitter: float = option(0.0, "strength of colour jitter", "images")
    auto_augment: str | None = option(None, "timm's augmentation string, such as rand-m7-mstd0.5-inc1", "images")
    random_erasing: float = option(0.0, "probability of random erasing", "images")
    mixup: float = option(0.0, "alpha of mixup; 0 is off", "images")
    cutmix: float = option(0.0, "alpha of cutmix; 0 is off", "images")

    model: str = option("sa_resnet50", "any model of timm, or one of docs/networks.md", "model")
    model_args: dict[str, Any] = option({}, "further arguments of timm.create_model, as YAML", "model")
    small_stem: bool = option(False, "3x3 stem of stride 1, for images of at most 64 pixels", "model")
    drop_rate: float = option(0.0, "dropout before the classifier", "model")
    drop_path_rate: float = option(0.0, "stochastic depth", "model")
    attach: dict[str, Any] = option(
        {}, "attention put into the model: {name: shuffle, where: residual, preserve: true}, and its options", "model"
    )
    freeze_bn: bool = option(False, "keep BatchNorm in evaluation mode while training", "model")
    grad_checkpointing: bool = option(False, "recompute activations in the backward pass", "model")

    loss: Literal["ce", "bce"] = option("ce", "softmax or binary cross-entropy", "optimisation")
    smoothing: float = option(0.0, "label smoothing", "optimisation")

    compile: bool = option(False, "torch.compile the model", "machine")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.img_size >= 1, "img_size", "at least 1", self.img_size)
        for name in ("mixup", "cutmix", "color_jitter"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("random_erasing", "drop_rate", "drop_path_rate"):
            require(0 <= getattr(self, name) <= 1, name, "between 0 and 1", getattr(self, name))
        require(0 <= self.smoothing < 1, "smoothing", "at least 0 and below 1", self.smoothing)
        require(0 < self.crop_pct <= 1, "crop_pct", "above 0 and at most 1", self.crop_pct)
        require(self.in_chans in (1, 3), "in_chans", "3 or 1", self.in_chans)
        for name in ("scale", "ratio"):
            low_high = getattr(self, name)
            ordered = len(low_high) == 2 and 0 < low_high[0] <= low_high[1]
            require(ordered, name, "two rising numbers above 0", low_high)
        for name in ("mean", "std"):
            values = getattr(self, name)
            require(values is None or len(values) in (1, 3), name, "one number for each channel, 3 or 1", values)
        require(self.std is None or min(self.std) > 0, "std", "above 0", self.std)
        require(self.scale[1] <= 1, "scale", "at most 1", self.scale)
        own = sorted({"num_classes", "in_chans", "features_only", "scriptable"} & self.model_args.keys())
        require(
            not own, "model_args", f"without {', '.join(own)} (num_classes and in_chans are fields)", self.model_args
        )
        require(not self.attach or "name" in self.attach, "attach", "with a name, such as {name: shuffle}", self.attach)
        require(not (self.attach and self.sync_bn), "sync_bn", "false where attention is attached", self.sync_bn)
        require(self.num_classes is None or self.num_classes >= 1, "num_classes", "at least 1", self.num_classes)

    @property
    def title(self) -> str:
        return self.model


def load_recipe(name: str | os.PathLike, kind: type[R] = Recipe) -> R:
    """Returns a recipe by its name among the shipped ones of a kind, or from a YAML file.

    Raises:
        InputError: If there is no such recipe, or a field of it is unknown or cannot be.
    """
    shipped = resources.files("shuffle_attention.sanet") / kind.shipped
    if str(name) in recipe_names(kind):
        text, source = (shipped / f"{name}.yaml").read_text(encoding="utf-8"), f"recipe {name}"
    elif Path(name).is_file():
        source = str(name)
        try:
            text = Path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{source} is not a text file") from error
    else:
        raise InputError(f"no recipe {str(name)!r}: there are {', '.join(recipe_names(kind))}, or give a YAML file")
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not YAML: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{source} must hold 'field: value' lines, got {type(fields).__name__}")
    try:
        return kind().replaced(**{str(key): value for key, value in fields.items()})
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def recipe_names(kind: type[RunRecipe] = Recipe) -> list[str]:
    """Returns the names of the shipped recipes of a kind."""
    folder = resources.files("shuffle_attention.sanet") / kind.shipped
    return sorted(path.name[:-5] for path in folder.iterdir() if path.name.endswith(".yaml"))
