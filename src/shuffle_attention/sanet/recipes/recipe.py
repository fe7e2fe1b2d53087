"""Recipes: the settings of a run with their defaults, and the YAML files that change some."""

import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from importlib import resources
from itertools import takewhile
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import yaml

from ...errors import InputError, unknown
from .settings import GROUPS, Settings, choices_text, option, read_yaml, require

if TYPE_CHECKING:
    from importlib.abc import Traversable

R = TypeVar("R", bound="RunRecipe")
NAMED = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")  # beginnings of the names of timm's data sets
_LOCATIONS = {"data_dir", "train_annotations", "train_images", "val_annotations", "val_images"}
_LARGEST = 100_000  # bytes of a file; the shipped recipes have fewer than 2,000
# Arguments of timm.create_model that fetch weights, which a checkpoint replaces.
SOURCES_OF_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")


@dataclass(kw_only=True)
class RunRecipe(Settings):
    """Settings of a run for any task; the help of each field is its documentation.

    Raises:
        InputError: If a value has the wrong type or is out of range.
    """

    kind: ClassVar[str]  # of the trained model
    command: ClassVar[str]  # that trains the model
    shipped: ClassVar[str]  # folder of the shipped recipes
    needs_data: ClassVar[bool] = False  # whether the data must be named
    network: ClassVar[tuple[str, str]] = ("model", "model_args")  # fields of timm's name and of further arguments

    data: str = option("digits", "folder with images, or 'digits'", "data", first=True, metavar="DIR")
    val_fraction: float | None = option(
        None,
        "share of the images to evaluate on, drawn by class, if data have no validation split",
        "data",
        first=True,
        minimum=0,
        below=1,
    )
    split_seed: int = option(0, "seed of that draw, whatever the seed of the run", "data", minimum=0)
    drawn: str = ""  # digest of the validation images that val_fraction drew, by which a run knows them again
    workers: int = option(2, "loader processes per device", "data", minimum=0, maximum=1024)
    check_images: bool = option(True, "read every image file before the first step", "data")
    skip_bad_images: bool = option(False, "leave out unreadable images, and count them, instead of stopping", "data")
    as_stored: bool = option(
        False, "do not turn images by their EXIF orientation, nor lay transparent ones on white", "data"
    )
    bit_depth: int | None = option(
        None, "bits that images of more than 8 bits fill; 16 by default", "data", minimum=8, maximum=32
    )

    hflip: float = option(0.5, "probability of a horizontal flip", "images", minimum=0, maximum=1)

    initial: str | None = option(None, "checkpoint to start from", "model", metavar="FILE")
    may_differ: list[str] = option([], "entries that may differ from initial, such as fc.*", "model", metavar="GLOB")
    attach: dict[str, Any] = option(
        {},
        "attention put into the model: a name, such as shuffle, or {name: shuffle, where: residual} and its options",
        "model",
    )
    freeze: list[str] = option(
        [], "parameters that are not trained, such as layer1.*; norms among them keep their statistics", "model"
    )
    sync_bn: bool = option(False, "BatchNorm statistics over all processes", "model")

    epochs: int = option(100, "passes over the training data", "optimisation", first=True, minimum=1)
    batch_size: int = option(
        256, "images per optimiser step, over all processes", "optimisation", first=True, minimum=1
    )
    lr: float = option(0.1, "learning rate, at lr_base_size if that is given", "optimisation", first=True, minimum=0)
    attention_lr: float = option(
        1.0, "factor of the learning rate for the attention's parameters", "optimisation", above=0
    )
    opt: str = option(
        "momentum",
        "sgd (Nesterov), momentum (SGD without Nesterov), or any of timm: adamw, ...",
        "optimisation",
    )
    grad_accum: int = option(1, "forward passes per step", "optimisation", minimum=1)
    lr_base_size: int | None = option(
        None, "batch size of lr, which is scaled to batch_size", "optimisation", minimum=1
    )
    momentum: float = option(0.9, "momentum", "optimisation", minimum=0, below=1)
    weight_decay: float = option(1e-4, "weight decay", "optimisation", minimum=0)
    decay_norm_and_bias: bool = option(True, "decay norms, biases and gates too, as published", "optimisation")
    sched: str = option("step", "timm's schedule: step, multistep, cosine, ...", "optimisation")
    decay_epochs: float = option(30, "epochs between decays of the step schedule", "optimisation", above=0)
    decay_milestones: list[int] = option([], "epochs after which the multistep schedule decays", "optimisation")
    decay_rate: float = option(0.1, "factor of each decay", "optimisation", minimum=0)
    warmup_epochs: float = option(0, "epochs of linear warm-up", "optimisation", minimum=0)
    warmup_lr: float = option(1e-5, "learning rate at the start of the warm-up", "optimisation", minimum=0)
    min_lr: float = option(0.0, "lowest learning rate", "optimisation", minimum=0)
    patience: int = option(
        0, "epochs without a better result after which the run stops; 0 for none", "optimisation", minimum=0
    )
    clip_grad: float | None = option(None, "largest norm of the gradient", "optimisation", above=0)
    ema_decay: float | None = option(
        None, "decay of averaged weights, which are evaluated", "optimisation", above=0, below=1
    )

    device: str = option("auto", "cpu, cuda, mps, ...; auto takes a GPU if there is one", "machine", first=True)
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "mixed precision, with loss scaling for fp16", "machine"
    )
    seed: int = option(0, "seed of all random numbers", "machine", first=True, minimum=0, below=2**32)
    init_seed: int | None = option(
        None, "seed of the initial weights (that of the run)", "machine", minimum=0, below=2**32
    )
    channels_last: bool = option(False, "NHWC memory format", "machine")
    memory: Literal["keep", "rebuild", "rebuild-all"] = option(
        "keep",
        "rebuild: recompute normalised maps in the backward pass, which keeps a fifth less memory; rebuild-all: the "
        "outputs of blocks as well, which keeps two fifths less",
        "machine",
    )
    eval_steps: int = option(0, "steps between evaluations, into curve.csv; 0 for none", "machine", minimum=0)
    checkpoint_steps: int = option(1000, "steps between checkpoints within an epoch; 0 for none", "machine", minimum=0)
    keep_epochs: int = option(
        0, "last epochs whose weights are kept as epoch-N.pt, for sanet average; 0 for none", "machine", minimum=0
    )
    tracker: list[str] = option(
        [], "record the run with mlflow, wandb or trackio, and not only with TensorBoard", "machine"
    )
    log_steps: int = option(10, "steps between records in trackers; 0 for epochs alone", "machine", minimum=0)
    report: bool = option(True, "end with report.html, which takes one more pass over the validation data", "machine")

    def __post_init__(self) -> None:
        if isinstance(self.attach, str):
            self.attach = {"name": self.attach}
        super().__post_init__()
        require(not self.attach or "name" in self.attach, "attach", "a name, or a mapping with a name", self.attach)
        rising = all(a < b for a, b in zip([0, *self.decay_milestones], self.decay_milestones, strict=False))
        require(rising, "decay_milestones", "rising epochs above 0", self.decay_milestones)
        given = self.sched != "multistep" or bool(self.decay_milestones)
        require(given, "decay_milestones", "given with sched multistep", self.decay_milestones)

    @property
    def peak_lr(self) -> float:
        """The learning rate at the batch size of the run."""
        return self.lr * self.batch_size / (self.lr_base_size or self.batch_size)

    @property
    def network_args(self) -> dict[str, Any]:
        """Further arguments of ``timm.create_model``."""
        return getattr(self, self.network[1])

    @property
    def starts_trained(self) -> bool:
        """Whether the network, or a part of it, starts from trained weights."""
        return self.initial is not None or any(self.network_args.get(name) for name in SOURCES_OF_WEIGHTS)

    @property
    def as_trained(self) -> dict[str, Any]:
        """Settings that a network trained with this recipe keeps in another recipe, beside those of :attr:`network`."""
        return {}

    @property
    def reading(self) -> dict[str, Any]:
        """How images are read: arguments of ``read_image``."""
        return {"mode": "RGB", "as_stored": self.as_stored, "bit_depth": self.bit_depth}

    @property
    def has_data(self) -> bool:
        """Whether the data can be found: embedded digits, a named data set, or a path with its folder."""
        return self.data == "digits" or self.data.startswith(NAMED) or Path(self.data).parent != Path()

    def shared(self: R) -> R:
        """Return the recipe for a file that other machines read: names of data and weights, without their paths."""
        values: dict[str, Any] = dict.fromkeys(_LOCATIONS & self.options().keys())
        if not self.data.startswith(NAMED):
            values["data"] = PureWindowsPath(self.data).name  # splits at both kinds of slash
        for name in {"initial", "weights"} & self.options().keys():
            value = getattr(self, name)
            values[name] = value and PureWindowsPath(value).name
        return self.replaced(**values)

    @property
    def title(self) -> str:
        """Name of the model, for messages and for the run's folder."""
        raise NotImplementedError

    def to_yaml(self, about: str = "", *, unset: Collection[str] = ()) -> str:
        """Return all fields as YAML, by group, each with its help as a comment.

        Args:
            about: Lines of comments to begin with.
            unset: Fields that are only named in a comment, since they have to be given.
        """
        lines = about.splitlines()
        for group in GROUPS:
            lines += ["", f"# {group}"]
            for name, (field, hint) in self.options().items():
                if field.group == group:
                    value = yaml.safe_dump({name: getattr(self, name)}, default_flow_style=True, width=math.inf)
                    value = f"# {name}: ..." if name in unset else value.strip()[1:-1]
                    lines.append(f"{value:<34}  # {field.help}{choices_text(hint)}")
        return "\n".join(lines).strip() + "\n"


