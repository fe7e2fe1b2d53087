"""The commands ``sanet detect train``, ``compare``, ``predict``, ``export`` and ``convert``."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import DataError, InputError, counted
from ...files import atomic_write, write_json
from ..recipes.settings import option
from ..tasks.detection.recipe import DetectionRecipe
from . import Command
from .compare import Compare
from .train import Train

if TYPE_CHECKING:
    from PIL import Image

    from ..tasks.detection.predictor import Detector


@dataclass(kw_only=True)
class TrainDetector(Train):
    """Train a detector on images with annotations.

    Every field of the recipe is an option as well. A value in brackets holds unless the recipe has another;
    sanet recipes shows the recipes.
    """

    name = "detect train"
    examples = "sanet detect train --recipe digits --output runs/detect\nsanet detect train --resume runs/detect"
    summary = "train a detector, for boxes or for boxes and masks"
    recipe_type = DetectionRecipe
    images = "a folder with images and their annotations, of COCO, YOLO or Pascal VOC"


@dataclass(kw_only=True)
class CompareDetectors(Compare):
    """Train the same recipe with several backbones and seeds, and compare the AP of the last epoch.

    The same command continues where it was stopped. Every field of the recipe but the backbone is an option as well.
    """

    name = "detect compare"
    summary = "train detectors with several backbones alike and compare them"
    recipe_type = DetectionRecipe

    models: list[str] = option([], "backbones instead of attention layers", metavar="A,B", separator=",")


@dataclass(kw_only=True)
class PredictObjects(Command):
    """Find objects in images, draw them on the images, and write them as JSON."""

    name = "detect predict"
    summary = "find objects in images and draw them"
    examples = "sanet detect predict runs/detect/best.pt photos/ --output drawn"
    recipe_type = DetectionRecipe
    recipe_fields = "skip_bad_images min_size max_size device precision"

    images: list[str] = option(
        ..., "model, then files, folders, globs, or - for standard input", positional=True, metavar="IMAGE"
    )
    checkpoint: str | None = option(
        None,
        "checkpoint of sanet detect train or file of sanet detect export, if IMAGE has images alone",
        metavar="FILE",
    )
    output: str = option(..., "folder for the drawn images and detections.json", metavar="DIR")
    threshold: float = option(0.5, "lowest score of an object", minimum=0, maximum=1)
    ema: bool | None = option(None, "averaged weights; used by default if there are any")
    rewrite: bool = option(True, "use a faster copy that computes the same, with folded norms and no shuffle")

    def run(self) -> int:
        """Find the objects in all images, and write one image each and detections.json."""
        from rich.progress import track

        from ..console import console
        from ..data.image_files import find_images, require_apart
        from ..device import open_process, require_one_process
        from ..tasks.detection.predictor import restore_detector

        require_one_process("sanet detect predict")
        overrides = {**self.overrides}
        checkpoint, *sources = self.images if self.checkpoint is None else [self.checkpoint, *self.images]
        if not sources:
            raise InputError(f"name images as well as the model: sanet detect predict {checkpoint} IMAGE")
        images = find_images(sources, skip_bad=overrides.pop("skip_bad_images", False))
        folder = Path(self.output)
        require_apart(folder, [*self.images, *(image.path for image in images)], [])
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--output {folder} is a file and not a folder")
        detector = restore_detector(checkpoint, ema=self.ema, settings={"device": "auto", **overrides})
        if self.rewrite:
            detector.rewrite()
        with open_process(detector.recipe.device) as process:
            detector.to(process)
            folder.mkdir(parents=True, exist_ok=True)
            records = []
            for image in track(images, "predicting", console=console, transient=True):
                name = f"{image.name}.png"
                with atomic_write(folder / name) as file:
                    record, drawn = _predict(detector, image.path, self.threshold)
                    drawn.save(file, "PNG")
                records.append({**record, "picture": name})
        write_json(folder / "detections.json", records)
        count = sum(len(record["detections"]) for record in records)
        console.print(
            f"{counted(count, 'object')} of score {self.threshold:g} and more in {counted(len(records), 'image')}; "
            f"drawn images and detections.json are in {folder}"
        )
        return 0


def _predict(detector: Detector, path: Path, threshold: float) -> tuple[dict[str, Any], Image.Image]:
    """Return the objects in an image with at least a score, as a record, and the image with them drawn on it."""
    from ..data.coco import CocoData
    from ..data.images import read_image
    from ..tasks.detection.coco_scores import coco_results
    from ..tasks.detection.predictor import draw_detections

    image = read_image(path, **detector.recipe.reading)
    try:
        output = detector.detect(image, threshold)
    except DataError as error:
        raise DataError(f"{path} of {error}") from error
    size = {"width": image.width, "height": image.height}
    data = CocoData([{"id": 0, "file_name": path.name, **size}], [image], [], detector.categories, str(path))
    names = {category["id"]: category["name"] for category in detector.categories}
    detections = [
        {"name": names[result["category_id"]], **{key: value for key, value in result.items() if key != "image_id"}}
        for result in coco_results(output, 0, data)
    ]
    drawn = draw_detections(image, output, detector.names, threshold=threshold)
    return {"image": str(path), **size, "detections": detections}, drawn


@dataclass(kw_only=True)
class ExportDetector(Command):
    """Write a detector as an ONNX file that runs without this package, and compare its detections with PyTorch's.

    The file takes one image of any size, which it normalises and resizes itself. Its masks are those of the boxes and
    not of the image; docs/deploy.md says how to paste them. sanet detect eval and predict take the file as well.
    """

    name = "detect export"
    summary = "write a detector as an ONNX file that runs without this package"
    examples = "sanet detect export runs/detect/best.pt --output digits.onnx\nsanet detect eval digits.onnx"
    recipe_type = DetectionRecipe
    recipe_fields = "min_size max_size"

    checkpoint: str = option(..., "checkpoint of sanet detect train", positional=True)
    output: str = option(..., "file to write, NAME.onnx", metavar="FILE")
    data: str | None = option(
        None,
        "images to compare on; by default the model's validation images, or else the embedded digits",
        metavar="DIR",
    )
    ema: bool | None = option(None, "averaged weights; used by default if there are any")

    def run(self) -> int:
        """Export the detector, and print how far its detections agree with PyTorch's."""
        from ...deploy import Artefact
        from ...deploy.detectors import export_detector
        from ...files import sha256
        from ..console import console
        from ..device import require_one_process
        from ..environment import environment
        from ..tasks.detection.predictor import restore_detector

        require_one_process("sanet detect export")
        detector = restore_detector(self.checkpoint, ema=self.ema, settings=self.overrides)
        if isinstance(detector.model, Artefact):
            raise InputError(f"{self.checkpoint} is exported already; name the checkpoint that it was written from")
        recipe = detector.recipe
        # What the file does; it always resizes to the last of several sizes, as evaluation does.
        recipe = recipe.replaced(min_size=recipe.min_size[-1:], precision="fp32", channels_last=False)
        used = environment()
        metadata = {
            "kind": recipe.kind,
            "recipe": recipe.shared().to_dict(),
            "num_classes": detector.num_classes,
            "classes": detector.classes,
            "categories": detector.categories,
            "version": used["shuffle_attention"],
            "commit": used["commit"],
            "checkpoint": Path(self.checkpoint).name,
            "checkpoint_sha256": sha256(self.checkpoint),
        }
        images = [detector.inputs(image)[0] for image in _images_for(detector, self.data)]
        agreement = export_detector(detector.model, self.output, images=images, metadata=metadata)
        size = Path(self.output).stat().st_size / 2**20
        console.print(f"{self.output}: {recipe.title}, {size:.1f} MB. In {counted(len(images), 'image')}, {agreement}")
        if not agreement.objects:
            console.print("warning: PyTorch detects nothing in these images; --data DIR compares on others")
        return 0


