"""The parts of the page as HTML, from ``report/templates/demo.html``; nothing is loaded from elsewhere."""

from collections.abc import Sequence

from ..report.html import templates
from .predictors import Picture, Result


def as_cards(results: Sequence[Result]) -> str:
    """Return one card per model, side by side if they fit."""
    return _part("cards", results)


def as_charts(models: Sequence[tuple[str, Sequence[Picture]]]) -> str:
    """Return the gates of models, each given as its label and its images."""
    return _part("charts", models)


def as_message(text: str, *, wrong: bool = False) -> str:
    """Return a message to the visitor."""
    return _part("message", text, wrong)


def head() -> str:
    """Return the heading of the page."""
    return _part("head")


def style() -> str:
    """Return the style sheet of the page."""
    return _part("style")


def _part(macro: str, *values: object) -> str:
    return str(getattr(templates().get_template("demo.html").module, macro)(*values)).strip()
