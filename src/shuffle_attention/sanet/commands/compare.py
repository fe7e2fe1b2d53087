"""The command ``sanet compare``."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import InputError, counted
from ..recipes.recipe import Recipe
from ..recipes.settings import option
from . import Command
from .train import named_recipe

if TYPE_CHECKING:
    from ..compare.comparison import Comparison, Run
    from ..device import Process
    from ..profile.costs import AnySize

FAILED = 1


@dataclass(kw_only=True)
class Compare(Command):
    """Train the same recipe with several models and seeds, and compare them.

    The same command continues where it was stopped. Every field of the recipe but the model is an option as well.
    """

    name = "compare"
    summary = "train several models alike and compare them"
    recipe_type = Recipe

    attention: list[str] = option([], "attention layers; the first is the baseline", metavar="A,B", separator=",")
    output: str = option(..., "folder of the comparison", metavar="DIR")
    recipe: str | None = option(None, "{recipes}, or a YAML file")
    seeds: int | None = option(None, "number of seeds, from --seed on (3); with --until the most (any)", minimum=1)
    depth: int | None = option(None, "layers of the ResNet (18)")
    models: list[str] = option([], "models instead of attention layers", metavar="A,B", separator=",")
    from_: str | None = option(None, "checkpoint of a plain model to attach the attention to", metavar="FILE")
    where: str | None = option(None, "residual, stage, last or a glob (residual)", metavar="WHERE")
    preserve: Literal["both", "yes", "no"] | None = option(
        None, "attach so that the model computes what it did before (both)"
    )
    null: bool = option(False, "add a model of the same distribution as another one: what chance does")
    control: Literal["width"] | None = option(
        None, "add a wider plain network that takes as long to train; with --report-only, time the steps again"
    )
    plan: float | None = option(
        None,
        "print how many seeds detect a difference of so many points, by the finished runs",
        metavar="POINTS",
        above=0,
    )
    until: float | None = option(
        None,
        "train seeds until each difference is decided, or smaller than this",
        metavar="POINTS",
        above=0,
    )
    budget: float | None = option(None, "hours that --until may take", metavar="HOURS", above=0)
    report_only: bool = option(False, "report the runs in the folder, and train nothing")

    def run(self) -> int:
        """Train and compare; the exit code is 1 if a run failed and the others were trained."""
        from ...checkpoints import read_checkpoint
        from ..compare.comparison import Comparison
        from ..compare.variants import attached_variants, null_of, variants_of
        from ..console import console
        from ..network import recipe_of
        from ..tasks import task_named

        overrides, start, names = self.overrides, self.from_, [*self.attention, *self.models]
        folder, command = Path(self.output), f"sanet {self.name}"
        task, network = task_named(self.recipe_type.kind), self.recipe_type.network[0]
        what = [*names, start, self.recipe, self.seeds, *overrides.keys() - {"report", "device"}]
        if self.report_only or (self.plan is not None and not any(each is not None for each in what)):
            given = {
                "from": start,
                "null": self.null or None,
                "control": None if self.report_only else self.control,
                "until": self.until,
                "budget": self.budget,
                **{key: getattr(self, key) for key in ("recipe", "where", "preserve", "depth", "seeds")},
            }
            unread = [
                *(key for key, value in given.items() if value is not None),
                *(overrides.keys() - {"report", "device"}),
            ]
            if unread:
                options = ", ".join("--" + key.replace("_", "-") for key in sorted(unread))
                raise InputError(f"{options} would have no effect with --report-only, which trains nothing")
            return report_runs(folder, names, overrides, self.plan, time_again=self.control is not None)
        if network in overrides:
            raise InputError(
                f"{command} chooses the {network}: --attention with --depth, or --models, and not --{network}"
            )
        if self.budget is not None and self.until is None:
            raise InputError("--budget would have no effect without --until")
        if self.plan is not None and self.until is not None:
            raise InputError("--plan is for a number of seeds that is fixed beforehand, --until for one that is not")
        if self.plan is not None and self.seeds == 1:
            raise InputError("--plan needs the deviation between seeds: --seeds 2 or more")
        if self.control is not None and (start is not None or self.attention[:1] != ["none"]):
            raise InputError("--control width widens a plain ResNet that is trained from scratch: --attention none,...")
        self._refuse_unused()
        variants = variants_of(self.attention, self.depth or 18, self.models) if start is None else []
        recipe: Any = named_recipe(self.recipe, overrides, task.Recipe)
        if recipe is None and "data" not in overrides:
            raise InputError(f"{command} needs images: --data DIR, or --recipe digits, which brings its own")
        if recipe is None:
            given = overrides | ({network: self.models[0]} if self.models else {})
            recipe, why = task.choose_recipe(given, pretrained=False)
            console.print(why)
        if start is not None:
            if recipe.attach:
                raise InputError(f"{command} --from chooses what is attached: --attention, and not --attach")
            plain, _ = recipe_of(read_checkpoint(start), start, task.Recipe)
            variants = attached_variants(self.attention, plain, self.where or "residual", self.preserve or "both")
            recipe = recipe.replaced(**{**plain.as_trained, **overrides, "initial": start})
        if self.null:
            variants = [*variants, null_of(variants, recipe)]
        if recipe.patience:
            raise InputError(f"{command} trains every model for the same epochs: leave out --patience")
        seeds = [recipe.seed + n for n in range(self.seeds or 3)]
        comparison = Comparison(variants, recipe, seeds, folder, task.count_classes(recipe), self.until)
        return run_comparison(
            comparison,
            recipe.device,
            plan=self.plan,
            most=self.seeds,
            budget=self.budget,
            control=self.control is not None,
        )

    def _refuse_unused(self) -> None:
        if self.from_ is not None and self.models:
            raise InputError("--from names the model that attention is attached to; --models cannot be given with it")
        unread = ["where", "preserve"] if self.from_ is None else ["depth"]
        if self.models:
            unread.append("depth")
        given = [f"--{name}" for name in unread if getattr(self, name) is not None]
        if given:
            without = "without --from" if self.from_ is None and given != ["--depth"] else "with --from or --models"
            raise InputError(f"{' and '.join(given)} would have no effect {without}")


def run_comparison(
    comparison: Comparison,
    device: str,
    *,
    plan: float | None = None,
    most: int | None = None,
    budget: float | None = None,
    control: bool = False,
) -> int:
    """Train what is not finished and report; the exit code is 1 if a run failed, 128 + n for signal n.

    Args:
        comparison: The comparison; with ``until``, its seeds are those that decide the differences.
        device: Device as PyTorch names it.
        plan: Difference to plan further seeds for, in points.
        most: Largest number of seeds of a comparison with ``until``.
        budget: Hours that such a comparison may take.
        control: Whether to add a wider plain network of the same cost.
    """
    from ..compare.comparison import read_comparison
    from ..compare.control import with_control
    from ..compare.stopping import train_until
    from ..console import console
    from ..device import open_process
    from ..training.signals import Interrupted, stop_signals_raised

    with open_process(device) as process, stop_signals_raised():

        def announcer(comparison: Comparison) -> Callable[[Run, int], None]:
            return _announcer(comparison, process)

        try:
            sizes = comparison.sizes()  # a model that cannot be created is reported before another one trains
            if control:
                comparison = with_control(comparison, process)
                sizes |= {v.name: comparison.size(v.recipe(comparison.base, 0)) for v in comparison.variants if v.cost}
            with comparison.begun() if process.rank == 0 else nullcontext():
                if comparison.until is None:
                    failed = comparison.train(process, announcer(comparison))
                else:
                    comparison, failed = train_until(comparison, sizes, process, announcer, most=most, budget=budget)
                if process.rank != 0:
                    return 0
                # Seeds may have been chosen by their scores before, which the intervals must allow for.
                comparison = replace(comparison, until=read_comparison(comparison.folder).until)
                return _report(comparison, sizes, failed, plan)
        except Interrupted as stopped:
            if process.rank == 0:
                console.print(f"{stopped.where or stopped}. Go on with the same command; finished runs are kept")
            return stopped.exit_code


def report_runs(
    folder: Path, names: list[str], overrides: dict[str, Any], plan: float | None = None, *, time_again: bool = False
) -> int:
    """Report the finished runs in a folder, of all variants or of those that are named.

    Args:
        folder: Folder of the comparison.
        names: Variants; all if empty.
        overrides: Fields of the recipe to replace.
        plan: Difference to plan further seeds for, in points.
        time_again: Whether to time the training steps of a comparison with a control of width anew.
    """
    from ..compare.comparison import read_comparison
    from ..compare.control import timed_again
    from ..device import open_process

    comparison = read_comparison(folder)
    comparison = replace(comparison, base=comparison.base.replaced(**overrides))
    if time_again:
        with open_process(comparison.base.device) as process:
            comparison = timed_again(comparison, process.device)
        with comparison.begun():  # writes the times, unless another process works in the folder
            pass
    return _report(_only(comparison, names) if names else comparison, None, {}, plan)


def _only(comparison: Comparison, names: list[str]) -> Comparison:
    known = {variant.name: variant for variant in comparison.variants}
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(f"{comparison.folder} has no runs of {', '.join(missing)}; it has {', '.join(known)}")
    return replace(comparison, variants=[known[name] for name in names])


def _announcer(comparison: Comparison, process: Process) -> Callable[[Run, int], None]:
    """Return a function that prints which run starts, of how many, and how long the rest may take."""
    from ..console import console, duration

    def finished() -> int:
        return sum(run.finished for run in comparison.runs)

    began, before, count = time.perf_counter(), finished(), len(comparison.runs)
    if before and process.rank == 0:
        console.print(f"{before} of {counted(count, 'run')} {'is' if before == 1 else 'are'} finished already")

    def announce(run: Run, number: int) -> None:
        if process.rank != 0:
            return
        rest, done = "", finished()
        if done > before:
            each = (time.perf_counter() - began) / (done - before)
            rest = f", about {duration(each * (count - done))} left for all"
        verb = "continuing" if run.files.last.exists() else "training"
        console.print(f"run {number} of {count}: {verb} {run.variant.name}, seed {run.seed}{rest}")

    return announce


def _report(
    comparison: Comparison, sizes: dict[str, AnySize] | None, failed: dict[str, str], effect: float | None
) -> int:
    from ..compare.findings import findings, write_findings
    from ..compare.planning import plan_table, plans
    from ..compare.table import findings_table, others_table, print_findings
    from ..console import console
    from ..report.comparison import write_comparison_report
    from ..report.html import log_failures
    from ..statistics import POWER

    results = findings(comparison, sizes)
    planned, further = [], {}
    if effect is not None:
        rows = plans(comparison, results, effect)
        planned.append(plan_table(comparison, rows, effect))
        further["plan"] = {"effect": effect, "power": POWER, "rows": [asdict(row) for row in rows]}
    for each in (findings_table(comparison, results), others_table(comparison, results), *planned):
        if each is not None:
            print_findings(each)
    for path in write_findings(comparison, results, failed, **further):
        console.print(f"wrote {path}")
    if comparison.base.report:
        with log_failures(comparison.folder):
            console.print(f"wrote {write_comparison_report(comparison, results, failed, planned)}")
    for folder, reason in failed.items():
        console.print(f"failed: {folder}: {reason}")
    if failed:
        console.print(
            f"runs that failed: {len(failed)}. The same command tries them again; delete a folder to start from scratch"
        )
    return FAILED if failed else 0
