"""A trained detector, from a recipe or a checkpoint, and drawings of its detections."""

import colorsys
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from ....checkpoints import CheckpointError, find_state_dict, load_weights, read_checkpoint
from ....deploy import load, onnx
from ....deploy.detectors import DetectorFile
from ....errors import DataError, InputError, listed
from ....models.branch import set_memory
from ....models.detectors import ARCHITECTURES, create_detector, require_arguments
from ...data.coco import CocoData
from ...data.formats import Location, find_data, read_data, require_data
from ...device import autocast
from ...network import recipe_of
from ..predictor import Prediction, Predictor
from .recipe import DetectionRecipe
from .samples import digits_coco

logger = logging.getLogger(__name__)
_drawn_digits = functools.cache(digits_coco)  # each run of a comparison opens them
EXPORTED = ("min_size", "max_size", "precision", "channels_last")  # settings that are part of an exported file


def detector_of(recipe: DetectionRecipe, num_classes: int, *, restored: bool = False) -> nn.Module:
    """Return the detector of a recipe on the CPU, initialised or, if ``restored``, to be filled from a checkpoint.

    Raises:
        InputError: If there is no such detector or backbone, or it does not take these arguments.
    """
    if recipe.anchor_sizes and ARCHITECTURES[recipe.arch].anchors is None:
        raise InputError(f"{recipe.arch} has no anchors, and the recipe gives some: --anchor-sizes without values")
    try:
        require_arguments(recipe.arch, recipe.detector_args)
    except InputError as error:
        raise InputError(f"{error}; for none of the recipe's: --detector-args '{{}}'") from error
    detector = create_detector(
        recipe.arch,
        recipe.backbone,
        num_classes,
        weights=None if restored else recipe.weights,
        norm_eps=recipe.norm_eps,
        pretrained=recipe.pretrained and not restored,
        **recipe.trained_part,  # weights that are not loaded again still count in what is frozen because of them
        min_size=recipe.min_size,
        max_size=recipe.max_size,
        anchor_sizes=recipe.anchor_sizes or None,
        pyramid_channels=recipe.pyramid_channels,
        backbone_options=recipe.backbone_args,
        attention=recipe.attach,
        **recipe.detector_args,
    )
    set_memory(detector, recipe.memory)
    return detector


def open_coco(
    recipe: DetectionRecipe,
    *splits: str,
    categories: list[dict[str, Any]] | None = None,
    check: bool = True,
) -> list[CocoData]:
    """Return the data of splits, "train" and "val"; all have the given categories, or those of the first.

    Raises:
        DataError: If there are no such data, they cannot be used, or have no object.
    """
    options: dict[str, Any] = {"masks": ARCHITECTURES[recipe.arch].masks, "skip_bad": recipe.skip_bad_images}
    options |= {"check_files": check, "reading": recipe.reading}
    undivided = None
    if recipe.val_fraction and _location(recipe, "val") is None:
        undivided = _location(recipe, "train") or _location(recipe, None)
    opened: list[CocoData] = []
    if recipe.data == "digits" and recipe.train_annotations is None and recipe.val_annotations is None:
        opened = [_drawn_digits(split) for split in splits]
    elif undivided is not None:
        whole = read_data(undivided, categories=categories, **options)
        parts = whole.parted(recipe.val_fraction or 0, recipe.split_seed)
        if recipe.drawn and recipe.drawn != parts["val"].drawn:
            raise DataError(
                f"the images of {recipe.data} are not those that the run divided, so that its validation images cannot "
                "be told from those it was trained on; restore them, or name others with --val-annotations"
            )
        opened = [parts[split] for split in splits]
    else:
        for split in splits:
            location = _location(recipe, split) or require_data(recipe.data, split)
            opened.append(read_data(location, categories=categories, **options))
            categories = opened[0].categories
    for split, data in zip(splits, opened, strict=True):
        if not any(min(each["bbox"][2:]) >= 1 for each in data.annotations if not each["iscrowd"]):
            purpose = "learn from" if split == "train" else "evaluate on"
            hint = "; boxes without masks train --arch faster_rcnn" if options["masks"] else ""
            raise DataError(f"{data.source} has no object of at least a pixel to {purpose}, crowds not counted{hint}")
    if len(opened) > 1 and (shared := {*map(str, opened[0].files)} & {*map(str, opened[1].files)}):
        logger.warning("%d images are both trained and evaluated on: %s", len(shared), listed(sorted(shared), 3))
    return opened


def _location(recipe: DetectionRecipe, split: str | None) -> Location | None:
    """Return where the data of a split are, if there are any; None stands for data without a split."""
    annotations, images = (getattr(recipe, f"{split or 'train'}_{part}") for part in ("annotations", "images"))
    if annotations is not None:
        return Location("coco", Path(annotations), Path(images))
    return None if recipe.data == "digits" else find_data(recipe.data, split)


