"""Distillation: a classifier learns from the logits of a teacher as well as from the labels."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model_pretrained
from timm.task import DistillationTeacher, LogitDistillationTask
from torch import nn

from ....errors import InputError, asked_for, brief, listed
from ...device import Process
from ...network import require_model, with_normalisation
from ...recipes.recipe import Recipe
from .predictor import restore_network


@dataclass(frozen=True)
class Teacher:
    """A teacher with the normalisation of its input.

    Attributes:
        model: The classifier, on the CPU.
        mean: Mean per channel of the pixels that it takes, 0 to 1.
        std: Standard deviation per channel.
        digest: Digest of its weights.
    """

    model: nn.Module
    mean: list[float]
    std: list[float]
    digest: str


def require_teacher(name: str) -> None:
    """Raise InputError unless a teacher is a file, a folder, or a model that timm has pretrained weights of."""
    if Path(name).exists():
        return
    if Path(name).suffix in (".pt", ".pth", ".tar", ".safetensors") or "/" in name:
        raise InputError(f"teacher: no checkpoint at {name}")
    require_model(name)
    if not is_model_pretrained(name):
        raise InputError(f"teacher: timm has no pretrained weights of {name}; name a checkpoint")


def open_teacher(recipe: Recipe, classes: list[str] | None, num_classes: int) -> Teacher:
    """Return the teacher of a recipe.

    Args:
        recipe: Recipe of the model that learns.
        classes: Names of its classes, if they are known.
        num_classes: Number of its classes.

    Raises:
        InputError: If the teacher cannot be had, has other classes or another input, or is not the one that the run
            began with.
    """
    name, known = str(recipe.teacher), None
    with torch.random.fork_rng(devices=[]):  # initialising a model draws random numbers
        if Path(name).exists():
            restored = restore_network(name)
            if restored.is_deployed:
                raise InputError(f"teacher {name} is a deployed file; name its checkpoint")
            model, view, count = restored.model, restored.recipe, restored.num_classes
            known = restored.classes if restored.knows_data else None
        else:
            try:
                model: Any = timm.create_model(name, pretrained=True, in_chans=recipe.in_chans)
            except Exception as error:  # networks, hubs and files fail in many ways
                reason = brief(str(error) or type(error).__name__, quoted=False)
                raise InputError(f"teacher {name}: its pretrained weights cannot be had: {reason}") from error
            view = with_normalisation(Recipe(model=name, in_chans=recipe.in_chans), model)
            count = model.num_classes
    if count != num_classes:
        raise InputError(f"teacher {name} tells {count} classes apart, and the data have {num_classes}")
    if known and classes and known != classes:
        raise InputError(
            f"teacher {name} has the classes {listed([*map(str, known)], 8)}, and the data {listed(classes, 8)}; "
            "its logits would not mean the same"
        )
    if view.in_chans != recipe.in_chans:
        raise InputError(f"teacher {name} takes images of {view.in_chans} channels, and in_chans is {recipe.in_chans}")
    model.eval().requires_grad_(False)
    side = recipe.img_size
    with asked_for(teacher=name, img_size=side), torch.no_grad():
        shape = tuple(model(torch.zeros(1, recipe.in_chans, side, side)).shape)
        if shape != (1, num_classes):
            raise ValueError(f"it returns {shape}, not (1, {num_classes})")
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    if recipe.teacher_digest not in ("", digest.hexdigest()):
        raise InputError(
            f"teacher {name} has other weights than the teacher that this run began with; put that one back"
        )
    return Teacher(model, list(view.mean or ()), list(view.std or ()), digest.hexdigest())


def distillation(
    model: nn.Module, teacher: Teacher, recipe: Recipe, process: Process, **options: Any
) -> LogitDistillationTask:
    """Return timm's wrapper of a model in training that learns from a teacher.

    The loss is (1 - a) L + a T^2 KL(softmax(z' / T) || softmax(z / T)), with the loss L of the labels, the logits z of
    the model and z' of the teacher, both (B, classes), ``distill_alpha`` a and ``distill_temperature`` T (Hinton et
    al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531).

    Args:
        model: Model that learns, whose input is normalised as the recipe says.
        teacher: Its teacher.
        recipe: Recipe of the model.
        process: This process.
        options: Arguments of timm's tasks.
    """
    frozen = process.to_device(teacher.model, channels_last=recipe.channels_last)
    task = LogitDistillationTask(
        model,
        DistillationTeacher(frozen, device=process.device),
        distill_loss_weight=recipe.distill_alpha,
        task_loss_weight=1 - recipe.distill_alpha,
        temperature=recipe.distill_temperature,
        **options,
    )
    # timm takes the normalisation of the pretrained weights, and not of the images.
    for owner, name, values in (
        (task, "student_mean", recipe.mean),
        (task, "student_std", recipe.std),
        (task.teacher, "mean_kd", teacher.mean),
        (task.teacher, "std_kd", teacher.std),
    ):
        setattr(owner, name, torch.tensor(values, device=process.device).view(1, -1, 1, 1))
    return task
