"""Pascal VOC's XML: a file per image with the corners of its boxes.

VOC counts pixels from 1 and includes the last one: x from 1 to 10 is a box of 10 pixels that begins at 0. Many tools
count from 0 as continuous coordinates; data in which a corner is below 1 or not whole are read so.

Source: Everingham et al., The Pascal Visual Object Classes Challenge, https://doi.org/10.1007/s11263-009-0275-4.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ....errors import DataError, brief, counted, listed
from ....files import write_text
from ..coco import CocoData
from ..images import in_threads
from ..records import Tally
from .format import SPLITS, AnnotationFormat, Location, Unchecked, ids_by_name, images_in

logger = logging.getLogger(__name__)
_LARGEST = 16_000_000  # bytes of a file
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FOLDERS = ("Annotations", "annotations")
_IMAGES = ("JPEGImages", "images", "Images")


def find(root: Path, split: str | None) -> Location | None:
    """Return the folders of XML files and images of a split.

    The annotations are in ``Annotations/``, with the images in ``JPEGImages/`` or ``images/``, and the names of a split
    in ``ImageSets/Main/NAME.txt``; or both are in a folder ``NAME/``.
    """
    if not root.is_dir():
        return None
    if split is None:
        return _location(root)
    annotations = _location(root)
    for name in SPLITS[split]:
        if (root / name).is_dir() and (inside := _location(root / name, name)):
            return inside
        if annotations and _list_of(root, name).is_file():
            return Location("voc", annotations.annotations, annotations.images, name)
    return None


def _location(root: Path, split: str = "") -> Location | None:
    for annotations in (*(root / name for name in _FOLDERS), root):
        if annotations.is_dir() and next(annotations.glob("*.xml"), None):
            images = next((root / name for name in _IMAGES if (root / name).is_dir()), root)
            return Location("voc", annotations, images, split)
    return None


def _list_of(root: Path, name: str) -> Path:
    return root / "ImageSets" / "Main" / f"{name}.txt"


def read(location: Location, known: Sequence[Mapping[str, Any]] | None, as_stored: bool) -> Unchecked:
    """Return images and the boxes of their XML files. Objects marked as difficult count as crowds: they are not learnt.

    Raises:
        DataError: If a file cannot be read, or the image of one is not found.
    """
    listing = _list_of(location.annotations.parent, location.split)
    paths = sorted(path for path in location.annotations.glob("*.xml") if not path.name.startswith("."))
    if location.split and listing.is_file():
        lines = listing.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        stems = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
        known_stems = {path.stem for path in paths}
        missing = [brief(stem, quoted=False) for stem in stems if stem not in known_stems]
        if missing:
            raise DataError(
                f"{listing} lists {counted(len(missing), 'image')} without an XML file: {listed(missing, 3)}"
            )
        paths = [location.annotations / f"{stem}.xml" for stem in stems]
    faults, corrections = Tally(), Tally()
    parsed = zip(paths, in_threads(_parse, paths), strict=True)
    files = []
    for path, file in parsed:
        if isinstance(file, str):
            faults.add("annotation files that cannot be read", f"{path.name}: {file}")
        else:
            files.append((path, file))
    by_stem: dict[str, list[str]] = {}
    for path in images_in(location.images):
        by_stem.setdefault(path.stem, []).append(os.path.relpath(path, location.images))
    images, annotations = [], []
    objects = {path: file.findall("object") for path, file in files}
    everything = [each for inside in objects.values() for each in inside]
    names = sorted({_name(each) for each in everything})
    ids = ids_by_name(names, known) or {name: number for number, name in enumerate(names, 1)}
    offset = _offset(everything)
    for number, (path, file) in enumerate(files, 1):
        stored = by_stem.get(path.stem, [])
        name = stored[0] if len(stored) == 1 else _text(file, "filename") or path.stem
        images.append(
            {"id": number, "file_name": name, "width": _text(file, "size/width"), "height": _text(file, "size/height")}
        )
        for position, each in enumerate(objects[path], 1):
            corners = _corners(each)
            if not corners:
                faults.add(f"objects without the numbers {', '.join(_CORNERS)} in bndbox", f"{path.name}, {position}")
                continue
            left, top, right, bottom = corners
            box = [left - offset, top - offset, right - left + offset, bottom - top + offset]
            fields = {"image_id": number, "category_id": ids[_name(each)], "bbox": box}
            if _text(each, "difficult") == "1":
                fields["iscrowd"] = 1
                corrections.add("difficult objects, which are neither learnt nor counted", path.name)
            annotations.append({"id": f"{path.name}, object {position}", **fields})
    content = {"images": images, "annotations": annotations, "categories": [{"id": ids[n], "name": n} for n in names]}
    source = f"{location.annotations} ({location.split})" if location.split else str(location.annotations)
    return Unchecked(content, location.images, source, corrections, faults)


def _parse(path: Path) -> Any:
    """Return the root of an XML file, or what is wrong with it. No document type is read: it could define entities."""
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            return f"larger than {_LARGEST:,} bytes"
        text = content.decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            return "has a document type, which VOC's files do not need"
        root = ElementTree.fromstring(text)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        return str(error)
    return root if root.tag == "annotation" else f"an element {root.tag[:40]!r} and not 'annotation'"


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _name(element: ElementTree.Element) -> str:
    return _text(element, "name") or "without a name"


def _corners(element: ElementTree.Element) -> list[float]:
    try:
        return [float(_text(element, f"bndbox/{corner}")) for corner in _CORNERS]
    except ValueError:
        return []


def _offset(objects: Sequence[ElementTree.Element]) -> int:
    """Return the number of the first pixel: 1, or 0 if a corner is below 1 or between two pixels."""
    corners = [corner for each in objects for corner in _corners(each)]
    return int(all(corner >= 1 and corner.is_integer() for corner in corners))


def write(splits: Mapping[str, CocoData], folder: Path) -> None:
    """Write ``JPEGImages/``, ``Annotations/`` and ``ImageSets/Main/NAME.txt``; boxes are rounded to pixels."""
    left_out = Tally()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    taken: set[str] = set()
    for split, data in splits.items():
        stems = []
        for index, name in enumerate(data.copy_images(folder / "JPEGImages", taken)):
            record, root = data.images[index], ElementTree.Element("annotation")
            stems.append(Path(name).stem)
            ElementTree.SubElement(root, "filename").text = name
            size = ElementTree.SubElement(root, "size")
            for tag, side in (("width", record["width"]), ("height", record["height"]), ("depth", 3)):
                ElementTree.SubElement(size, tag).text = str(side)
            for each in data.objects(index):
                if "segmentation" in each:
                    left_out.add("masks, of which the boxes are written", f"in {name}")
                element = ElementTree.SubElement(root, "object")
                ElementTree.SubElement(element, "name").text = data.names[data.labels[each["category_id"]] - 1]
                ElementTree.SubElement(element, "difficult").text = str(each["iscrowd"])
                box = ElementTree.SubElement(element, "bndbox")
                for tag, corner in zip(_CORNERS, _written(each["bbox"], record), strict=True):
                    ElementTree.SubElement(box, tag).text = str(corner)
            ElementTree.indent(root)
            write_text(folder / "Annotations" / f"{stems[-1]}.xml", ElementTree.tostring(root, "unicode") + "\n")
        write_text(_list_of(folder, split), "".join(f"{stem}\n" for stem in stems))
    if left_out:
        logger.warning("VOC's files have no notation for %s", left_out)


def _written(box: Sequence[float], image: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Return the corners of a box as VOC counts pixels, within the image."""
    x, y, width, height = box
    left, top = max(1, round(x) + 1), max(1, round(y) + 1)
    right, bottom = min(image["width"], round(x + width)), min(image["height"], round(y + height))
    return left, top, max(left, right), max(top, bottom)


FORMAT = AnnotationFormat("voc", "Annotations/ with JPEGImages/ and ImageSets/", find, read, write)
