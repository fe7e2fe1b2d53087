"""The training loop of every task."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch
from timm.utils import distribute_bn, random_seed
from torch import Tensor, nn

from ...attach.weights import fit_attention
from ...checkpoints import read_checkpoint, write_checkpoint
from ...errors import InputError, counted
from ..data.loading import TrainingBatches
from ..device import Process, autocast
from ..recipes.recipe import RunRecipe
from ..tasks.task import Task
from .gate_activity import means, measure_gates
from .progress import Progress
from .run_folder import RunFolder
from .run_lock import run_lock
from .schedule import learning_rate
from .signals import Interrupted, StopRequest
from .state import RunState
from .trackers import Trackers, require_trackers

logger = logging.getLogger(__name__)
# The factor of an fp16 loss is halved at each step that is skipped; below this, it is not the factor that is at fault.
_LEAST_SCALE = 1e-4


def train(
    recipe: RunRecipe,
    output: str | os.PathLike,
    process: Process,
    *,
    task: type[Task],
    resume: bool = False,
) -> RunState:
    """Train the model of a recipe, from the start or from the last checkpoint in ``output``.

    Writes ``config.yaml``, ``metrics.csv``, ``last.pt`` (all that continuing needs), ``best.pt`` (weights),
    ``curves.png``, ``summary.json``, ``report.html``, for a model with gates ``gates.csv``, and records of trackers.

    Args:
        recipe: Settings of the run.
        output: Folder of the run.
        process: This process; every process of a distributed run calls this function.
        task: What to train, such as ``Classification``.
        resume: Whether to continue the run in ``output``.

    Returns:
        The finished run: ``best`` is the row of its best epoch, ``files`` its folder, ``stop`` the signal that
        arrived after its last step, or None.

    Raises:
        InputError: If data, model, recipe or checkpoint cannot be used, ``output`` already holds a run, or another
            process is working in it.
        Interrupted: If a signal to stop arrived; the run is then saved.
    """
    files = RunFolder(Path(output))
    trackers = Trackers()
    with ExitStack() as entered:
        with process.all_or_none():
            content = read_checkpoint(files.last) if resume else None
            if content is None and process.rank == 0 and files.trained:
                how = f"continue it with --resume {output}, or " if files.last.exists() else ""
                raise InputError(f"{output} holds a run already; {how}name another --output")
            task.check_recipe(recipe)
            require_trackers(recipe.tracker if process.rank == 0 else ())
            opened = task.open(recipe, check=content is None and process.rank == 0)
            if content is not None:
                opened.keep_classes(content.get("classes"))
        with process.all_or_none():
            # A batch that fits into the device's memory in training fits in evaluation.
            share = recipe.batch_size // (process.world_size * recipe.grad_accum)
            torch.manual_seed(recipe.seed if recipe.init_seed is None else recipe.init_seed)
            model = opened.create_model(restored=content is not None)
            opened.try_once(model, min(2, share or 1))
            if content is None:
                opened.load_initial(model)
            else:
                fit_attention(model, content.get("state_dict", {}))
            batches, held_out = opened.batches(process), opened.held_out(process, share)
            random_seed(recipe.seed, process.rank)
            state = RunState(opened, model, batches.steps, process, files)
            if content is not None:
                state.restore(content, files.last)
            if process.rank == 0:
                files.folder.mkdir(parents=True, exist_ok=True)
                entered.enter_context(run_lock(files.folder))
                entered.enter_context(trackers)
                trackers.start(recipe.tracker, files.folder, state.recipe.to_dict(), resumed=content is not None)
        if content is None:
            state.keep_start()
        stop = entered.enter_context(StopRequest(process))
        progress = entered.enter_context(Progress(opened, batches.steps, process, state.steps_done))
        if process.rank == 0:
            files.begin(state.recipe, state.history, state.gates, resumed=resume)
            if recipe.eval_steps:
                files.write_curve(state.curve)

        def evaluate(watch: Callable[[int], None] | None = None) -> dict[str, float]:
            scores = opened.evaluate(state.evaluated, held_out, process, watch=watch).metrics
            named = {f"val_{name}": value for name, value in scores.items()}
            for metric in opened.metrics:
                if metric.name in named and metric.is_loss:
                    state.require_finite(named[metric.name], metric.label)
            return named

        def advance(images: int) -> None:
            progress.advance(images)
            # All steps of the epoch are done; a continued run begins with the evaluation.
            if process.world_size == 1 and stop.agreed():
                raise state.interrupted(stop)

        while state.epoch < recipe.epochs and not state.stalled:
            _train_epoch(state, batches, stop, progress, evaluate, trackers)
            if process.world_size > 1:
                distribute_bn(state.evaluated, process.world_size, reduce=True)
            state.require_finite(state.sums[0] if state.sums[-1] else math.nan, weights=True)
            progress.start_evaluation(len(opened.validation))
            try:
                scores = evaluate(advance)
            except Interrupted:
                state.save()  # here, where the evaluation has restored the random state
                raise
            _finish_epoch(state, scores, progress, trackers)
            if failures := opened.failures():
                named = ", ".join(failures[:5])
                images = counted(len(failures), "image")
                logger.warning("%s could not be decoded; replaced or not counted: %s", images, named)
            if state.epoch < recipe.epochs and not state.stalled and stop.agreed():
                raise state.interrupted(stop)
        state.stop = stop.signal if stop.agreed() else None
    best = state.best
    if best is not None and state.epoch < recipe.epochs:
        logger.info("stopped: epoch %d is still the best after %d more", best["epoch"], recipe.patience)
    if best is None:
        raise InputError(f"epochs must be more than the {state.epoch} that the run has had")
    if process.rank == 0:
        files.finish(opened, best, state.history)
        if recipe.report:
            _report(state)
    return state


def _train_epoch(
    state: RunState,
    batches: TrainingBatches,
    stop: StopRequest,
    progress: Progress,
    evaluate: Callable[[], dict[str, float]],
    trackers: Trackers,
) -> None:
    """Train from the current step to the end of the epoch; save and raise Interrupted if asked to stop."""
    recipe, process = state.recipe, state.process
    state.set_training_mode()
    # Reading the loss back synchronises with a GPU; every tenth step is often enough there.
    interval = 10 if process.device.type == "cuda" else 1
    sums = torch.tensor(state.sums, dtype=torch.float64 if process.device.type != "mps" else torch.float32)
    sums = sums.to(process.device)
    stream = batches.epoch(state.epoch, state.step)
    progress.start_epoch(state.epoch, state.step)
    recorded = state.sums
    if recipe.eval_steps and state.steps_done == 0:
        _extend_curve(state, evaluate(), trackers)
    while state.step < state.steps_per_epoch:
        _step(state, stream, batches.per_step, sums)
        state.step += 1
        last = state.step == state.steps_per_epoch
        synchronise = state.step % interval == 0 or last
        saving = recipe.checkpoint_steps > 0 and state.step % recipe.checkpoint_steps == 0 and not last
        recording = recipe.log_steps > 0 and (state.step % recipe.log_steps == 0 or last)
        if synchronise or saving or recording:
            state.sums = sums.tolist()
            scaled_down = state.scaler.is_enabled() and state.scaler.get_scale() < _LEAST_SCALE
            state.require_finite(math.nan if scaled_down else state.sums[0])
            if state.first_loss is None and state.sums[-1]:
                state.first_loss = state.sums[0] / state.sums[-1]
            progress.step(state.step, state.sums)
        if recording and state.sums[-1] > recorded[-1]:
            recent = state.task.means([now - before for now, before in zip(state.sums, recorded, strict=True)])
            trackers.log(_of_step({**recent, "lr": state.lr}), state.steps_done)
            recorded = state.sums
        if recipe.eval_steps and state.steps_done % recipe.eval_steps == 0:
            _extend_curve(state, evaluate(), trackers)
        stopping = synchronise and stop.agreed()
        if saving or stopping:
            state.save()
        if stopping:
            raise state.interrupted(stop)


def _of_step(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics under the names that trackers show them by over the steps."""
    return {f"step/{name}": value for name, value in metrics.items()}


