"""The figures of the maps as tables, JSON and CSV."""

import csv
import io
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from ...files import write_json, write_text
from ..console import console
from ..environment import machine, versions
from .scoring import FIGURES, Scored


def print_scores(found: Sequence[Scored]) -> None:
    """Prints means with deviations over images, and the differences to the first network."""
    title = ", ".join(f"{scored.label} ({scored.layer}), {len(scored.rows)} images" for scored in found)
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for column in ("", "network", "mean ± deviation"):
        table.add_column(column, justify="right" if "mean" in column else "left", no_wrap=column != "network")
    if len(found) > 1:
        table.add_column(f"less {found[0].label} [95 %]", justify="right")
    for name, (said, rising) in FIGURES.items():
        for scored in found:
            if scored.figures(name):
                # Of the first network the name of the figure is said as well.
                arrow = {True: " ↑", False: " ↓", None: ""}[rising]
                row = [f"{said}{arrow}" if scored is found[0] else "", scored.label, _figure(scored, name)]
                table.add_row(*row, *([_difference(scored, found[0], name)] if len(found) > 1 else []))
    console.print(table)
    console.print("↑ higher is better, ↓ lower. Deviations and intervals are over images, not over trainings")


def _figure(scored: Scored, name: str) -> str:
    whole = scored.summary(name)
    if whole is None:
        return ""
    digits = _digits(name)
    return f"{whole.mean:.{digits}f}" + ("" if whole.deviation is None else f" ± {whole.deviation:.{digits}f}")


def _difference(scored: Scored, baseline: Scored, name: str) -> str:
    found = scored.difference(name, baseline) if scored is not baseline else None
    if found is None:
        return ""
    digits = _digits(name)
    ends = "" if found.low is None else f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return f"{found.mean:+.{digits}f}{ends}"


def _digits(name: str) -> int:
    return 1 if "%" in FIGURES[name][0] else 3


def write_scores(found: Sequence[Scored], settings: dict[str, Any], folder: Path) -> list[str]:
    """Writes the figures as JSON and, image by image, as CSV, and returns what to say."""
    folder.mkdir(parents=True, exist_ok=True)
    networks = [scored.to_dict(None if scored is found[0] else found[0]) for scored in found]
    measured = machine() | versions() | {"torchcam": version("torchcam")}
    content = {"machine": measured, "settings": settings, "scores": networks}
    write_json(folder / "scores.json", content)
    text = io.StringIO()
    columns = ["network", "layer", "image", "class", *FIGURES]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for scored in found:
        writer.writerows({"network": scored.label, "layer": scored.layer, **row} for row in scored.rows)
    write_text(folder / "scores.csv", text.getvalue())
    return [f"wrote {folder / 'scores.json'} and {folder / 'scores.csv'}"]
