"""Everything that a training run is made of, so that it can be written down and taken up again to the bit."""

import logging
import random
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from ...checkpoints import CheckpointError
from ...errors import asked_for, listed
from ..device import Process
from ..tasks.task import Task

logger = logging.getLogger(__name__)


@dataclass
class Position:
    """Where a run stands: ``step`` optimiser steps into ``epoch``, with what it has seen.

    Attributes:
        epoch: Epochs finished.
        step: Steps finished in the current epoch.
        sums: What :meth:`Task.loss` gave over the current epoch, on this process.
        history: A row of figures for each finished epoch.
        curve: A row for each evaluation within the epochs.
    """

    sums: list[float]
    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)


class RunState:
    """Model, optimiser, schedule, loss scaling, averaged weights and randomness of one run.

    Args:
        task: What is trained, with the settings of the run.
        model: Network, on the CPU.
        steps_per_epoch: Optimiser steps of one epoch.
        process: Where to train.
    """

    def __init__(self, task: Task, model: nn.Module, steps_per_epoch: int, process: Process):
        self.task, self.process = task, process
        self.recipe = recipe = task.recipe
        self.images = task.fingerprint()
        self.position = Position([0.0] * task.sums)
        self.lr = recipe.peak_lr  # of the step before
        self.steps_per_epoch = steps_per_epoch
        if recipe.sync_bn and process.world_size > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model = process.to_device(model, channels_last=recipe.channels_last)
        self.trainer = task.create_trainer(model, process)
        with asked_for(opt=recipe.opt):
            self.optimizer = create_optimizer_v2(
                model,
                recipe.opt,
                lr=recipe.peak_lr,
                weight_decay=recipe.weight_decay,
                momentum=recipe.momentum,
                filter_bias_and_bn=not recipe.decay_norm_and_bias,
            )
        with asked_for(sched=recipe.sched):
            self.scheduler, _ = create_scheduler_v2(
                self.optimizer,
                recipe.sched,
                num_epochs=recipe.epochs,
                decay_epochs=recipe.decay_epochs,
                decay_milestones=tuple(recipe.decay_milestones),  # pyright: ignore[reportArgumentType]
                decay_rate=recipe.decay_rate,
                warmup_epochs=cast(int, recipe.warmup_epochs),  # parts of an epoch work as well
                warmup_lr=recipe.warmup_lr,
                min_lr=recipe.min_lr,
                step_on_epochs=False,
                updates_per_epoch=steps_per_epoch,
            )
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=recipe.precision == "fp16")
        if recipe.ema_decay is not None:
            self.trainer.setup_ema(decay=recipe.ema_decay, use_warmup=True)
        if task.compiles:
            self.trainer.compile()
        if process.world_size > 1:
            self.trainer.prepare_distributed(device_ids=[process.device] if process.device.type == "cuda" else None)

    @property
    def evaluated(self) -> nn.Module:
        """The network whose accuracy counts: the averaged one where there is one."""
        if self.trainer.has_ema():
            return cast(nn.Module, self.trainer.get_trainable_module(ema=True))
        return cast(nn.Module, self.trainer.eval_model) if self.task.compiles else self.model

    @property
    def trained(self) -> nn.Module:
        """The network as it is trained: compiled and distributed where asked for."""
        return cast(nn.Module, self.trainer.get_trainable_module())

    @property
    def best(self) -> dict[str, float] | None:
        """The first of the epochs with the highest score on the validation data."""
        history = self.position.history
        return max(history, key=lambda row: row[self.task.metric]) if history else None

    @property
    def steps_done(self) -> int:
        return self.position.epoch * self.steps_per_epoch + self.position.step

    def weights(self) -> dict[str, Any]:
        """Returns what an evaluation needs: weights, recipe and classes."""
        content = {
            **self.trainer.get_checkpoint_state(),
            **self.task.content(),
            "epoch": self.position.epoch,
            "best_acc": self.best[self.task.metric] if self.best else 0.0,
        }
        if self.trainer.has_ema():
            content |= self.trainer.get_checkpoint_state(ema=True)
        return content

    def snapshot(self) -> dict[str, Any]:
        """Returns the content of a checkpoint that :meth:`restore` continues from. All processes call it together."""
        own = {"random": _randomness(self.process.device), "totals": list(self.position.sums)}
        processes: list[Any] = [own]
        if self.process.world_size > 1:
            processes = [None] * self.process.world_size
            torch.distributed.all_gather_object(processes, own)
        return {
            **self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else {},
            "scaler": self.scaler.state_dict(),
            "step": self.position.step,
            "lr": self.lr,
            "steps_per_epoch": self.steps_per_epoch,
            "images": self.images,
            "history": self.position.history,
            "curve": self.position.curve,
            "processes": processes,
        }

    def restore(self, content: dict[str, Any], path: object) -> None:
        """Takes a run up where a checkpoint left it.

        Raises:
            CheckpointError: If the checkpoint is of another network, of another number of processes in the middle
                of an epoch, or was not written by a training run.
        """
        if "processes" not in content:
            raise CheckpointError(f"{path} holds weights and not a run to continue; start from it with --initial")
        classes = self.task.classes
        if content["classes"] != classes:
            unnamed = ["of unknown names"]
            raise CheckpointError(
                f"{path} was trained on the classes {listed(content['classes'] or unnamed, 8)}, and the data now have "
                f"{listed(classes or unnamed, 8)}; the labels would mean something else"
            )
        step = int(content["step"])
        if content["images"] != self.images:
            if step:
                raise CheckpointError(
                    f"{path} stands in the middle of an epoch over other images than those that are there now"
                )
            logger.warning("the training images are not those that the run has had so far")
        same = (
            content["steps_per_epoch"] == self.steps_per_epoch and len(content["processes"]) == self.process.world_size
        )
        if step and not same:
            raise CheckpointError(
                f"{path} stands in the middle of an epoch of {content['steps_per_epoch']} steps on "
                f"{len(content['processes'])} processes, and this run has {self.steps_per_epoch} steps on "
                f"{self.process.world_size}; continue it with the same batch size, data and processes"
            )
        try:
            self.trainer.load_checkpoint_state(content["state_dict"])
            if self.trainer.has_ema():
                ema = content.get("state_dict_ema") or content["state_dict"]
                self.trainer.load_checkpoint_state(ema, ema=True)
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is of another network or optimiser: {error}") from error
        if self.scheduler:
            # The length of the schedule is the recipe's, which may have been changed to train for longer.
            self.scheduler.step_update(int(content["epoch"]) * self.steps_per_epoch + step)
        self.scaler.load_state_dict(content["scaler"])
        self.lr = float(content["lr"])
        self.position.epoch, self.position.step = int(content["epoch"]), step
        self.position.history, self.position.curve = list(content["history"]), list(content.get("curve", []))
        if len(content["processes"]) == self.process.world_size:
            own = content["processes"][self.process.rank]
            self.position.sums = list(own["totals"])
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
