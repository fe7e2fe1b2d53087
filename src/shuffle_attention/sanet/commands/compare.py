"""The command ``sanet compare``: the same recipe with several networks and seeds."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...checkpoints import read_checkpoint
from ...errors import InputError
from ..compare.comparison import Comparison, Run, count_classes, read_comparison
from ..compare.findings import findings, print_findings, write_findings
from ..compare.variants import Variant, attached_variants, variants_of
from ..console import console, duration
from ..device import Process, open_process
from ..network import recipe_of
from ..report.comparison import write_comparison_report
from ..report.html import log_failures
from ..training.loop import Interrupted
from ..training.signals import StopSignal, stop_signals_raised
from .train import named_recipe

FAILED = 1
# What a network was trained with and goes on with, unless said otherwise.
_OF_THE_NETWORK = ("in_chans", "small_stem", "img_size", "mean", "std", "interpolation", "crop_pct")


def compare_command(
    name: str | None,
    overrides: dict[str, Any],
    output: str,
    *,
    attentions: Sequence[str],
    depth: int | None,
    models: Sequence[str],
    seeds: int | None,
    report_only: bool,
    start: str | None = None,
    where: str | None = None,
    preserve: str | None = None,
) -> int:
    """Runs ``sanet compare`` and returns its exit code: 1 where a run failed and the others were trained."""
    folder = Path(output)
    if report_only:
        given = {"recipe": name, "from": start, "where": where, "preserve": preserve, "depth": depth, "seeds": seeds}
        unread = [
            *(key for key, value in given.items() if value is not None),
            *(overrides.keys() - {"report", "device"}),
        ]
        if unread:
            options = ", ".join("--" + key.replace("_", "-") for key in sorted(unread))
            raise InputError(f"{options} would have no effect with --report-only, which trains nothing")
        comparison = read_comparison(folder)
        comparison = replace(comparison, base=comparison.base.replaced(**overrides))
        if attentions or models:
            comparison = _only(comparison, [*attentions, *models])
        return _report(comparison, {}, process=None)
    if "model" in overrides:
        raise InputError("sanet compare chooses the model: --attention with --depth, or --models, and not --model")
    seeds = 3 if seeds is None else seeds
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1, got {seeds}")
    _refuse_what_is_not_read(start, models, depth=depth, where=where, preserve=preserve)
    recipe = named_recipe(name, overrides)
    if start is None:
        variants = variants_of(attentions, depth or 18, models)
    else:
        if recipe.attach:
            raise InputError("sanet compare --from chooses what is attached: --attention, and not --attach")
        plain, _ = recipe_of(read_checkpoint(start), start)
        variants = attached_variants(attentions, plain, where or "residual", preserve or "both")
        as_trained = {key: getattr(plain, key) for key in _OF_THE_NETWORK if key not in overrides}
        recipe = recipe.replaced(**as_trained, initial=start)
    seen = [recipe.seed + n for n in range(seeds)]
    comparison = Comparison(variants, recipe, seen, folder, count_classes(recipe))
    with open_process(recipe.device) as process, stop_signals_raised():
        try:
            comparison.sizes()  # a network that cannot be made is known before another one trains
            with comparison.begun() if process.rank == 0 else nullcontext():
                failed = comparison.train(process, _Overview(comparison, process).announce)
                return _report(comparison, failed, process=process)
        except (Interrupted, StopSignal) as stopped:
            if process.rank == 0:
                said = stopped.where if isinstance(stopped, Interrupted) else str(stopped)
                console.print(f"{said}. Go on with the same command; finished runs are kept")
            return stopped.exit_code


def _refuse_what_is_not_read(start: str | None, models: Sequence[str], **options: int | str | None) -> None:
    if start is not None and models:
        raise InputError("--from has the network that attention is attached to; --models cannot be given with it")
    unread = ["where", "preserve"] if start is None else ["depth"]
    if models:
        unread.append("depth")
    given = [f"--{name}" for name in unread if options[name] is not None]
    if given:
        without = "without --from" if start is None and given != ["--depth"] else "with --from or --models"
        raise InputError(f"{' and '.join(given)} would have no effect {without}")


def _only(comparison: Comparison, names: Sequence[str]) -> Comparison:
    known = {variant.name: variant for variant in comparison.variants}
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(f"{comparison.folder} has no runs of {', '.join(missing)}; it has {', '.join(known)}")
    chosen: list[Variant] = [known[name] for name in names]
    return replace(comparison, variants=chosen)


class _Overview:
    """Says which run of how many starts, and how long the rest may take."""

    def __init__(self, comparison: Comparison, process: Process):
        self.runs = comparison.runs
        self.quiet = process.rank != 0
        self.before = sum(run.finished for run in self.runs)
        self.began = time.perf_counter()
        if self.before and not self.quiet:
            console.print(f"{self.before} of {len(self.runs)} runs are finished already")

    def announce(self, run: Run, number: int) -> None:
        if self.quiet:
            return
        done = sum(other.finished for other in self.runs)
        rest = ""
        if done > self.before:
            each = (time.perf_counter() - self.began) / (done - self.before)
            rest = f", about {duration(each * (len(self.runs) - done))} left for all"
        verb = "continuing" if run.files.last.exists() else "training"
        console.print(f"run {number} of {len(self.runs)}: {verb} {run.variant.name}, seed {run.seed}{rest}")


def _report(comparison: Comparison, failed: dict[str, str], *, process: Process | None) -> int:
    if process is not None and process.rank != 0:
        return 0
    found = findings(comparison, comparison.sizes() if comparison.seeds else _no_runs(comparison))
    print_findings(found, len(comparison.seeds))
    for path in write_findings(comparison, found, failed):
        console.print(f"wrote {path}")
    if comparison.base.report:
        with log_failures(comparison.folder):
            console.print(f"wrote {write_comparison_report(comparison, found, failed)}")
    for folder, reason in failed.items():
        console.print(f"failed: {folder}: {reason}")
    if failed:
        console.print(
            f"runs that failed: {len(failed)}. The same command tries them again; delete a folder to begin anew"
        )
    return FAILED if failed else 0


def _no_runs(comparison: Comparison):
    raise InputError(f"{comparison.folder} has no run yet")
