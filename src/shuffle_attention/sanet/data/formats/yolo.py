"""YOLO's text files: a line per object, with a class and a box or polygon in fractions of the image.

``data.yaml`` names the classes and where the images of each split are; the labels of ``images/a.jpg`` are in
``labels/a.txt``. Source: https://docs.ultralytics.com/datasets/detect and /segment.
"""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ....errors import DataError, brief, counted, listed
from ....files import write_text
from ...recipes.settings import read_yaml
from ..coco import CocoData
from ..coco_images import Paths
from ..images import in_threads, inspect_image
from ..records import Tally
from .format import SPLITS, AnnotationFormat, Location, Unchecked, ids_by_name, images_in

logger = logging.getLogger(__name__)
_BOX, _POLYGON = 5, 7  # numbers in the line of a box, and at least in that of a polygon
_TOLERANCE = 0.01  # fractions of the image that a box may reach beyond it by rounding


def find(root: Path, split: str | None) -> Location | None:
    """Return ``data.yaml`` and the root of the images that it describes.

    Data without a split are images beside ``labels/`` and ``classes.txt``, as labelling tools export them.
    """
    if root.is_file() and root.suffix.lower() not in (".yaml", ".yml"):
        return None
    if root.is_dir() and split is None and (root / "classes.txt").is_file() and (root / "labels").is_dir():
        return Location("yolo", root / "classes.txt", root)
    paths = [root] if root.is_file() else sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    described = [path for path in paths if _describes(path)]
    if len(described) > 1:
        names = listed([path.name for path in described])
        raise DataError(f"{root} has several files that describe it, {names}; name one: --data {described[0]}")
    if not described or split is None:
        return None
    config = _config(described[0])
    name = next((name for name in SPLITS[split] if config.get(name)), None)
    return Location("yolo", described[0], _root(described[0], config), name) if name else None