@dataclass(kw_only=True)
class Recipe(RunRecipe):
    """Settings of a run that trains a classifier.

    Raises:
        InputError: If a value has the wrong type or is out of range.
    """

    kind = "classifier"
    command = "sanet train"
    shipped = "recipes"
    needs_data = True

    data: str = option(
        "digits",
        "folder of classes or with train/ and val/, CSV file, 'digits', or a name of timm's create_dataset",
        "data",
        first=True,
        metavar="DIR",
    )
    data_dir: str | None = option(
        None,
        "folder of a named data set (or of shards, for wds/), or of the images of a CSV file",
        "data",
        first=True,
        metavar="DIR",
    )
    train_split: str = option("train", "name of the split to train on", "data")
    val_split: str = option("validation", "name of the split to evaluate on", "data")
    num_classes: int | None = option(None, "classes; read from the data if possible", "data", minimum=1)

    img_size: int = option(224, "side of the input, pixels", "images", first=True, minimum=1, maximum=4096)
    in_chans: Literal[1, 3] = option(3, "channels of the input", "images")
    mean: list[float] | None = option(None, "mean per channel, 0 to 1; by default the model's", "images")
    std: list[float] | None = option(None, "standard deviation per channel; by default the model's", "images", above=0)
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"] = option(
        "bilinear", "interpolation of resized images", "images"
    )
    crop_pct: float = option(
        0.875, "side of the evaluated centre crop over the shorter side", "images", above=0, maximum=1
    )
    scale: list[float] = option([0.08, 1.0], "area range of the random resized crop", "images", maximum=1)
    ratio: list[float] = option([0.75, 4 / 3], "aspect range of the random resized crop", "images")
    color_jitter: float = option(0.0, "strength of colour jitter", "images", minimum=0)
    auto_augment: str | None = option(None, "timm's augmentation string, such as rand-m7-mstd0.5-inc1", "images")
    random_erasing: float = option(0.0, "probability of random erasing", "images", minimum=0, maximum=1)
    mixup: float = option(0.0, "alpha of mixup; 0 is off", "images", minimum=0)
    cutmix: float = option(0.0, "alpha of cutmix; 0 is off", "images", minimum=0)

    model: str = option("sa_resnet50", "any model of timm, or one of docs/networks.md", "model", first=True)
    model_args: dict[str, Any] = option({}, "further arguments of timm.create_model, as YAML", "model")
    small_stem: bool = option(False, "3x3 stem of stride 1, for images of at most 64 pixels", "model")
    drop_rate: float = option(0.0, "dropout before the classifier", "model", minimum=0, maximum=1)
    drop_path_rate: float = option(0.0, "stochastic depth", "model", minimum=0, maximum=1)
    freeze_bn: bool = option(False, "keep BatchNorm in evaluation mode while training", "model")
    grad_checkpointing: bool = option(False, "recompute activations in the backward pass", "model")

    loss: Literal["ce", "bce"] = option("ce", "softmax or binary cross-entropy", "optimisation")
    smoothing: float = option(0.0, "label smoothing", "optimisation", minimum=0, below=1)
    teacher: str | None = option(
        None,
        "checkpoint of sanet train, or pretrained model of timm, to learn from as well as from the labels",
        "optimisation",
        metavar="FILE",
    )
    distill_alpha: float = option(
        0.5, "weight of the teacher in the loss; that of the labels is 1 minus it", "optimisation", minimum=0, maximum=1
    )
    distill_temperature: float = option(4.0, "temperature of the softmax of teacher and model", "optimisation", above=0)
    teacher_digest: str = ""  # identifies the teacher's weights when a run is resumed
    class_weights: Literal["none", "balanced"] = option(
        "none", "balanced: each class counts alike in the loss ce, however many images it has", "optimisation"
    )

    cache_mb: int = option(
        2048,
        "megabytes of decoded images of up to 96 pixels to keep in memory, per split and process; 0 for none",
        "machine",
        minimum=0,
    )
    compile: bool = option(False, "torch.compile the model", "machine")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scale", "ratio"):
            low_high = getattr(self, name)
            ordered = len(low_high) == 2 and 0 < low_high[0] <= low_high[1]
            require(ordered, name, "two rising numbers above 0", low_high)
        require(self.class_weights == "none" or self.loss == "ce", "class_weights", "none with loss bce", "balanced")
        for name in ("distill_alpha", "distill_temperature"):
            unused = self.teacher is None and getattr(self, name) != type(self).options()[name][0].default
            require(not unused, name, "given with a teacher", getattr(self, name))
        for name in ("mean", "std"):
            values = getattr(self, name)
            require(values is None or len(values) in (1, 3), name, "one number per channel, 3 or 1", values)
        own = sorted({"num_classes", "in_chans", "features_only", "scriptable"} & self.model_args.keys())
        require(
            not own, "model_args", f"without {', '.join(own)} (num_classes and in_chans are fields)", self.model_args
        )

    @property
    def as_trained(self) -> dict[str, Any]:
        names = ("in_chans", "small_stem", "img_size", "mean", "std", "interpolation", "crop_pct")
        return {name: getattr(self, name) for name in names}

    @property
    def reading(self) -> dict[str, Any]:
        return {**super().reading, "mode": "RGB" if self.in_chans == 3 else "L"}

    @property
    def title(self) -> str:
        return self.model


