"""What ``sanet detect eval`` and ``sanet detect predict`` do around the jobs: files, folders and what they print."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from ...errors import DataError, InputError
from ...files import atomic_write, require_folder_of, write_json
from ..console import console, table
from ..data.coco import CocoData
from ..data.find import find_pictures, require_apart
from ..data.images import read_image
from ..device import open_process
from ..environment import environment
from ..tasks.detection.coco_scores import coco_results, write_results
from ..tasks.detection.drawing import draw_detections
from ..tasks.detection.evaluation import evaluate_detector
from ..tasks.detection.predictor import Detector, open_coco, restore_detector
from ..tasks.detection.task import evaluation_samples, held_out_batches


def evaluate_command(
    checkpoint: str,
    overrides: dict[str, Any],
    batch_size: int,
    *,
    ema: bool | None,
    json_file: str | None,
    results_file: str | None,
) -> int:
    """Runs ``sanet detect eval`` and returns its exit code."""
    if batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {batch_size}")
    for option, file in (("--json", json_file), ("--results", results_file)):
        require_folder_of(option, file)
    restored = restore_detector(checkpoint, ema=ema, settings={"device": "auto", "workers": 2, **overrides})
    recipe = restored.recipe
    data = open_coco(recipe, "val", categories=restored.categories, check=recipe.check_images)
    with open_process(recipe.device) as process:
        scores = evaluate_detector(
            process.to_device(restored.model, channels_last=recipe.channels_last),
            held_out_batches(evaluation_samples(data), recipe.workers, process, batch_size),
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
    print_scores(f"{recipe.title} from {checkpoint}", scores.to_dict())
    if json_file is not None:
        write_json(json_file, figures)
    if results_file is not None:
        write_results(scores.results, results_file)
    return 0


def print_scores(title: str, figures: dict[str, float]) -> None:
    """Prints COCO's figures, a line for boxes and one for masks; what there is no object for is a dash."""
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


def predict_command(
    images: Sequence[str],
    checkpoint: str,
    output: str,
    overrides: dict[str, Any],
    *,
    threshold: float,
    ema: bool | None,
) -> int:
    """Runs ``sanet detect predict`` and returns its exit code."""
    if not 0 <= threshold <= 1:
        raise InputError(f"--threshold must be between 0 and 1, got {threshold}")
    pictures = find_pictures(images, skip_bad=overrides.pop("skip_bad_images", False))
    folder = Path(output)
    require_apart(folder, images, [])
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {output} is a file and not a folder")
    detector = restore_detector(checkpoint, ema=ema, settings={"device": "auto", **overrides})
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
    console.print(f"{found} objects of score {threshold:g} and more in {len(records)} images; pictures and", end=" ")
    console.print(f"detections.json are in {folder}")
    return 0


def _predict(detector: Detector, path: Path, threshold: float) -> tuple[dict[str, Any], Image.Image]:
    """Return the objects in an image with at least a score, as a record, and the image with them drawn on it."""
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
