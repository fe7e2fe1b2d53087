"""Classes by the names that people write and read."""

import contextlib
import difflib
import functools
from collections.abc import Sequence

from timm.data import ImageNetInfo

from ...errors import InputError


def readable(classes: Sequence[str] | None, count: int) -> list[str]:
    """Return a name per class; WordNet numbers such as n01440764 become their first word."""
    names = [str(name) for name in classes or ()]
    words = [_word(name) for name in names]
    if all(words):
        # Some words have two meanings: "crane" is a bird and a machine.
        names = [word if words.count(word) == 1 else f"{word} ({n})" for word, n in zip(words, names, strict=True)]
    # A model may have more classes than its data have folders.
    return names + [f"class {number}" for number in range(len(names), count)]


def _word(name: str) -> str:
    for info in _wordnet():
        with contextlib.suppress(KeyError):
            return info.label_name_to_description(name).split(",")[0]
    return ""


@functools.cache
def _wordnet() -> tuple[ImageNetInfo, ...]:
    """Return the class names of ImageNet-1k, then those of ImageNet-22k, which lacks some of them."""
    return ImageNetInfo(), ImageNetInfo("imagenet-22k")


def class_index(asked: str, classes: Sequence[str] | None, count: int, *, numbers: bool = True) -> int:
    """Return the index of a class that is given by its index, its name or its readable name.

    Args:
        asked: User input.
        classes: Names of the classes, if known.
        count: Number of classes.
        numbers: Whether a number that is not a name means the class of that index.

    Raises:
        InputError: If there is no such class; the message lists close names.
    """
    names = readable(classes, count)
    wanted = asked.strip().casefold()
    for known in (list(classes or []), names):
        for number, name in enumerate(known):
            if name.casefold() == wanted:
                return number
    if numbers and wanted.isdecimal() and len(wanted) < 10 and int(wanted) < count:
        return int(wanted)
    folded = {name.casefold(): name for name in [*(classes or []), *names]}
    inside = [name for name in folded if wanted and wanted in name]
    close = [folded[n] for n in dict.fromkeys([*difflib.get_close_matches(wanted, folded, n=4), *inside[:4]])][:4]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    there = f"{', '.join(names[:10])}{f' and {count - 10} more' if count > 10 else ''}"
    raise InputError(f"no class {asked!r}; {hint}there are the numbers 0 to {count - 1} and the names {there}")
