"""Times of functions measured side by side, and a record of where they were measured."""

import json
from pathlib import Path

from shuffle_attention.sanet.environment import environment
from shuffle_attention.sanet.timing import Times, interleaved

__all__ = ["Times", "interleaved", "judged", "write"]

RESULTS = Path(__file__).parent / "results"


def judged(value: float, target: float | None) -> str:
    """Return ``<= target`` and whether the unrounded ``value`` meets it; empty if there is no target."""
    if target is None:
        return ""
    return f"<= {target:g} {'met' if value <= target else 'MISSED'}"


def write(name: str, rows: list[dict[str, object]]) -> Path:
    """Write the rows with :func:`environment` to ``results/<name>.json`` and returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": environment(), "rows": rows}, indent=1) + "\n")
    return path
