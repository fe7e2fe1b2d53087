"""Training: the loop, and the files that a run leaves, whatever is trained."""

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

import torch
from timm.utils import distribute_bn, random_seed
from torch import Tensor, nn

from ...checkpoints import read_checkpoint, write_checkpoint
from ...errors import BAD_INPUT, InputError
from ...files import locked
from ..data.loading import TrainingBatches
from ..device import Process, autocast
from ..recipes.recipe import RunRecipe
from ..tasks.task import Task
from .progress import Progress
from .run_folder import RunFolder
from .signals import StopRequest
from .state import RunState

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """A run that was asked to stop, and has saved where it stands.

    Attributes:
        exit_code: 128 and the number of the signal, as a shell reports it.
        where: Which signal stopped it after which step.
    """

    def __init__(self, files: RunFolder, state: RunState, stop: StopRequest):
        position = state.position
        self.exit_code = 128 + int(stop.signal or 0)
        name = stop.signal.name if stop.signal else "a signal"
        step = f"step {position.step} of {state.steps_per_epoch} in epoch {position.epoch + 1}"
        self.where = f"stopped by {name} after {step}; saved"
        super().__init__(f"{self.where}. Continue with: {state.recipe.command} --resume {files.folder}")


@dataclass(frozen=True)
class Outcome:
    """How a finished run ended.

    Attributes:
        best: Figures of its best epoch.
        files: Where its results lie.
        stop: The signal that came when nothing was left to stop, or None.
    """

    best: dict[str, float]
    files: RunFolder
    stop: Signals | None = None


def train(
    recipe: RunRecipe,
    output: str | os.PathLike,
    process: Process,
    *,
    task: type[Task],
    resume: bool = False,
) -> Outcome:
    """Trains the network of a recipe, from the start or from the last checkpoint in ``output``.

    Writes there ``config.yaml``, ``metrics.csv``, ``last.pt`` (all that continuing needs), ``best.pt`` (weights),
    ``curves.png``, ``summary.json``, ``report.html`` and, where TensorBoard is installed, its event files.

    Args:
        recipe: Settings of the run.
        output: Folder of the run.
        process: Where to train; every process of a distributed run calls this.
        task: What is trained: ``Classification`` or ``Detection``.
        resume: Whether to continue the run in ``output``.

    Raises:
        InputError: If data, model, recipe or checkpoint cannot be used, ``output`` holds a run already, or another
            process is working in it.
        Interrupted: If a signal to stop arrived; the run is then saved.
    """
    files = RunFolder(Path(output))
    content = read_checkpoint(files.last) if resume else None
    if not resume and files.last.exists():
        raise InputError(f"{output} holds a run already; continue it with --resume {output}, or name another --output")
    with _all_or_none(process):
        opened = task.open(recipe, check=content is None and process.rank == 0)
    # What fits the device in training fits it in evaluation.
    share = recipe.batch_size // (process.world_size * recipe.grad_accum)
    torch.manual_seed(recipe.seed)
    model = opened.create_network(restored=content is not None)
    opened.try_once(model, min(2, share or 1))
    if content is None:
        opened.load_initial(model)
    batches, held_out = opened.batches(process), opened.held_out(process, share)
    random_seed(recipe.seed, process.rank)
    state = RunState(opened, model, batches.steps, process)
    if content is not None:
        state.restore(content, files.last)

    def look() -> dict[str, float]:
        return opened.evaluate(state.evaluated, held_out, process)

    with ExitStack() as entered:
        with _all_or_none(process):
            if process.rank == 0:
                files.folder.mkdir(parents=True, exist_ok=True)
                entered.enter_context(locked(files.folder))
        stop = entered.enter_context(StopRequest(process))
        progress = entered.enter_context(Progress(opened, batches.steps, process, state.steps_done))
        if process.rank == 0:
            files.begin(state.recipe, state.position.history)
            if recipe.eval_steps:
                files.write_curve(state.position.curve)
        while state.position.epoch < recipe.epochs:
            _train_epoch(state, batches, files, stop, progress, look)
            if process.world_size > 1:
                distribute_bn(state.evaluated, process.world_size, reduce=True)
            progress.start_evaluation(len(opened.validation))

            def watch(images: int) -> None:
                progress.advance(images)
                # All steps of the epoch are done; continuing begins with its evaluation.
                if process.world_size == 1 and stop.agreed():
                    raise Interrupted(files, state, stop)

            try:
                figures = opened.evaluate(state.evaluated, held_out, process, watch=watch)
            except Interrupted:
                _save(state, files)
                raise
            _finish_epoch(state, figures, files, progress)
            _name_failures(opened)
            if state.position.epoch < recipe.epochs and stop.agreed():
                raise Interrupted(files, state, stop)
        late = stop.signal if stop.agreed() else None
    best = state.best
    if best is None:
        raise InputError(f"epochs must be more than the {state.position.epoch} that the run has had")
    if process.rank == 0:
        files.finish(opened, best, state.position.history)
        if recipe.report:
            _report(opened, files, process, late)
    return Outcome(best, files, late)


