"""The figures of the maps as tables, JSON and CSV."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...files import write_csv, write_json
from ..console import console, table
from ..environment import environment
from .scoring import FIGURES, Scored


def print_scores(found: Sequence[Scored]) -> None:
    """Prints means with deviations over images, and the differences to the first network."""
    title = ", ".join(f"{scored.label} ({scored.layer}), {len(scored.rows)} images" for scored in found)
    differences = [f"less {found[0].label} [95 %]"] if len(found) > 1 else []
    shown = table(("", "network", "mean ± deviation", *differences), text=("", "network"), title=title)
    for name, (said, rising) in FIGURES.items():
        for scored in found:
            if scored.figures(name):
                # Of the first network the name of the figure is said as well.
                arrow = {True: " ↑", False: " ↓", None: ""}[rising]
                row = [f"{said}{arrow}" if scored is found[0] else "", scored.label, _figure(scored, name)]
                shown.add_row(*row, *([_difference(scored, found[0], name)] if len(found) > 1 else []))
    console.print(shown)
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
    measured = environment("torchcam")
    content = {"machine": measured, "settings": settings, "scores": networks}
    write_json(folder / "scores.json", content)
    rows = [{"network": scored.label, "layer": scored.layer, **row} for scored in found for row in scored.rows]
    write_csv(folder / "scores.csv", rows, ["network", "layer", "image", "class", *FIGURES])
    return [f"wrote {folder / 'scores.json'} and {folder / 'scores.csv'}"]
