"""Masks of objects in COCO's three notations: polygons, and run lengths as a list or as a string.

Run lengths alternate between outside and inside, column by column, starting outside. In a string each is written as
the difference to the one before the last, five bits per character with the lowest first, as COCO's tools do.

Source: Lin et al., Microsoft COCO, arXiv:1405.0312, and its data format, https://cocodataset.org/#format-data.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import require_extra

__all__ = ["decode_mask", "encode_mask", "is_finite", "is_int", "mask_fault", "require_evaluator"]


def require_evaluator() -> Any:
    """Import faster-coco-eval, which computes COCO's masks and scores.

    Raises:
        InputError: If it is not installed.
    """
    require_extra("faster_coco_eval", extra="detection")
    import faster_coco_eval

    return faster_coco_eval


def mask_fault(segmentation: object, height: int, width: int) -> str:
    """Return what is wrong with a mask for an image of this size; empty if it can be decoded.

    Decoders do not check their input: broken run lengths make them write out of bounds.
    """
    if isinstance(segmentation, list):
        return _polygon_fault(segmentation)
    if not isinstance(segmentation, Mapping):
        return f"neither polygons nor run lengths but {type(segmentation).__name__}"
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        return f"run lengths of size {size} for an image of {[height, width]}"
    try:
        lengths = _run_lengths(counts)
    except ValueError as error:
        return str(error)
    if any(length < 0 for length in lengths) or sum(lengths) != height * width:
        return f"run lengths that are negative or sum to {sum(lengths)} and not {height * width} pixels"
    if not any(lengths[1::2]):
        return "an empty mask"
    return ""


def _polygon_fault(polygons: list[Any]) -> str:
    if not polygons:
        return "an empty list of polygons"
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return "a polygon that is not a list of three or more points x, y"
        if not all(is_finite(number) for number in polygon):
            return "a polygon with coordinates that are not numbers"
    return ""


def is_int(number: object) -> bool:
    """Return whether a value of JSON is an integer."""
    return isinstance(number, int) and not isinstance(number, bool)


def is_finite(number: object) -> bool:
    """Return whether a value of JSON is a finite number."""
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)


def _run_lengths(counts: object) -> list[int]:
    """Parse run lengths; raise ValueError if they are broken."""
    if isinstance(counts, list):
        if not all(map(is_int, counts)):
            raise ValueError("run lengths that are not whole numbers")
        return counts
    if not isinstance(counts, str):
        raise ValueError(f"run lengths as {type(counts).__name__}")
    lengths: list[int] = []
    number = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"run lengths with the character {character!r}")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        lengths.append(number + lengths[-2] if len(lengths) > 2 else number)
        number = shift = 0
    if shift:
        raise ValueError("run lengths that break off")
    return lengths


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode a mask without fault as (H, W), uint8 of 0 and 1."""
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
