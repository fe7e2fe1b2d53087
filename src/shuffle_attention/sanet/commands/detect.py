"""The commands ``sanet detect train`` and ``sanet detect predict``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError, InputError
from ...files import atomic_write, write_json
from ..recipes.settings import option
from ..tasks.detection.recipe import DetectionRecipe
from . import Command
from .train import Train

if TYPE_CHECKING:
    from PIL import Image

    from ..tasks.detection.predictor import Detector


@dataclass(kw_only=True)
class TrainDetector(Train):
    """Train a detector. Every field of the recipe is an option as well."""

    name = "detect train"
    summary = "train a detector, for boxes or for boxes and masks"
    recipe_type = DetectionRecipe


@dataclass(kw_only=True)
class PredictObjects(Command):
    """Find objects in images, draw them on the images, and write them as JSON."""

    name = "detect predict"
    summary = "find objects in images and draw them"
    recipe_type = DetectionRecipe
    recipe_fields = "skip_bad_images min_size max_size device precision"

    images: list[str] = option(..., "files, and folders with everything in them", positional=True, metavar="IMAGE")
    checkpoint: str = option(..., "checkpoint of sanet detect train", metavar="FILE")
    output: str = option(..., "folder for the drawn images and detections.json", metavar="DIR")
    threshold: float = option(0.5, "lowest score of an object", minimum=0, maximum=1)
    ema: bool | None = option(None, "averaged weights; used by default if there are any")

    def run(self) -> int:
        """Find the objects in all images, and write one image each and detections.json."""
        from rich.progress import track

        from ..console import console
        from ..data.image_files import find_images, require_apart
        from ..device import open_process
        from ..tasks.detection.predictor import restore_detector

        overrides = {**self.overrides}
        images = find_images(self.images, skip_bad=overrides.pop("skip_bad_images", False))
        folder = Path(self.output)
        require_apart(folder, self.images, [])
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--output {folder} is a file and not a folder")
        detector = restore_detector(self.checkpoint, ema=self.ema, settings={"device": "auto", **overrides})
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
            f"{count} objects of score {self.threshold:g} and more in {len(records)} images; the drawn images and",
            end=" ",
        )
        console.print(f"detections.json are in {folder}")
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