def _images_for(detector: Detector, folder: str | None, most: int = 8) -> list[Image.Image]:
    """Return images of a folder, by default of a detector's validation data, or else digits."""
    from ..data.image_files import find_images
    from ..data.images import read_image
    from ..tasks.detection.samples import digits_coco
    from ..tasks.detection.task import Detection

    sources: list[Any] = []
    if folder is not None:
        sources = [image.path for image in find_images([folder], most)]
    else:
        with contextlib.suppress(InputError):  # the data are elsewhere
            sources = [source for source, _ in Detection.examples(detector, most)]
    sources = sources or digits_coco("val", most).files
    return [
        read_image(source, **detector.recipe.reading) if isinstance(source, str | Path) else source
        for source in sources
    ]


@dataclass(kw_only=True)
class ConvertAnnotations(Command):
    """Convert annotated images between COCO, YOLO and Pascal VOC. Images are copied; the source is not changed."""

    name = "detect convert"
    summary = "convert annotated images between COCO, YOLO and Pascal VOC"

    source: str = option(..., "folder of COCO, YOLO or Pascal VOC, or data.yaml, or JSON of COCO", positional=True)
    to: Literal["coco", "yolo", "voc"] = option(..., "format to write")
    output: str = option(..., "folder to write, which must not hold anything yet", metavar="DIR")
    val_fraction: float | None = option(
        None, "share of the images to write as validation data, if the source has none", above=0, below=1
    )
    skip_bad_images: bool = option(False, "leave out images and annotations that cannot be used")

    def run(self) -> int:
        """Read all splits of the source, and write them in the other format."""
        from ..console import console
        from ..data.formats import find_data, format_named, read_data, require_data

        folder = Path(self.output)
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise InputError(f"--output {folder} exists and is not an empty folder")
        if folder.resolve().is_relative_to(Path(self.source).expanduser().resolve()):
            raise InputError(f"--output {folder} lies in the source; name another folder")
        found = {split: find_data(self.source, split) for split in ("train", "val", "test")}
        if found["test"] == found["val"]:  # data without validation images are validated on their test images
            del found["val"]
        locations = {split: location for split, location in found.items() if location is not None}
        if not locations:
            locations = {"train": find_data(self.source, None) or require_data(self.source, "train")}
        data, categories = {}, None
        for split, location in locations.items():
            data[split] = read_data(location, categories=categories, skip_bad=self.skip_bad_images)
            categories = data[split].categories
        if self.val_fraction is not None and "val" not in data and "train" in data:
            data |= data["train"].parted(self.val_fraction)
        folder.mkdir(parents=True, exist_ok=True)
        format_named(self.to).write(data, folder)
        counts = ", ".join(
            f"{split}: {counted(len(part), 'image')} with {counted(len(part.annotations), 'object')}"
            for split, part in data.items()
        )
        console.print(f"{folder} holds {self.to.upper()} data of {counts}")
        return 0
