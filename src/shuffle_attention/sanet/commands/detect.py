"""The commands ``sanet detect``: train, evaluate and use detectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError, InputError
from ...files import atomic_write, require_folder_of, write_json
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
class EvaluateDetector(Command):
    """Evaluate a detector by COCO's metrics."""

    name = "detect eval"
    summary = "evaluate a detector"
    recipe_type = DetectionRecipe
    recipe_fields = (
        "data val_annotations val_images workers check_images skip_bad_images min_size max_size device precision "
        "channels_last"
    )

    checkpoint: str = option(..., "checkpoint of sanet detect train", positional=True)
    batch_size: int = option(4, "images at a time", minimum=1)
    ema: bool | None = option(None, "averaged weights; used by default if there are any")
    json: str | None = option(None, "write the metrics to FILE", metavar="FILE")
    results: str | None = option(None, "write the detections to FILE, as COCO's results", metavar="FILE")

    def run(self) -> int:
        """Evaluate the checkpoint, and print and write its metrics."""
        from ..device import open_process
        from ..environment import environment
        from ..tasks.detection.coco_scores import evaluate_detector
        from ..tasks.detection.predictor import open_coco, restore_detector
        from ..tasks.detection.samples import collate
        from ..tasks.detection.task import evaluation_samples
        from ..tasks.evaluation import held_out_batches

        checkpoint, overrides, batch_size = self.checkpoint, self.overrides, self.batch_size
        for flag, file in (("--json", self.json), ("--results", self.results)):
            require_folder_of(flag, file)
        restored = restore_detector(checkpoint, ema=self.ema, settings={"device": "auto", "workers": 2, **overrides})
        recipe = restored.recipe
        data = open_coco(recipe, "val", categories=restored.categories, check=recipe.check_images)
        with open_process(recipe.device) as process:
            scores = evaluate_detector(
                process.to_device(restored.model, channels_last=recipe.channels_last),
                held_out_batches(evaluation_samples(data), recipe.workers, process, batch_size, collate),
                data,
                process,
                precision=recipe.precision,
            )
            if process.rank != 0:
                return 0
        figures = {
            "checkpoint": str(checkpoint),
            "weights": restored.weights,
            "model": recipe.title,
            "data": data.source,
            "classes": len(restored.categories),
            "min_size": recipe.min_size[-1],
            "max_size": recipe.max_size,
            **scores.to_dict(),
            "batch_size": batch_size,
            "device": str(process.device),
            **environment(),
        }
        _print_scores(f"{recipe.title} from {checkpoint}", scores.to_dict())
        if self.json is not None:
            write_json(self.json, figures)
        if self.results is not None:
            write_json(self.results, scores.results, indent=None)
        return 0


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
        from ..data.images import find_images, require_apart
        from ..device import open_process
        from ..tasks.detection.predictor import restore_detector

        checkpoint, overrides, images, output = self.checkpoint, self.overrides, self.images, self.output
        threshold = self.threshold
        pictures = find_images(images, skip_bad=overrides.pop("skip_bad_images", False))
        folder = Path(output)
        require_apart(folder, images, [])
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--output {output} is a file and not a folder")
        detector = restore_detector(checkpoint, ema=self.ema, settings={"device": "auto", **overrides})
        with open_process(detector.recipe.device) as process:
            detector.to(process)
            folder.mkdir(parents=True, exist_ok=True)
            records = []
            for picture in track(pictures, "predicting", console=console, transient=True):
                name = f"{picture.name}.png"
                with atomic_write(folder / name) as file:
                    record, drawn = _predict(detector, picture.path, threshold)
                    drawn.save(file, "PNG")
                records.append({**record, "picture": name})
        write_json(folder / "detections.json", records)
        found = sum(len(record["detections"]) for record in records)
        console.print(
            f"{found} objects of score {threshold:g} and more in {len(records)} images; pictures and", end=" "
        )
        console.print(f"detections.json are in {folder}")
        return 0


def _print_scores(title: str, figures: dict[str, float]) -> None:
    """Print COCO's metrics, one line for boxes and one for masks; a dash where no object has the size."""
    from ..console import console, table

    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    scores = table(("", *names), title=title)
    for kind in ("box", "mask"):
        if f"{kind}_AP" in figures:
            values = [figures[f"{kind}_{name}"] for name in names]
            scores.add_row(kind, *(f"{value:.3f}" if value >= 0 else "-" for value in values))
    console.print(scores)
    console.print(f"{figures['images']:,} images, {figures['images_per_second']:,.1f} images/s")
    if figures["unreadable"]:
        console.print(f"{figures['unreadable']} images could not be read and are not counted")


def _predict(detector: Detector, path: Path, threshold: float) -> tuple[dict[str, Any], Image.Image]:
    """Return the objects in an image with at least a score, as a record, and the image with them drawn on it."""
    from ..data.coco import CocoData
    from ..data.images import read_image
    from ..tasks.detection.coco_scores import coco_results
    from ..tasks.detection.drawing import draw_detections

    image = read_image(path, "RGB")
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
    picture = draw_detections(image, output, detector.names, threshold=threshold)
    return {"image": str(path), **size, "detections": detections}, picture