def load_recipe(name: str | os.PathLike, kind: type[R] = Recipe) -> R:
    """Return a recipe by its name among the shipped ones of a kind, or from a YAML file.

    Raises:
        InputError: If there is no such recipe, or one of its fields is unknown or invalid.
    """
    fields, source = recipe_fields(name, kind)
    for name in ("drawn", "teacher_digest"):  # another run may divide other images, and have another teacher
        fields.pop(name, None)
    try:
        return kind.of(fields)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def recipe_fields(name: str | os.PathLike, kind: type[RunRecipe] = Recipe) -> tuple[dict[Any, Any], str]:
    """Return the fields in the file of a recipe, and how messages call it.

    Raises:
        InputError: If there is no such recipe, or its file is not a mapping in YAML.
    """
    source = str(name)
    if source in recipe_names(kind):
        path, source = _shipped(kind) / f"{name}.yaml", f"recipe {name}"
    elif Path(name).is_file():
        path = Path(name)
    else:
        raise unknown("recipe or YAML file", source, recipe_names(kind))
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise InputError(f"{source} is larger than {_LARGEST:,} bytes and not a recipe")
    try:
        fields = read_yaml(content.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not a text file") from error
    except InputError as error:
        raise InputError(f"{source} {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{source} must hold 'field: value' lines, got {type(fields).__name__}")
    return fields, source


def recipe_names(kind: type[RunRecipe] = Recipe) -> list[str]:
    """Return the names of the shipped recipes of a kind."""
    return sorted(path.name[:-5] for path in _shipped(kind).iterdir() if path.name.endswith(".yaml"))


def recipe_about(name: str, kind: type[RunRecipe] = Recipe) -> list[str]:
    """Return the comments at the head of a shipped recipe; the first line says what it is for."""
    lines = (_shipped(kind) / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]


def _shipped(kind: type[RunRecipe]) -> "Traversable":
    return resources.files("shuffle_attention.sanet") / kind.shipped
