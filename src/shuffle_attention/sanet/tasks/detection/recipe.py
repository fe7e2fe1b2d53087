"""Settings of a run that trains a detector."""

from dataclasses import dataclass
from typing import Any, Literal

from ...recipes.recipe import RunRecipe
from ...recipes.settings import option, require

_OWN = {"arch", "backbone", "num_classes", "weights", "pretrained", "min_size", "max_size"}
_OWN |= {"anchor_sizes", "pyramid_channels", "attention"}
_NO_TEACHER = (
    "a detector has no teacher, since distillation compares the logits of classifiers; train the backbone with "
    "sanet train --teacher, and start from it with --weights"
)


@dataclass(kw_only=True)
class DetectionRecipe(RunRecipe):
    """Settings of a run that trains a detector; the help of each field is its documentation.

    Raises:
        InputError: If a value is of the wrong type or out of range.
    """

    kind = "detector"
    command = "sanet detect train"
    shipped = "tasks/detection/recipes"
    needs_data = True
    refused = dict.fromkeys(("teacher", "distill_alpha", "distill_temperature"), _NO_TEACHER)
    network = ("backbone", "backbone_args")

    data: str = option(
        "digits", "folder of COCO, YOLO (or its data.yaml) or Pascal VOC, or 'digits'", "data", first=True
    )
    train_annotations: str | None = option(None, "annotations to train on, where data does not have them", "data")
    train_images: str | None = option(None, "their images", "data")
    val_annotations: str | None = option(None, "annotations to evaluate on, where data does not have them", "data")
    val_images: str | None = option(None, "their images", "data")
    empty_images: bool = option(True, "train on images without objects too", "data")

    min_size: list[int] = option(
        [800], "shorter side of the input, pixels; of several one at random", "images", first=True
    )
    max_size: int = option(1333, "limit of the longer side of the input, pixels", "images")
    vflip: float = option(0.0, "probability of a vertical flip, for images without an up", "images")

    photometric: float = option(0.0, "probability of distorted colours", "images", minimum=0, maximum=1)
    zoom_out: float = option(0.0, "probability of a margin around the image", "images", minimum=0, maximum=1)
    iou_crop: float = option(0.0, "probability of a crop that keeps objects, as SSD's", "images", minimum=0, maximum=1)
    scale_jitter: list[float] = option(
        [], "range of large-scale jitter, such as 0.1 2: resize, then crop or pad to a square of min_size", "images"
    )

    arch: Literal["faster_rcnn", "mask_rcnn", "retinanet", "fcos"] = option(
        "faster_rcnn", "detector", "model", first=True
    )
    backbone: str = option(
        "sa_resnet50", "any model of timm with feature maps, or of docs/networks.md", "model", first=True
    )
    backbone_args: dict[str, Any] = option({}, "further arguments of timm.create_model, as YAML", "model")
    weights: str | None = option(
        None, "checkpoint of the backbone or of a detector; plain for torchvision's", "model", metavar="FILE"
    )
    norm_eps: float | None = option(
        None, "epsilon of the frozen norms in a detector of torchvision's; 0 by default", "model", minimum=0
    )
    pretrained: bool = option(False, "take timm's weights of the backbone", "model")
    trainable_layers: int | None = option(
        None, "stages of the backbone that are trained; 3 with weights, all without", "model"
    )
    frozen_norm: bool | None = option(None, "keep the backbone's BatchNorm as it is; with weights by default", "model")
    anchor_sizes: list[int] = option([], "side of the anchors of each of five levels; 32 to 512 by default", "model")
    pyramid_channels: int = option(256, "channels of the pyramid's levels and of the heads on them", "model")
    detector_args: dict[str, Any] = option({}, "further arguments of torchvision's detector, as YAML", "model")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.min_size) and min(self.min_size) >= 1, "min_size", "lengths of at least 1", self.min_size)
        require(self.max_size >= max(self.min_size), "max_size", "at least the largest min_size", self.max_size)
        low_high = self.scale_jitter
        rising = not low_high or (len(low_high) == 2 and 0 < low_high[0] <= low_high[1])
        require(rising, "scale_jitter", "two rising numbers above 0", low_high)
        require(0 <= self.vflip <= 1, "vflip", "between 0 and 1", self.vflip)
        require(not (self.weights and self.pretrained), "pretrained", "false where weights are named", self.pretrained)
        for split in ("train", "val"):
            pair = [getattr(self, f"{split}_annotations"), getattr(self, f"{split}_images")]
            name = f"{split}_annotations and {split}_images"
            require((pair[0] is None) == (pair[1] is None), name, "given together", pair)
        own = sorted(_OWN & self.detector_args.keys())
        require(not own, "detector_args", f"without {', '.join(own)} (they are fields)", self.detector_args)

    @property
    def has_weights(self) -> bool:
        """Whether the backbone starts from pretrained weights."""
        return self.pretrained or self.weights is not None

    @property
    def starts_trained(self) -> bool:
        return self.has_weights or super().starts_trained

    @property
    def trained_part(self) -> dict[str, Any]:
        """``trainable_layers`` and ``frozen_norm``, whose defaults depend on whether the backbone has weights."""
        from ....models.detectors import WITH_WEIGHTS_TRAINABLE

        layers, frozen = self.trainable_layers, self.frozen_norm
        return {
            "trainable_layers": WITH_WEIGHTS_TRAINABLE if layers is None and self.has_weights else layers,
            "frozen_norm": self.has_weights if frozen is None else frozen,
        }

    @property
    def as_trained(self) -> dict[str, Any]:
        names = ("arch", "min_size", "max_size", "anchor_sizes", "pyramid_channels", "detector_args")
        return {**{name: getattr(self, name) for name in names}, **self.trained_part}

    @property
    def title(self) -> str:
        return f"{self.arch}-{self.backbone}"