def _describes(path: Path) -> bool:
    """Return whether a file is a data.yaml, without an error if it is none."""
    if not path.is_file() or path.stat().st_size > 1_000_000:
        return False
    text = path.read_bytes()
    return b"names" in text and (b"train:" in text or b"val:" in text)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = read_yaml(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{path} must hold 'names' and 'train', got {type(config).__name__}")
    return config


def _root(path: Path, config: Mapping[str, Any]) -> Path:
    """Return the folder that the paths of a data.yaml are relative to: its ``path`` if that exists, or its own."""
    named = path.parent / str(config.get("path") or ".")
    return named if os.path.isdir(named) else path.parent  # is_dir raises for names that are too long


def _names(path: Path, names: Any) -> dict[int, str]:
    """Return the name of each class."""
    pairs = (
        list(enumerate(names)) if isinstance(names, list) else list(names.items()) if isinstance(names, dict) else []
    )
    classes = {
        int(key): str(name) for key, name in pairs if re.fullmatch("[0-9]{1,6}", str(key)) and name not in ("", None)
    }
    if not pairs or len(classes) < len(pairs):
        raise DataError(f"{path} must have 'names' as a list, or as a mapping of numbers to names, got {brief(names)}")
    return classes


def read(location: Location, known: Sequence[Mapping[str, Any]] | None, as_stored: bool) -> Unchecked:
    """Return images, and the objects of their label files.

    Raises:
        DataError: If the images or the names of the classes are not found, or no image has labels.
    """
    keypoints = False
    if location.annotations.suffix == ".txt":
        names = dict(enumerate(line.strip() for line in _lines(location.annotations) if line.strip()))
        paths = images_in(location.images)
    else:
        config = _config(location.annotations)
        names, keypoints = _names(location.annotations, config.get("names")), "kpt_shape" in config
        paths = _paths(location, config[location.split])
    if not names:
        raise DataError(f"{location.annotations} has no names of classes")
    by_name = ids_by_name([*names.values()], known)
    ids = {number: by_name.get(name, number) for number, name in names.items()}
    labels = [_labels_of(path) for path in paths]
    without = [path.name for path, label in zip(paths, labels, strict=True) if label is None]
    if len(without) == len(paths):
        raise DataError(
            f"{location.annotations}: none of {len(paths)} images of {location.split or 'the data'} has a label file; "
            f"that of {paths[0]} would be {_mirrored(paths[0])}"
        )
    if without:
        logger.warning(
            "%d of %d images have no label file, and no objects: %s", len(without), len(paths), listed(without)
        )
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    sizes = in_threads(lambda path: inspect_image(path, None, as_stored=as_stored).size, paths)
    corrections, faults, images, annotations = Tally(), Tally(), [], []
    for number, (path, label, (width, height)) in enumerate(zip(paths, labels, sizes, strict=True), 1):
        images.append(
            {"id": number, "file_name": path.relative_to(folder).as_posix(), "width": width, "height": height}
        )
        seen: set[str] = set()
        for line, text in enumerate(_lines(label) if label else (), 1):
            name = f"{label.name if label else ''}, line {line}"
            if text in seen:
                corrections.add("lines that are there twice, of which one counts", name)
            elif text.strip():
                seen.add(text)
                fields = _object(text, width, height, keypoints)
                if fields is None:
                    faults.add("lines that are not a class and a box or polygon", f"{name}: {brief(text)}")
                    continue
                fields["category_id"] = ids.get(fields["category_id"], fields["category_id"])
                annotations.append({"id": name, "image_id": number, **fields})
    categories = [{"id": ids[number], "name": name} for number, name in names.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    source = f"{location.annotations} ({location.split})" if location.split else str(location.annotations)
    return Unchecked(content, folder, source, corrections, faults)


def _lines(path: Path) -> list[str]:
    return path.read_bytes().decode("utf-8-sig", errors="replace").splitlines()


def _object(text: str, width: int, height: int, keypoints: bool) -> dict[str, Any] | None:
    """Return class, box and polygon of a line in pixels, or None if it is broken."""
    words = text.split()[: _BOX if keypoints else None]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    shares = numbers[1:]
    polygon = len(numbers) >= _POLYGON and len(numbers) % 2 == 1
    inside = all(-_TOLERANCE <= share <= 1 + _TOLERANCE for share in shares)
    if not numbers or not numbers[0].is_integer() or not inside or not (polygon or len(numbers) == _BOX):
        return None
    if not polygon:
        x, y, w, h = shares
        return {
            "category_id": int(numbers[0]),
            "bbox": [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height],
        }
    xs, ys = [share * width for share in shares[::2]], [share * height for share in shares[1::2]]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    points = [side for point in zip(xs, ys, strict=True) for side in point]
    return {"category_id": int(numbers[0]), "bbox": box, "segmentation": [points]}


def _paths(location: Location, entries: Any) -> list[Path]:
    """Return the images of a split: those of one or several folders, or of text files that list them.

    Folders of another machine, and Roboflow's ../train/images for train/images, are found by the end of their path.
    """
    roots = list(dict.fromkeys((location.images, location.annotations.parent)))
    paths: list[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        parts = [part for part in re.split(r"[/\\]", str(entry).replace("\0", "")) if part not in ("", ".", "..")]
        ends = [parts[first:] for first in range(len(parts)) if first == 0 or len(parts) - first > 1]
        tries = [root.joinpath(*end) for end in ends for root in roots] or [location.annotations.parent]
        if os.path.isabs(str(entry)) and any(Path(str(entry)).is_relative_to(root.absolute()) for root in roots):
            tries.insert(0, Path(str(entry)))
        found = next((path for path in tries if os.path.exists(path)), None)
        if found is None or ".." in found.parts[len(location.images.parts) :]:
            where = " or ".join(map(str, roots))
            raise DataError(
                f"{location.annotations} names {brief(entry)} for {location.split}, which is not in {where}"
            )
        paths += images_in(found) if found.is_dir() else _listed(found, location.images)
    if not paths:
        raise DataError(f"{location.annotations}: no images in {brief(entries)} for {location.split}")
    return list(dict.fromkeys(paths))


def _listed(file: Path, root: Path) -> list[Path]:
    """Return the images that a text file lists, one per line."""
    if file.suffix.lower() != ".txt":
        raise DataError(f"{file} is neither a folder of images nor a .txt file that lists images")
    names = [name for line in _lines(file) if (name := line.strip()) and not name.startswith("#")]
    finder = Paths(root)
    found = [(name, *finder.find(name)) for name in names]
    missing = [brief(name, quoted=False) for name, path, _ in found if not path]
    if missing:
        raise DataError(f"{file} lists {counted(len(missing), 'image')} not in {root}: {listed(missing, 3)}")
    return [Path(path) for _, path, _ in found]


def _mirrored(path: Path) -> Path:
    """Return the label file of an image: its last folder ``images`` is ``labels``."""
    head, images, tail = str(path).rpartition(f"{os.sep}images{os.sep}")
    moved = Path(f"{head}{os.sep}labels{os.sep}{tail}") if images else path
    return moved.with_suffix(".txt")


def _labels_of(path: Path) -> Path | None:
    """Return the label file of an image, in the mirrored folder or beside it."""
    return next((label for label in (_mirrored(path), path.with_suffix(".txt")) if label.is_file()), None)


def write(splits: Mapping[str, CocoData], folder: Path) -> None:
    """Write ``images/NAME/``, ``labels/NAME/`` for each split, and ``data.yaml``.

    A mask is written if it is polygons, its parts joined to one; crowds have no notation and are left out.
    """
    left_out = Tally()
    for split, data in splits.items():
        names = data.copy_images(folder / "images" / split)
        (folder / "labels" / split).mkdir(parents=True)
        for index, name in enumerate(names):
            record = data.images[index]
            lines = []
            for each in data.objects(index):
                if each["iscrowd"]:
                    left_out.add("crowds, which are left out", f"in {name}")
                    continue
                mask = each.get("segmentation")
                if isinstance(mask, dict):
                    left_out.add("masks of run lengths, of which the boxes are written", f"in {name}")
                shares = _shares(mask if isinstance(mask, list) else None, each["bbox"], record)
                lines.append(
                    " ".join([str(data.labels[each["category_id"]] - 1), *(f"{share:.6f}" for share in shares)])
                )
            write_text((folder / "labels" / split / name).with_suffix(".txt"), "".join(f"{line}\n" for line in lines))
    if left_out:
        logger.warning("YOLO's labels have no notation for %s", left_out)
    data = next(iter(splits.values()))
    content = {split: f"images/{split}" for split in splits} | {"names": dict(enumerate(data.names))}
    write_text(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _shares(polygons: list[list[float]] | None, box: Sequence[float], image: Mapping[str, Any]) -> list[float]:
    """Return a box as centre and size, or polygons as one, in fractions of the image."""
    width, height = image["width"], image["height"]
    if polygons is None:
        left, top = max(0.0, box[0]), max(0.0, box[1])
        right, bottom = min(width, box[0] + box[2]), min(height, box[1] + box[3])
        return [
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        ]
    joined = [*polygons[0]]
    for polygon in polygons[1:]:  # along a line from the first point to each part and back, which has no area
        joined += [*polygons[0][:2], *polygon, *polygon[:2]]
    return [min(1.0, max(0.0, side / (height if index % 2 else width))) for index, side in enumerate(joined)]


FORMAT = AnnotationFormat("yolo", "data.yaml with images/ and labels/", find, read, write)