def _extend_curve(state: RunState, metrics: dict[str, float], trackers: Trackers) -> None:
    """Record an evaluation within an epoch, and return to the training mode."""
    state.set_training_mode()
    if state.curve and state.curve[-1]["step"] == state.steps_done:  # recorded before a stop at step 0
        return
    state.curve.append({"step": state.steps_done, **metrics})
    trackers.log(_of_step(metrics), state.steps_done)
    if state.process.rank == 0:
        state.files.write_curve(state.curve)


def _step(state: RunState, stream: Iterator, micro_batches: int, sums: Tensor) -> None:
    """Take one optimiser step: forward and backward over its micro-batches, then the update."""
    recipe, process, trainer = state.recipe, state.process, state.trainer
    for index in range(micro_batches):
        batch = next(stream)
        with trainer.no_sync() if index + 1 < micro_batches else nullcontext():
            with autocast(process, recipe.precision):
                loss, batch_sums = state.task.loss(trainer, batch, process)
            state.scaler.scale(loss / micro_batches).backward()
        if state.scaler.is_enabled():  # a loss that overflows has its step skipped, and does not count
            batch_sums = torch.where(batch_sums.isfinite().all(), batch_sums, 0.0)
        sums += batch_sums
    if recipe.clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.lr = learning_rate(state.optimizer)
    done = state.steps_done + 1
    if state.scheduler:
        state.scheduler.step_update(done)
    trainer.update_ema(step=done)