@dataclass(kw_only=True, eq=False)
class Detector(Predictor):
    """A detector that predicts.

    Attributes:
        categories: COCO record of each label, from 1 on.
    """

    recipe: DetectionRecipe
    categories: list[dict[str, Any]]

    @property
    def names(self) -> list[str]:
        """Name of each label, from 1 on."""
        return [category["name"] for category in self.categories]

    @property
    def about(self) -> str:
        return f"detector of {super().about}"

    def inputs(self, image: Image.Image) -> list[Tensor]:
        pixels = functional.to_dtype(functional.pil_to_tensor(image), torch.float32, scale=True)
        return [pixels.to(self.process.device)]

    @torch.inference_mode()
    def detect(self, image: Image.Image, threshold: float) -> dict[str, Tensor]:
        """Return boxes, labels, scores and masks of the objects of at least a score, on the CPU.

        Raises:
            DataError: If the model cannot process an image of this size.
        """
        try:
            with autocast(self.process, self.recipe.precision):
                output = self.model(self.inputs(image))[0]
        except (RuntimeError, InputError) as error:  # so narrow that nothing is left of it when resized, or too large
            raise DataError(f"{image.width} x {image.height} pixels cannot be processed: {error}") from error
        return {name: value[output["scores"] >= threshold].cpu() for name, value in output.items()}

    def predict(self, image: Image.Image, threshold: float = 0.0) -> Prediction:
        """Return the objects of at least a score, and the image with them."""
        output, names = self.detect(image, threshold), self.names
        labels, scores = output["labels"].tolist(), output["scores"].tolist()
        best = [(names[label - 1], score) for label, score in zip(labels, scores, strict=True)]
        count = f"{len(best)} {'object' if len(best) == 1 else 'objects'}"
        return Prediction(
            best,
            f"{count} with a score of at least {threshold:.2f}",
            lambda: draw_detections(image, output, names, threshold=threshold),
        )


def restore_detector(
    path: str | os.PathLike, *, ema: bool | None = None, settings: dict[str, Any] | None = None
) -> Detector:
    """Return the detector of a checkpoint of ``sanet detect train`` or of an exported file, with settings replaced.

    Raises:
        InputError: If the file cannot be read, holds no detector, or does not take these settings.
    """
    file = DetectorFile.of(load(path)) if Path(path).suffix == onnx.FORMAT.suffix else None
    if file is not None and not file.metadata:
        raise InputError(f"{path} does not say what it detects; sanet detect export writes files that do")
    content = read_checkpoint(path) if file is None else file.metadata
    trained, num_classes = recipe_of(content, path, DetectionRecipe)
    categories = content.get("categories")
    if not isinstance(categories, list) or len(categories) != num_classes - 1:
        raise CheckpointError(f"{path} does not say what the {num_classes - 1} labels of its detector mean")
    recipe = trained.replaced(**(settings or {}))
    if file is None:
        model = detector_of(recipe, num_classes, restored=True)
        weights, name = find_state_dict(content, ema=ema, path=path)
        entry = load_weights(model, weights, path, name=name, ema=ema).weights
    else:
        model, entry = file, "onnx file"
        differing = [name for name in EXPORTED if getattr(recipe, name) != getattr(trained, name)]
        if differing or ema is not None:
            raise InputError(
                f"{', '.join(differing) or 'ema'} cannot be chosen for {path}, which has it inside: export the "
                "checkpoint with another"
            )
    return Detector(
        model=model,
        recipe=recipe,
        classes=[category["name"] for category in categories],
        num_classes=num_classes,
        source=str(path),
        label=recipe.title,
        weights=entry,
        knows_data=file is None or recipe.has_data,
        categories=categories,
    )


def draw_detections(
    image: Image.Image,
    output: Mapping[str, Tensor],
    names: Sequence[str],
    *,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    scale: int | None = None,
) -> Image.Image:
    """Return a copy of an image with the detections on it in the colours of their classes, the smallest on top.

    Args:
        image: The image that the detector received.
        output: ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,), ``scores`` (N,) unless it is the
            truth, and perhaps ``masks`` (N, 1, H, W) in [0, 1].
        names: Name of each label from 1 on.
        threshold: Lowest score that is drawn.
        mask_threshold: Value from which on a pixel is inside a mask.
        scale: Upscaling factor; by default large enough for labels to be readable.
    """
    import matplotlib

    scale = scale or max(1, round(640 / max(image.size)))
    canvas = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    pixels = functional.pil_to_tensor(canvas)
    scores = output.get("scores")
    shown = torch.arange(len(output["boxes"])) if scores is None else (scores >= threshold).nonzero().flatten()
    x1, y1, x2, y2 = output["boxes"][shown].float().unbind(1)
    shown = shown[((x2 - x1) * (y2 - y1)).argsort(descending=True)].cpu()
    if not len(shown):
        return canvas
    labels: list[int] = output["labels"].cpu()[shown].tolist()
    colours: list[str | tuple[int, int, int]] = [class_colour(label) for label in labels]
    if "masks" in output:
        masks = output["masks"].cpu()[shown, 0] >= mask_threshold
        # torchvision paints black what two masks share; it is the smaller one's here.
        masks &= masks.flip(0).cumsum(0).flip(0) == 1
        masks = masks.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        pixels = draw_segmentation_masks(pixels, masks, alpha=0.45, colors=colours)
    titles = [names[label - 1] if 1 <= label <= len(names) else f"label {label}" for label in labels]
    if scores is not None:
        titles = [f"{title}: {score:.2f}" for title, score in zip(titles, scores.cpu()[shown].tolist(), strict=True)]
    boxes = (output["boxes"].float().cpu()[shown] * scale).round()
    # A title stands in its box, and must not hide what is small.
    font_size = int((boxes[:, 3] - boxes[:, 1]).median().div(4).clamp(9, 14))
    limit = torch.tensor([canvas.width - 1, canvas.height - 1] * 2)
    pixels = draw_bounding_boxes(
        pixels,
        boxes.clamp(min=0).minimum(limit),
        titles,
        colors=colours,
        width=2,
        font=str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"),
        font_size=font_size,
        fill_labels=True,
    )
    return functional.to_pil_image(pixels)


def class_colour(label: int) -> tuple[int, int, int]:
    """Return the colour of a class; hues a golden section apart are never close to those of the labels before."""
    red, green, blue = colorsys.hsv_to_rgb((label - 1) * 0.618 % 1, 0.75, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)
