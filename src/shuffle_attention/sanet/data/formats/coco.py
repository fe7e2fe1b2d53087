"""COCO's JSON for instances.

Source: Lin et al., Microsoft COCO, arXiv:1405.0312, and its data format, https://cocodataset.org/#format-data.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....errors import DataError, listed
from ..coco import CocoData
from ..coco_reading import read_json
from .format import SPLITS, AnnotationFormat, Location, Unchecked

_PARTS = (b'"images"', b'"annotations"', b'"categories"')


def find(root: Path, split: str | None) -> Location | None:
    """Return the annotation file and the image folder of a split.

    The images are in ``NAME/`` or ``images/NAME/``, where NAME is the name of the split with or without a year, or all
    in ``images/``. The annotations are the first existing file of ``annotations/instances_NAME.json``,
    ``instances_NAME.json``, ``annotations/NAME.json``, ``NAME.json``, and ``_annotations.coco.json`` beside the images.
    Data without a split are the only file with COCO's parts, and the images of the folder.

    Raises:
        DataError: If there are several such pairs.
    """
    if root.is_file():
        beside = root.parent / "images"
        images = beside if beside.is_dir() else root.parent
        return Location("coco", root, images) if split is None and root.suffix.lower() == ".json" else None
    if split is None:
        files = [path for folder in (root, root / "annotations") for path in sorted(folder.glob("*.json"))]
        files = [path for path in files if path.is_file() and _has_parts(path)]
        if len(files) > 1:
            raise DataError(
                f"{root} has several files of annotations, {listed([path.name for path in files])}; "
                f"name one with --train-annotations FILE --train-images DIR"
            )
        images = root / "images" if (root / "images").is_dir() else root
        return Location("coco", files[0], images) if files else None
    folders = sorted(path for base in (root, root / "images") if base.is_dir() for path in base.iterdir())
    for name in SPLITS[split]:
        named = [path for path in folders if path.is_dir() and _is_name_or_year(path.name, name)]
        pairs = [(annotations, path) for path in named if (annotations := _annotations_of(root, path.name, path))]
        if not pairs and (root / "images").is_dir() and (annotations := _annotations_of(root, name)):
            pairs = [(annotations, root / "images")]
        if len(pairs) > 1:
            names = listed([str(folder) for _, folder in pairs])
            raise DataError(f"{root} has several folders of {split} images: {names}; name the one to use")
        if pairs:
            return Location("coco", *pairs[0], split)
    return None


def _has_parts(path: Path) -> bool:
    content = path.read_bytes()
    return all(part in content for part in _PARTS)


def _is_name_or_year(folder: str, name: str) -> bool:
    year = folder.removeprefix(name)
    return folder == name or (len(year) == 4 and year.isdecimal())


def _annotations_of(root: Path, name: str, folder: Path | None = None) -> Path | None:
    names = [f"instances_{name}.json", f"{name}.json"]
    paths = [parent / name for name in names for parent in (root / "annotations", root)]
    paths += [folder / "_annotations.coco.json"] if folder else []
    return next((path for path in paths if path.is_file()), None)


def read(location: Location, known: Sequence[Mapping[str, Any]] | None, as_stored: bool) -> Unchecked:
    """Return the content of the annotation file."""
    return Unchecked(read_json(location.annotations), location.images, str(location.annotations))


def write(splits: Mapping[str, CocoData], folder: Path) -> None:
    """Write ``NAME/`` and ``annotations/instances_NAME.json`` for each split."""
    for split, data in splits.items():
        data.write(folder, split)


FORMAT = AnnotationFormat("coco", "train/ with annotations/instances_train.json or train.json", find, read, write)