def _finish_epoch(state: RunState, scores: dict[str, float], progress: Progress, trackers: Trackers) -> None:
    """Add the row of an epoch to the history, and save."""
    process, task, files = state.process, state.task, state.files
    sums = torch.tensor(state.sums, dtype=torch.float64, device=process.device)
    if process.world_size > 1:
        torch.distributed.all_reduce(sums)
    values = task.means(sums.tolist()) | scores
    if process.largest(task.failed(values, state.first_loss or 0.0)):
        losses = [f"{m.label} {values[m.name]:.4g}" for m in task.metrics if m.is_loss and m.name in values]
        state.stop_diverged(f"the {' and '.join(losses)} are far worse than guessing")
    gates = measure_gates(task, state.watched, process)
    row = {
        "epoch": state.epoch + 1,
        "lr": state.lr,
        **{metric.name: values[metric.name] for metric in task.metrics},
        **means(gates),
        "images_per_second": progress.images_per_second,
    }
    state.history.append(row)
    if gates:
        state.gates.append({"epoch": row["epoch"], **gates})
    state.epoch, state.step, state.sums = state.epoch + 1, 0, [0.0] * task.sums
    improved = state.best is row
    if improved and process.rank == 0:
        write_checkpoint(state.weights(), files.best)
    if state.recipe.keep_epochs and process.rank == 0:
        files.keep_epoch(state.weights(), state.epoch, state.recipe.keep_epochs)
    state.save()
    if process.rank == 0:
        files.write_rows(state.history, state.gates)
        trackers.log({n: v for n, v in {**row, **gates}.items() if n != "epoch"}, state.steps_done, state.epoch)
    progress.finish_epoch(row, improved)


def _report(state: RunState) -> None:
    """Write the report of a finished run, unless a signal asked to stop."""
    if state.stop is not None:
        logger.warning("no report after %s; sanet report %s writes it", state.stop.name, state.files.folder)
        return
    from ..report.html import log_failures
    from ..report.run import write_run_report

    with log_failures(state.files.folder):
        write_run_report(state.task, state.files, state.process)
