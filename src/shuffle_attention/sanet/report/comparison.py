"""The report of a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..compare.comparison import Comparison
from ..compare.findings import Findings, trained_on
from ..compare.table import FindingsTable, findings_table, others_table
from ..training.run_folder import REPORT
from .html import embedded_file, write_page
from .run import changed_fields, fields_by_group

_NAMED = 4  # variants in the heading


def write_comparison_report(
    comparison: Comparison, results: Findings, failed: Mapping[str, str], plans: Sequence[FindingsTable] = ()
) -> Path:
    """Write ``report.html`` of a comparison beside its other files and return its path.

    Args:
        comparison: The comparison.
        results: Its findings.
        failed: Reasons of failed runs, by folder.
        plans: Tables of the seeds that detect a difference.
    """
    base, folder = comparison.base, comparison.folder
    tables = [("Results", findings_table(comparison, results))]
    if others := others_table(comparison, results):
        tables.append(("Further metrics", others))
    tables += [("How many seeds", each) for each in plans]
    not_shared = (base.network[0], "seed")
    images = [
        (title, embedded_file(folder / name))
        for name, title in (
            ("differences.png", "Differences beside what chance does"),
            ("comparison.png", f"{results.score.label} and size"),
            ("curves.png", f"{results.score.label} over the steps"),
        )
        if (folder / name).exists()
    ]
    names = [finding.name for finding in results.variants]
    compared = ", ".join(names) if len(names) <= _NAMED else f"{len(names)} variants"
    values: dict[str, Any] = {
        "title": f"{compared} on {Path(base.data).name}",
        "kind": f"comparison by {comparison.command}",
        "score": results.score.label,
        "epochs": base.epochs,
        "seeds": len(comparison.seeds),
        "tables": [
            (title, [column.split("\n") for column in each.columns], each.rows, each.notes) for title, each in tables
        ],
        "others": len(names) - 1,
        "images": images,
        "runs": _runs(comparison, results),
        "failed": failed,
        "changed": [row for row in changed_fields(base) if row[0] not in not_shared],
        "settings": [
            (group, [row for row in rows if row[0] not in not_shared]) for group, rows in fields_by_group(base)
        ],
        "machines": trained_on(comparison),
    }
    path = folder / REPORT
    write_page("comparison.html", values, path)
    return path


def _runs(comparison: Comparison, results: Findings) -> list[tuple[str, int, str, str, str, str | None]]:
    """Return variant, seed, score, that of the best epoch, difference to the baseline and link of each run."""
    files = {(run.variant.name, run.seed): run.files for run in comparison.runs}
    rows = []
    for finding in results.variants:
        for seed, score in finding.scores.items():
            report = files[finding.name, seed].report
            over = finding.difference.by_seed.get(seed) if finding.difference else None
            link = quote(report.relative_to(comparison.folder).as_posix()) if report.exists() else None
            difference = "" if over is None else f"{over:+.2f}"
            rows.append((finding.name, seed, f"{score:.2f}", f"{finding.best[seed]:.2f}", difference, link))
    return rows
