"""Training a classifier: the loop, and the files that a run leaves."""

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

import torch
from timm.data import Mixup
from timm.utils import distribute_bn, random_seed
from torch import Tensor, nn

from .attachment import CHILD
from .checkpoints import load_checkpoint, read_checkpoint, write_checkpoint
from .datasets import Samples, open_split
from .errors import BAD_INPUT, DataError, InputError, asked_for
from .evaluation import Scores, autocast, evaluate
from .interrupts import StopRequest
from .loading import Place, TrainingBatches, evaluation_batches
from .network import create_network, with_normalisation
from .progress import Progress
from .recipe import Recipe
from .reporting import RunFiles
from .run_state import RunState

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """A run that was asked to stop, and has saved where it stands.

    Attributes:
        exit_code: 128 and the number of the signal, as a shell reports it.
        where: Which signal stopped it after which step.
    """

    def __init__(self, files: RunFiles, state: RunState, stop: StopRequest):
        position = state.position
        self.exit_code = 128 + int(stop.signal or 0)
        name = stop.signal.name if stop.signal else "a signal"
        step = f"step {position.step} of {state.steps_per_epoch} in epoch {position.epoch + 1}"
        self.where = f"stopped by {name} after {step}; saved"
        super().__init__(f"{self.where}. Continue with: sanet train --resume {files.folder}")


@dataclass(frozen=True)
class Outcome:
    """How a finished run ended.

    Attributes:
        best: Figures of its best epoch.
        files: Where its results lie.
        stop: The signal that came when nothing was left to stop, or None.
    """

    best: dict[str, float]
    files: RunFiles
    stop: Signals | None = None


