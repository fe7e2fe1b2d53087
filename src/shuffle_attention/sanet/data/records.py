"""Records of JSON whose values may be of any kind: ids, numbers, and counts of what is wrong with them."""

import re
from collections import Counter
from collections.abc import Sequence

from ...errors import brief

__all__ = ["LARGEST", "Tally", "key_of", "number_of", "numbered", "text_of"]
SHOWN = 3
LARGEST = 2**53  # up to it, floats are whole numbers without gaps


class Tally:
    """Counts of records by kind, with the names of the first ones of each kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        self.counts[kind] += 1
        names = self.names.setdefault(kind, [])
        if len(names) < SHOWN:
            names.append(name)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        more = {kind: f" and {count - SHOWN} more" if count > SHOWN else "" for kind, count in self.counts.items()}
        return "; ".join(f"{k} ({self.counts[k]}: {', '.join(n)}{more[k]})" for k, n in self.names.items())


def key_of(value: object) -> int | str | None:
    """Return an id as a whole number if it is one, written as 1, 1.0 or "1", or else as text; None if it is neither."""
    if type(value) is float and value.is_integer():
        value = int(value)
    elif isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,15}(\.0*)?\s*", value):
        value = int(float(value))
    if type(value) is int:
        return value if abs(value) <= LARGEST else None
    return value if isinstance(value, str) and value else None


def numbered(keys: Sequence[int | str], what: str, corrections: Tally) -> dict[int | str, int]:
    """Return the number of each id: itself or, if some are text or negative, its position from 1 on."""
    if all(isinstance(key, int) and key >= 0 for key in keys):
        return {key: key for key in keys if isinstance(key, int)}
    corrections.add(f"ids of {what} that are text or negative, so that all are numbered from 1 on", text_of(keys[0]))
    return {key: number for number, key in enumerate(keys, 1)}


def number_of(value: object) -> float | None:
    """Return a finite number of moderate size, which may be written as text; None if it is none."""
    if isinstance(value, str) and len(value) < 100:
        try:
            value = float(value)
        except ValueError:
            return None
    # Comparisons of Python's integers with floats are exact and cannot overflow; NaN fails them.
    return value if type(value) in (int, float) and -LARGEST <= value <= LARGEST else None  # pyright: ignore


def text_of(value: object) -> str:
    """Return a value for a message in bounded length, text without quotes."""
    return brief(value, quoted=False)