@contextmanager
def _all_or_none(process: Process) -> Iterator[None]:
    """Ends all processes if one of them cannot go on, and lets that one alone say why."""
    failure = None
    try:
        yield
    except InputError as error:
        failure = error
    failed = [failure is not None]
    if process.world_size > 1:
        failed = [False] * process.world_size
        torch.distributed.all_gather_object(failed, failure is not None)
    if failure is not None and failed.index(True) == process.rank:
        raise failure
    if any(failed):
        raise SystemExit(BAD_INPUT)


def _train_epoch(
    state: RunState,
    batches: TrainingBatches,
    files: RunFolder,
    stop: StopRequest,
    progress: Progress,
    evaluated: Callable[[], dict[str, float]],
) -> None:
    recipe, process, position = state.recipe, state.process, state.position
    state.task.set_training_mode(state.trained)
    # Reading a figure back from a GPU makes it wait; there, every tenth step is often enough.
    interval = 10 if process.device.type == "cuda" else 1
    sums = torch.tensor(position.sums, dtype=torch.float64 if process.device.type != "mps" else torch.float32)
    sums = sums.to(process.device)
    stream = batches.epoch(position.epoch, position.step)
    progress.start_epoch(position.epoch, position.step)
    if recipe.eval_steps and state.steps_done == 0:
        _add_to_curve(state, files, evaluated())
    while position.step < state.steps_per_epoch:
        _step(state, stream, batches.per_step, sums)
        position.step += 1
        last = position.step == state.steps_per_epoch
        look = position.step % interval == 0 or last
        saving = recipe.checkpoint_steps > 0 and position.step % recipe.checkpoint_steps == 0 and not last
        if look or saving:
            position.sums = sums.tolist()
            _require_finite(position.sums[0], state, files)
            progress.step(position.step, position.sums)
        if recipe.eval_steps and state.steps_done % recipe.eval_steps == 0:
            _add_to_curve(state, files, evaluated())
        stopping = look and stop.agreed()
        if saving or stopping:
            _save(state, files)
        if stopping:
            raise Interrupted(files, state, stop)


def _add_to_curve(state: RunState, files: RunFolder, figures: dict[str, float]) -> None:
    """Notes how good the network is within an epoch, and goes back to training it."""
    state.task.set_training_mode(state.trained)
    curve = state.position.curve
    if curve and curve[-1]["step"] == state.steps_done:  # before a stop that came before the first step
        return
    curve.append({"step": state.steps_done, **figures})
    if state.process.rank == 0:
        files.write_curve(curve)


def _step(state: RunState, stream: Iterator, micro_batches: int, sums: Tensor) -> None:
    """One step of the optimiser: forward and backward over its micro-batches, then the update."""
    recipe, process, trainer = state.recipe, state.process, state.trainer
    for index in range(micro_batches):
        batch = next(stream)
        more_to_come = index + 1 < micro_batches
        with trainer.no_sync() if more_to_come else nullcontext():
            with autocast(process, recipe.precision):
                loss, seen = state.task.loss(trainer, batch, process)
            state.scaler.scale(loss / micro_batches).backward()
        sums += seen
    if recipe.clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.lr = state.optimizer.param_groups[0]["lr"]
    done = state.steps_done + 1
    if state.scheduler:
        state.scheduler.step_update(done)
    state.trainer.update_ema(step=done)


def _finish_epoch(state: RunState, figures: dict[str, float], files: RunFolder, progress: Progress) -> None:
    position, process, task = state.position, state.process, state.task
    sums = torch.tensor(position.sums, dtype=torch.float64, device=process.device)
    if process.world_size > 1:
        torch.distributed.all_reduce(sums)
    row = {
        "epoch": position.epoch + 1,
        "lr": state.lr,
        **task.figures(sums.tolist()),
        **figures,
        "images_per_second": progress.images_per_second,
    }
    position.history.append(row)
    position.epoch, position.step, position.sums = position.epoch + 1, 0, [0.0] * task.sums
    improved = state.best is row
    if improved and process.rank == 0:
        write_checkpoint(state.weights(), files.best)
    _save(state, files)
    if process.rank == 0:
        files.add_row(row, position.history)
    progress.finish_epoch(row, improved)


def _save(state: RunState, files: RunFolder) -> None:
    content = state.snapshot()
    if state.process.rank == 0:
        write_checkpoint(content, files.last)


def _require_finite(loss: float, state: RunState, files: RunFolder) -> None:
    if not math.isfinite(loss):
        saved = f"the last good state is {files.last}" if files.last.exists() else "nothing was saved yet"
        raise InputError(
            f"the loss became {loss} in epoch {state.position.epoch + 1}, step {state.position.step}; {saved}. "
            f"A smaller lr (now {state.recipe.lr:g}), a longer warm-up or clip_grad may help"
        )


def _report(task: Task, files: RunFolder, process: Process, stop: Signals | None) -> None:
    if stop is not None:  # whoever asked to stop does not want to wait for it
        logger.warning("no report after %s; sanet report %s writes it", stop.name, files.folder)
        return
    from ..report.html import log_failures
    from ..report.run import write_run_report

    with log_failures(files.folder):
        write_run_report(task, files, process)


def _name_failures(task: Task) -> None:
    failures = task.failures()
    if failures:
        named = ", ".join(failures[:5])
        logger.warning("%d images could not be decoded and were replaced or not counted: %s", len(failures), named)
