"""State of a training run: saved, and restored bit for bit."""

import logging
import math
import os
import random
from signal import Signals
from typing import Any, NoReturn, cast

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import unwrap_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from ...checkpoints import CheckpointError, write_checkpoint
from ...errors import BAD_INPUT, InputError, listed
from ..device import Process
from ..tasks.task import Task
from .run_folder import RunFolder
from .schedule import create_optimizer, create_schedule, freeze
from .signals import Interrupted, StopRequest

logger = logging.getLogger(__name__)
# Settings of the optimiser that a continued run takes from its recipe and not from its checkpoint.
_OF_RECIPE = ("lr", "lr_scale", "initial_lr", "weight_decay", "momentum")


class RunState:
    """Model, optimiser, schedule, loss scaling, averaged weights, randomness and position of a run.

    Attributes:
        epoch: Epochs finished.
        step: Steps finished in the current epoch.
        sums: Sums over the current epoch that :meth:`Task.loss` returned on this process.
        history: A row of metrics per finished epoch.
        curve: A row of metrics per evaluation within the epochs.
        gates: A row of the activity of each layer's gates per finished epoch, empty without gates.
        lr: Learning rate of the last step.
        stop: Signal that arrived after the last step of the run, or None.
        first_loss: Mean loss up to the first time that it was read in this process, or None.
        saved_step: Step of its epoch at which the last checkpoint was saved.
        start: Content of a checkpoint from before the first step, until the first epoch is over; None if resumed.
    """

    def __init__(self, task: Task, model: nn.Module, steps_per_epoch: int, process: Process, files: RunFolder):
        self.task, self.process, self.files = task, process, files
        self.recipe = recipe = task.recipe
        self.images = task.fingerprint()
        self.epoch = self.step = 0
        self.sums = [0.0] * task.sums
        self.history: list[dict[str, float]] = []
        self.curve: list[dict[str, float]] = []
        self.gates: list[dict[str, float]] = []
        self.lr = recipe.peak_lr
        self.stop: Signals | None = None
        self.steps_per_epoch = steps_per_epoch
        if recipe.sync_bn and process.world_size > 1:
            model = convert_sync_batchnorm(model)
            model.state_dict()  # attention that is attached to norms moves to the new ones
        freeze(model, recipe.freeze)
        self.model = model = process.to_device(model, channels_last=recipe.channels_last)
        self.trainer = task.create_trainer(model, process)
        self.optimizer = create_optimizer(model, recipe)
        self.scheduler = create_schedule(self.optimizer, recipe, steps_per_epoch)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=recipe.precision == "fp16")
        if recipe.ema_decay is not None:
            self.trainer.setup_ema(decay=recipe.ema_decay, use_warmup=True)
        if task.compiles:
            self.trainer.compile()
        self.first_loss: float | None = None
        self.start: dict[str, Any] | None = None
        self.saved_step = 0
        self._not_finite = set(self._broken())
        if process.world_size > 1:
            self.trainer.prepare_distributed(device_ids=[process.device] if process.device.type == "cuda" else None)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated: the averaged one if there is one."""
        if self.trainer.has_ema():
            return cast(nn.Module, self.trainer.get_trainable_module(ema=True))
        return cast(nn.Module, self.trainer.eval_model) if self.task.compiles else self.model

    @property
    def watched(self) -> nn.Module:
        """The model that is evaluated, not compiled, so that its layers can be watched."""
        return unwrap_model(self.evaluated) if self.trainer.has_ema() else self.model

    @property
    def trained(self) -> nn.Module:
        """The model that is trained, compiled and distributed if the recipe asks for it."""
        return cast(nn.Module, self.trainer.get_trainable_module())

    @property
    def best(self) -> dict[str, float] | None:
        """Row of the first epoch with the best score on the validation data."""
        return self.task.best_of(self.history) if self.history else None

    @property
    def stalled(self) -> bool:
        """Whether the last epochs, as many as the recipe's ``patience``, were not better than the best one."""
        best = self.best
        return bool(self.recipe.patience and best and self.epoch - best["epoch"] >= self.recipe.patience)

    def set_training_mode(self) -> None:
        """Set the mode in which the model is trained; norms whose parameters are frozen keep their statistics."""
        self.task.set_training_mode(self.trained)
        for module in self.model.modules() if self.recipe.freeze else ():
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                module.eval()

    @property
    def steps_done(self) -> int:
        """Optimiser steps since the start of the run."""
        return self.epoch * self.steps_per_epoch + self.step

    def weights(self) -> dict[str, Any]:
        """Return the content of a checkpoint to evaluate: weights, recipe and classes."""
        content = {
            **self.trainer.get_checkpoint_state(),
            **self.task.content(),
            "epoch": self.epoch,
            "best_acc": self.best[self.task.metric] if self.best else 0.0,
        }
        if self.trainer.has_ema():
            content |= self.trainer.get_checkpoint_state(ema=True)
        return content

    def snapshot(self) -> dict[str, Any]:
        """Return the content of a checkpoint to continue from; all processes call it together."""
        own = {"random": _randomness(self.process.device), "totals": list(self.sums)}
        processes = self.process.gather(own)
        return {
            **self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else {},
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "lr": self.lr,
            "steps_per_epoch": self.steps_per_epoch,
            "images": self.images,
            "history": self.history,
            "curve": self.curve,
            "gates": self.gates,
            "processes": processes,
        }

    def save(self) -> None:
        """Write the checkpoint to continue from; all processes call it together.

        While it is of the middle of an epoch, ``files.good`` keeps the one of the end of the last epoch, whose
        weights a validation has shown to work, or of the start of the run.

        Raises:
            InputError: If weights in the middle of an epoch are not finite; nothing is written then.
        """
        if self.step:
            self.require_finite(weights=True)
        content = self.snapshot()
        if self.process.rank == 0:
            if self.step and not self.files.good.exists():
                if self.start is not None:
                    write_checkpoint(self.start, self.files.good)
                elif not self.saved_step:
                    self.files.keep_good()
            write_checkpoint(content, self.files.last)
            if not self.step:
                self.files.good.unlink(missing_ok=True)
                self.start = None
        self.saved_step = self.step

    def keep_start(self) -> None:
        """Keep the present state, to go back to if the first epoch fails; all processes call it together."""
        content = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu().clone(), self.snapshot())
        self.start = content if self.process.rank == 0 else None

    def require_finite(self, loss: float = 0.0, name: str = "loss", *, weights: bool = False) -> None:
        """Stop the run if a loss or, if asked to check them, a weight is NaN or infinite on any process.

        ``last.pt`` then has the last state that is known to be good. All processes call it together.

        Args:
            loss: The loss.
            name: Its name for people.
            weights: Whether to check the weights as well.

        Raises:
            InputError: If they are not finite, in the first process; the others exit.
        """
        broken = [key for key in self._broken() if key not in self._not_finite] if weights else []
        if self.process.largest(bool(broken) or not math.isfinite(loss)):
            what = "NaN or infinite in another process" if math.isfinite(loss) else str(loss)
            what = f"weights became NaN or infinite ({listed(broken, 3)})" if broken else f"the {name} became {what}"
            self.stop_diverged(what)

    def stop_diverged(self, what: str) -> NoReturn:
        """Put the last good state into ``last.pt`` and end the run with advice; all processes call it together.

        Raises:
            InputError: In the first process; the others exit.
        """
        if self.process.rank != 0:
            raise SystemExit(BAD_INPUT)
        last, recipe, kind = self.files.last, self.recipe, "good"
        of = f"the end of epoch {len(self.history)}" if self.history else "the start of the run"
        if self.files.good.exists():
            os.replace(self.files.good, last)
        elif self.start is not None:
            write_checkpoint(self.start, last)
        elif self.saved_step:
            kind, of = "saved", f"step {self.saved_step} of that epoch, and may be bad already"
        raise InputError(
            f"{what} in epoch {self.epoch + 1}, step {self.step} of {self.steps_per_epoch}. The last {kind} state "
            f"is {last}, of {of}. A smaller lr (now {recipe.lr:g}), a longer warm-up (warmup_epochs) or clip_grad may "
            f"help: {recipe.command} --resume {self.files.folder} --lr {recipe.lr / 10:g}"
        )

    def _broken(self) -> list[str]:
        """Return the names of weights and statistics of the models that are NaN or infinite."""
        models = {id(model): model for model in (self.model, self.evaluated)}.values()
        entries = [entry for model in models for entry in model.state_dict().items() if entry[1].is_floating_point()]
        if bool(torch.stack([value.isfinite().all() for _, value in entries]).all()):  # synchronises once
            return []
        return [name for name, value in entries if not value.isfinite().all()]

    def interrupted(self, stop: StopRequest) -> Interrupted:
        """Return the exception that ends this run, which is saved."""
        where = f"after step {self.step} of {self.steps_per_epoch} in epoch {self.epoch + 1}; saved"
        return Interrupted(int(stop.signal or 0), where, f"{self.recipe.command} --resume {self.files.folder}")

    def restore(self, content: dict[str, Any], path: object) -> None:
        """Continue from the content of a checkpoint.

        Raises:
            CheckpointError: If it belongs to another model or other data, was written in the middle of an epoch by
                another number of processes, or holds weights alone.
        """
        if "processes" not in content:
            raise CheckpointError(f"{path} holds weights and not a run to continue; start from it with --initial")
        classes = self.task.classes
        if content["classes"] != classes:
            unnamed = ["of unknown names"]
            raise CheckpointError(
                f"{path} was trained on the classes {listed(content['classes'] or unnamed, 8)}, and the data now have "
                f"{listed(classes or unnamed, 8)}; the labels would no longer mean the same"
            )
        step = int(content["step"])
        if content["images"] != self.images:
            if step:
                raise CheckpointError(
                    f"{path} was saved in the middle of an epoch over other images than the present ones"
                )
            logger.warning("the training images are not those that the run was trained on so far")
        same = (
            content["steps_per_epoch"] == self.steps_per_epoch and len(content["processes"]) == self.process.world_size
        )
        if step and not same:
            raise CheckpointError(
                f"{path} was saved in the middle of an epoch of {content['steps_per_epoch']} steps on "
                f"{len(content['processes'])} processes, and this run has {self.steps_per_epoch} steps on "
                f"{self.process.world_size}; continue it with the same batch size, data and processes"
            )
        try:
            self.trainer.load_checkpoint_state(content["state_dict"])
            if self.trainer.has_ema():
                ema = content.get("state_dict_ema") or content["state_dict"]
                self.trainer.load_checkpoint_state(ema, ema=True)
            own = [{name: group[name] for name in _OF_RECIPE if name in group} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(content["optimizer"])
            for group, settings in zip(self.optimizer.param_groups, own, strict=True):
                group.update(settings)
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} belongs to another model or optimiser: {error}") from error
        if self.scheduler:
            # The recipe, not the checkpoint, gives the length of the schedule: it may have been extended.
            self.scheduler.step_update(int(content["epoch"]) * self.steps_per_epoch + step)
        self.scaler.load_state_dict(content["scaler"])
        self.lr = float(content["lr"])
        self.epoch, self.step = int(content["epoch"]), step
        self.saved_step = step
        self.history, self.curve = list(content["history"]), list(content.get("curve", []))
        self.gates = list(content.get("gates", []))
        if len(content["processes"]) == self.process.world_size:
            own = content["processes"][self.process.rank]
            self.sums = list(own["totals"])
            _set_randomness(own["random"], self.process.device)


def _randomness(device: torch.device) -> dict[str, Any]:
    numpy: Any = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_randomness(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