def train(recipe: Recipe, output: str | os.PathLike, place: Place, *, resume: bool = False) -> Outcome:
    """Trains the network of a recipe, from the start or from the last checkpoint in ``output``.

    Writes there ``config.yaml``, ``metrics.csv``, ``last.pt`` (all that continuing needs), ``best.pt`` (weights),
    ``curves.png``, ``summary.json`` and, where TensorBoard is installed, its event files.

    Args:
        recipe: Settings of the run.
        output: Folder of the run.
        place: Where to train; every process of a distributed run calls this.
        resume: Whether to continue the run in ``output``.

    Raises:
        InputError: If data, model, recipe or checkpoint cannot be used, or ``output`` holds a run already.
        Interrupted: If SIGTERM or SIGINT arrived; the run is then saved.
    """
    files = RunFiles(Path(output))
    content = read_checkpoint(files.last) if resume else None
    if not resume and files.last.exists():
        raise InputError(f"{output} holds a run already; continue it with --resume {output}, or name another --output")
    with _all_or_none(place):
        training, validation, classes, num_classes = open_data(recipe, check=content is None and place.rank == 0)
    torch.manual_seed(recipe.seed)
    model = create_network(recipe, num_classes, restored=content is not None)
    recipe = with_normalisation(recipe, model)
    _try_once(model, recipe, num_classes, min(2, recipe.batch_size // (place.world * recipe.grad_accum) or 1))
    if recipe.initial is not None and content is None:
        # Attention that does not preserve the function has no values in a plain network's weights.
        new = [f"*.{CHILD}.*"] if recipe.attach and not recipe.attach.get("preserve", True) else []
        load_checkpoint(model, recipe.initial, may_differ=[*recipe.may_differ, *new])
    batches = TrainingBatches(training, recipe, place)
    # What fits the device in training fits it in evaluation.
    held_out = evaluation_batches(validation, recipe, place, recipe.batch_size // (place.world * recipe.grad_accum))
    random_seed(recipe.seed, place.rank)
    images = training.fingerprint() if isinstance(training, Samples) else ""
    state = RunState(recipe, model, classes, num_classes, batches.steps, place, images=images)
    if content is not None:
        state.restore(content, files.last)

    def look() -> Scores:
        options = {"precision": recipe.precision, "channels_last": recipe.channels_last}
        return evaluate(state.evaluated, held_out, place, **options)

    with StopRequest(place) as stop, Progress(recipe, batches.steps, place, state.steps_done) as progress:
        if place.rank == 0:
            files.begin(recipe, state.position.history)
            if recipe.eval_steps:
                files.write_curve(state.position.curve)
        while state.position.epoch < recipe.epochs:
            _train_epoch(state, batches, files, stop, progress, look)
            if place.world > 1:
                distribute_bn(state.evaluated, place.world, reduce=True)
            progress.start_evaluation(len(validation))

            def watch(images: int) -> None:
                progress.advance(images)
                # All steps of the epoch are done; continuing begins with its evaluation.
                if place.world == 1 and stop.agreed():
                    raise Interrupted(files, state, stop)

            try:
                scores = evaluate(
                    state.evaluated,
                    held_out,
                    place,
                    precision=recipe.precision,
                    channels_last=recipe.channels_last,
                    watch=watch,
                )
            except Interrupted:
                _save(state, files)
                raise
            _finish_epoch(state, scores, files, progress)
            _name_failures(training, validation)
            if state.position.epoch < recipe.epochs and stop.agreed():
                raise Interrupted(files, state, stop)
        late = stop.signal if stop.agreed() else None
    best = state.position.best
    if best is None:
        raise InputError(f"epochs must be more than the {state.position.epoch} that the run has had")
    if place.rank == 0:
        files.finish(recipe, best, state.position.history)
    return Outcome(best, files, late)


@contextmanager
def _all_or_none(place: Place) -> Iterator[None]:
    """Ends all processes if one of them cannot go on, and lets that one alone say why."""
    failure = None
    try:
        yield
    except InputError as error:
        failure = error
    failed = [failure is not None]
    if place.world > 1:
        failed = [False] * place.world
        torch.distributed.all_gather_object(failed, failure is not None)
    if failure is not None and failed.index(True) == place.rank:
        raise failure
    if any(failed):
        raise SystemExit(BAD_INPUT)


def _try_once(model: nn.Module, recipe: Recipe, num_classes: int, count: int) -> None:
    """Sends images of zeros through a copy of the network, before anything is written or waited for."""
    images = torch.zeros(count, recipe.in_chans, recipe.img_size, recipe.img_size)
    with asked_for(model=recipe.model, img_size=recipe.img_size, model_args=recipe.model_args), torch.no_grad():
        logits = deepcopy(model).train()(images)
        shape = tuple(getattr(logits, "shape", ()))
        if shape != (count, num_classes):
            raise ValueError(f"it gives {shape or type(logits).__name__} and not ({count}, {num_classes})")


def open_data(recipe: Recipe, *, check: bool):
    """Training and validation data with the classes they share; one process looks the images over for all."""
    if not check:
        recipe = recipe.replaced(check_images=recipe.check_images and recipe.skip_bad_images)
    training = open_split(recipe, "train")
    classes = training.classes if isinstance(training, Samples) else None
    validation = open_split(recipe, "val", classes)
    num_classes = recipe.num_classes or len(classes or ())
    if not num_classes:
        raise DataError(f"{recipe.data} does not say how many classes it has; give --num-classes")
    if classes and num_classes < len(classes):
        raise DataError(f"num_classes is {num_classes} and {recipe.data} has {len(classes)} classes")
    return training, validation, classes, num_classes


def _train_epoch(
    state: RunState,
    batches: TrainingBatches,
    files: RunFiles,
    stop: StopRequest,
    progress: Progress,
    evaluated: Callable[[], Scores],
) -> None:
    recipe, place, position = state.recipe, state.place, state.position
    _set_mode(state)
    mixup = None
    if recipe.mixup or recipe.cutmix:
        mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=state.num_classes)
    # Reading a figure back from a GPU makes it wait; there, every tenth step is often enough.
    interval = 10 if place.device.type == "cuda" else 1
    totals = torch.tensor(position.totals, dtype=torch.float64 if place.device.type != "mps" else torch.float32)
    totals = totals.to(place.device)
    stream = batches.epoch(position.epoch, position.step)
    progress.start_epoch(position.epoch, position.step)
    if recipe.eval_steps and state.steps_done == 0:
        _add_to_curve(state, files, evaluated())
    while position.step < state.steps_per_epoch:
        _step(state, stream, batches.per_step, mixup, totals)
        position.step += 1
        last = position.step == state.steps_per_epoch
        look = position.step % interval == 0 or last
        saving = recipe.checkpoint_steps > 0 and position.step % recipe.checkpoint_steps == 0 and not last
        if look or saving:
            position.totals = totals.tolist()
            _require_finite(position.totals[0], state, files)
            progress.step(position.step, position.totals)
        if recipe.eval_steps and state.steps_done % recipe.eval_steps == 0:
            _add_to_curve(state, files, evaluated())
        stopping = look and stop.agreed()
        if saving or stopping:
            _save(state, files)
        if stopping:
            raise Interrupted(files, state, stop)


def _set_mode(state: RunState) -> None:
    """Training mode, but for the norms that the recipe freezes."""
    state.trained.train()
    if state.recipe.freeze_bn:
        for module in state.trained.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _add_to_curve(state: RunState, files: RunFiles, scores: Scores) -> None:
    """Notes how good the network is within an epoch, and goes back to training it."""
    _set_mode(state)
    curve = state.position.curve
    if curve and curve[-1]["step"] == state.steps_done:  # before a stop that came before the first step
        return
    curve.append({"step": state.steps_done, "val_loss": scores.loss, "val_top1": scores.top1})
    if state.place.rank == 0:
        files.write_curve(curve)


def _step(state: RunState, stream, micro_batches: int, mixup: Mixup | None, totals: Tensor) -> None:
    """One step of the optimiser: forward and backward over its micro-batches, then the update."""
    recipe, place, task = state.recipe, state.place, state.task
    for index in range(micro_batches):
        images, labels = next(stream)
        images, labels = images.to(place.device), labels.to(place.device)
        if recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        targets = labels
        if mixup is not None:
            images, targets = mixup(images, labels)
        more_to_come = index + 1 < micro_batches
        with task.no_sync() if more_to_come else nullcontext():
            with autocast(place, recipe.precision):
                result = task(images, targets)
            state.scaler.scale(result["loss"] / micro_batches).backward()
        with torch.no_grad():
            right = (result["output"].argmax(1) == labels).sum()
            totals[0] += result["loss"] * len(labels)
            totals[1] += right
            totals[2] += len(labels)
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
    state.task.update_ema(step=done)


def _finish_epoch(state: RunState, scores: Scores, files: RunFiles, progress: Progress) -> None:
    position, place = state.position, state.place
    totals = torch.tensor(position.totals, dtype=torch.float64, device=place.device)
    if place.world > 1:
        torch.distributed.all_reduce(totals)
    loss, right, images = totals.tolist()
    mixing = state.recipe.mixup or state.recipe.cutmix
    row = {
        "epoch": position.epoch + 1,
        "lr": state.lr,
        "train_loss": loss / images,
        # With mixed images there is no one right answer.
        "train_top1": math.nan if mixing else 100 * right / images,
        "val_loss": scores.loss,
        "val_top1": scores.top1,
        "val_top5": scores.top5,
        "images_per_second": progress.images_per_second,
    }
    position.history.append(row)
    position.epoch, position.step, position.totals = position.epoch + 1, 0, [0.0, 0.0, 0.0]
    improved = position.best is row
    if improved and place.rank == 0:
        write_checkpoint(state.weights(), files.best)
    _save(state, files)
    if place.rank == 0:
        files.add_row(row, position.history)
    progress.finish_epoch(row, improved)


def _save(state: RunState, files: RunFiles) -> None:
    content = state.snapshot()
    if state.place.rank == 0:
        write_checkpoint(content, files.last)


def _require_finite(loss: float, state: RunState, files: RunFiles) -> None:
    if not math.isfinite(loss):
        saved = f"the last good state is {files.last}" if files.last.exists() else "nothing was saved yet"
        raise InputError(
            f"the loss became {loss} in epoch {state.position.epoch + 1}, step {state.position.step}; {saved}. "
            f"A smaller lr (now {state.recipe.lr:g}), a longer warm-up or clip_grad may help"
        )


def _name_failures(*datasets) -> None:
    for dataset in datasets:
        failures = dataset.failures() if isinstance(dataset, Samples) else []
        if failures:
            logger.warning(
                "%d images could not be decoded and were replaced or not counted: %s",
                len(failures),
                ", ".join(failures[:5]),
            )
            dataset.failed.fill_(False)
