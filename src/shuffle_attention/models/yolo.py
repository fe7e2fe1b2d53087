"""Shuffle attention as a row of ultralytics' model files (the extra ``yolo``)."""

import functools
from typing import Any

from torch import nn
from ultralytics.nn import tasks

from ..attention import create_attention
from ..errors import InputError

ROW = "ShuffleAttention"


def register() -> None:
    """Makes ``ShuffleAttention`` a module that ultralytics' model files may name; a second call changes nothing.

    A row stands as any other, with the number of groups as its argument, or none for the largest up to 64 that
    fits::

        - [-1, 1, ShuffleAttention, []]
        - [-1, 1, ShuffleAttention, [16]]

    The channels are those of the row that it comes from, after width scaling, whatever the scale. They are read
    while ultralytics parses the file: it resolves a string among a row's arguments to its own variable of that
    name, and ``ch`` is its list of the channels of all rows so far. Checkpoints hold the layer itself, and load
    wherever this package is installed.
    """
    if vars(tasks).get(ROW) is ShuffleAttentionRow:
        return
    parse = tasks.parse_model

    @functools.wraps(parse)
    def parse_model(d: dict[str, Any], ch: int, verbose: bool = True) -> Any:
        rows = {part: [_with_channels(row) for row in d[part]] for part in ("backbone", "head")}
        return parse({**d, **rows}, ch, verbose)

    tasks.parse_model = parse_model
    setattr(tasks, ROW, ShuffleAttentionRow)


def _with_channels(row: list[Any]) -> list[Any]:
    """The row with the names of what it needs to know before its own arguments."""
    source, repeats, module, arguments = row
    if module != ROW:
        return row
    if not isinstance(source, int):
        raise InputError(f"a row {ROW} takes one row that it comes from, got from={source!r}")
    return [source, repeats, module, ["ch", source, *arguments]]


class ShuffleAttentionRow(nn.Module):
    """What a row makes: the layer itself. It is a class because ultralytics prints its name and checks its kind."""

    def __new__(cls, channels: list[int], source: int, groups: int | str = "auto"):
        if not isinstance(channels, list):
            raise InputError(
                f"a row {ROW} needs an ultralytics whose parse_model has the channels of all rows in a list 'ch', as "
                f"8.4 has; got {channels!r}"
            )
        return create_attention("shuffle", channels[source], groups=groups)
