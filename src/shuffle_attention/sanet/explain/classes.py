"""Classes by their names, as people write and read them."""

import contextlib
import difflib
import functools
from collections.abc import Sequence

from timm.data import ImageNetInfo

from ...errors import InputError


def readable(classes: Sequence[str] | None, count: int) -> list[str]:
    """Returns a name for each class: the first word of WordNet's where they are called n01440764 and the like."""
    names = [str(name) for name in classes or ()]
    words = [_word(name) for name in names]
    if all(words):
        # Some words have two meanings: "crane" is a bird and a machine.
        names = [word if words.count(word) == 1 else f"{word} ({n})" for word, n in zip(words, names, strict=True)]
    # A network can tell more apart than its data had folders for.
    return names + [f"class {number}" for number in range(len(names), count)]


def _word(name: str) -> str:
    for info in _wordnet():
        with contextlib.suppress(KeyError):
            return info.label_name_to_description(name).split(",")[0]
    return ""


@functools.cache
def _wordnet() -> tuple[ImageNetInfo, ...]:
    """ImageNet's own classes first: not all of them are among the 21,841."""
    return ImageNetInfo(), ImageNetInfo("imagenet-22k")


def class_index(asked: str, classes: Sequence[str] | None, count: int, *, numbers: bool = True) -> int:
    """Returns the number of a class that is given by its number, its name or its readable name.

    Args:
        asked: What the user wrote.
        classes: Names of the classes, where they are known.
        count: How many there are.
        numbers: Whether a number that is no name means the class of that number.

    Raises:
        InputError: If there is none such; the message lists those whose names are close.
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
