"""Shuffle attention as a row of ultralytics' model files; needs the extra ``yolo``."""

import functools
from typing import Any

from torch import nn
from ultralytics.nn import tasks

from ..attention import create_attention
from ..errors import InputError

ROW = "ShuffleAttention"


def register() -> None:
    """Let ultralytics' model files name ``ShuffleAttention``; a second call changes nothing.

    The argument of a row is the number of groups. Without it, the row has the largest number up to 64 that fits::

        - [-1, 1, ShuffleAttention, []]
        - [-1, 1, ShuffleAttention, [16]]

    The channels are those of the input row after width scaling. They are read while ultralytics parses the file: it
    resolves a string among a row's arguments to its local variable of that name, and ``ch`` is its list of the
    channels of all rows so far. Checkpoints contain the layer itself, and load wherever this package is installed.
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
    """Return the row with the names of ultralytics' variables before its arguments."""
    source, repeats, module, arguments = row
    if module != ROW:
        return row
    if not isinstance(source, int):
        raise InputError(f"a row {ROW} takes one row that it comes from, got from={source!r}")
    return [source, repeats, module, ["ch", source, *arguments]]


class ShuffleAttentionRow(nn.Module):
    """Creates the layer of a row. It is a class because ultralytics prints its name and checks its type."""

    def __new__(cls, channels: list[int], source: int, groups: int | str = "auto"):
        if not isinstance(channels, list):
            raise InputError(
                f"a row {ROW} needs an ultralytics whose parse_model has the channels of all rows in a list 'ch', as "
                f"8.4 has; got {channels!r}"
            )
        return create_attention("shuffle", channels[source], groups=groups)
