"""Masks of objects in COCO's three notations: polygons, and run lengths as a list or as a string.

Run lengths alternate between outside and inside, column by column, starting outside. In a string each is written as
the difference to the one before the last, five bits per character with the lowest first, as COCO's tools do.

Source: Lin et al., Microsoft COCO, arXiv:1405.0312, and its data format, https://cocodataset.org/#format-data.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import require_extra

__all__ = ["decode_mask", "encode_mask", "mask_area", "read_mask", "require_evaluator"]
_NUMBERS = {int, float}
_POINTS = 3  # fewest of a polygon; COCO's decoders take two for a box
_DIGITS = 7  # most characters of a run length in a string, each of five bits


def require_evaluator() -> Any:
    """Import faster-coco-eval, which computes COCO's masks and scores.

    Raises:
        InputError: If it is not installed.
    """
    require_extra("faster_coco_eval", extra="detection")
    import faster_coco_eval

    return faster_coco_eval


def read_mask(segmentation: Any, height: int, width: int) -> tuple[Any, str]:
    """Return a mask in one of COCO's notations, ready for decoders, and what had to be corrected in it.

    Decoders do not check their input: broken run lengths make them write out of bounds, and polygons far outside the
    image take as much memory as they are long.

    Args:
        segmentation: Value of JSON. Polygons may also be one list of numbers, lists of points, text, or a mapping of
            positions to values, as different exporters write them.
        height: Height of the image in pixels.
        width: Width of the image.

    Returns:
        The mask, or None if there is none, and the kind of correction, empty if there was none.

    Raises:
        ValueError: If the mask cannot be read with certainty.
    """
    correction = ""
    if isinstance(segmentation, str) and segmentation.strip():
        try:
            segmentation, correction = json.loads(segmentation), "masks written as text"
        except (ValueError, RecursionError) as error:
            raise ValueError("text that is neither polygons nor run lengths") from error
    if isinstance(segmentation, Mapping) and segmentation.keys() & {"counts", "size"}:
        return _read_run_lengths(segmentation, height, width, correction)
    if isinstance(segmentation, Mapping) and list(segmentation) == [str(index) for index in range(len(segmentation))]:
        segmentation, correction = list(segmentation.values()), "polygons indexed by their position"
    if not segmentation or segmentation != segmentation:  # NaN stands for a missing value in tables
        return None, ""
    if not isinstance(segmentation, list):
        raise ValueError(f"neither polygons nor run lengths but {type(segmentation).__name__}")
    if _NUMBERS.issuperset(map(type, segmentation)):
        segmentation, correction = [segmentation], "polygons that were not in a list"
    elif all(isinstance(each, list) and len(each) == 2 for each in segmentation):
        segmentation, correction = [segmentation], "polygons as lists of points"
    polygons = []
    for polygon in segmentation:
        if isinstance(polygon, list) and polygon and all(isinstance(each, list) and len(each) == 2 for each in polygon):
            polygon, correction = [side for point in polygon for side in point], "polygons as lists of points"
        if _is_polygon(polygon, height, width):
            polygons.append(polygon)
    if not any(segmentation):
        return None, ""
    if not polygons:
        raise ValueError("a polygon of fewer than three points")
    if len(polygons) < len(segmentation):
        return polygons, "masks with parts of fewer than three points, which are left out"
    return (polygons if correction else segmentation), correction


def _is_polygon(polygon: Any, height: int, width: int) -> bool:
    """Return whether a polygon has an area to decode; raise ValueError if it is broken."""
    if not isinstance(polygon, list) or len(polygon) % 2:
        raise ValueError("a polygon that is not a list of points x, y")
    if not _NUMBERS.issuperset(map(type, polygon)):
        raise ValueError("a polygon with coordinates that are not numbers")
    if len(polygon) < 2 * _POINTS:
        return False
    xs, ys = polygon[::2], polygon[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    # Comparisons of Python's integers with floats are exact and cannot overflow; NaN fails them all.
    if not (-width <= left and right <= 2 * width and -height <= top and bottom <= 2 * height):
        raise ValueError(f"a polygon far outside the image of {width} x {height}, or with NaN")
    if sum(polygon) != sum(polygon):
        raise ValueError("a polygon with coordinates that are not numbers")
    if right <= 0 or left >= width or bottom <= 0 or top >= height:
        raise ValueError("a polygon outside the image")
    return True


def _read_run_lengths(rle: Mapping[str, Any], height: int, width: int, correction: str) -> tuple[Any, str]:
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise ValueError(f"run lengths of size {str(size)[:40]} for an image of {[height, width]}")
    if isinstance(counts, list):
        if float in set(map(type, counts)):
            counts = [int(each) if type(each) is float and each.is_integer() else each for each in counts]
            correction = "run lengths with a fraction of 0"
        if set(map(type, counts)) - {int}:
            raise ValueError("run lengths that are not whole numbers")
        lengths = counts
    elif isinstance(counts, str):
        lengths = _lengths_of(counts).tolist()
    else:
        raise ValueError(f"run lengths as {type(counts).__name__}")
    if not all(0 <= length <= height * width for length in lengths) or sum(lengths) != height * width:
        raise ValueError(f"run lengths that are negative, or do not sum to {height * width} pixels")
    if not any(lengths[1::2]):
        raise ValueError("an empty mask")
    return {"size": [height, width], "counts": counts}, correction


def _lengths_of(counts: str) -> np.ndarray:
    """Return the run lengths in a string; raise ValueError if it is broken."""
    bits = np.frombuffer(counts.encode(errors="replace"), np.uint8).astype(np.int64) - 48
    wrong = (bits < 0) | (bits > 63)
    if wrong.any():
        raise ValueError("run lengths with characters other than those from 0 to o")
    if not bits.size or bits[-1] & 32:
        raise ValueError("run lengths that break off")
    ends = np.flatnonzero(bits & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    positions = np.arange(bits.size) - np.repeat(starts, ends - starts + 1)
    if positions.max() >= _DIGITS:
        raise ValueError(f"a run length of more than {_DIGITS} characters")
    lengths = np.add.reduceat((bits & 31) << 5 * positions, starts)
    lengths -= np.where(bits[ends] & 16, 1 << 5 * (positions[ends] + 1), 0)
    # The first three are written as they are, all others as the difference to the one before the last.
    for first in (1, 2):
        lengths[first::2] = lengths[first::2].cumsum()
    return lengths


def mask_area(segmentation: Any, height: int, width: int) -> float:
    """Return the number of pixels of a mask from :func:`read_mask`, without decoding it."""
    mask = require_evaluator().mask
    return float(mask.area(mask.segmToRle(segmentation, width, height)))


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode a mask from :func:`read_mask` as (H, W), uint8 of 0 and 1."""
    mask = require_evaluator().mask
    return np.ascontiguousarray(mask.decode(mask.segmToRle(segmentation, width, height)))


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask (H, W) of 0 and 1 as run lengths in a string, ready for JSON."""
    encoded = require_evaluator().mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = encoded["counts"]
    return {
        "size": [int(side) for side in encoded["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }
