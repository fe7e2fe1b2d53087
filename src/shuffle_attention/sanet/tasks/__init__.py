"""Tasks that can be trained: one module or folder per task, and those that other packages register."""

import os
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...errors import InputError

if TYPE_CHECKING:  # importing a task loads torch and more, which `sanet --help` does without
    from .predictor import Predictor
    from .task import Task

_BEFORE_KINDS = "classifier"  # checkpoints without a kind are from before there was a second task
_registered: dict[str, "type[Task]"] = {}


def register_task(task: "type[Task]") -> "type[Task]":
    """Make a task from outside this package known under the kind of its recipe; usable as a decorator."""
    _registered[task.Recipe.kind] = task
    return task


def all_tasks() -> "Iterator[type[Task]]":
    """Yield every task: registered ones, then ``TASK`` of ``tasks/NAME.py`` or ``tasks/NAME/task.py``."""
    yield from _registered.values()
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        content = import_module(f"{module.name}.task" if module.ispkg else module.name)
        if hasattr(content, "TASK"):
            yield content.TASK


def task_named(kind: str) -> "type[Task]":
    """Return the task whose recipes are of a kind, such as ``classifier``.

    Raises:
        InputError: If there is no such task.
    """
    kinds = []
    for task in all_tasks():  # lazy: a classifier does not wait for torchvision's detectors
        if task.Recipe.kind == kind:
            return task
        kinds.append(task.Recipe.kind)
    raise InputError(f"no task {kind!r}; there are {', '.join(kinds)}")


def task_of(content: dict[str, Any]) -> "type[Task]":
    """Return the task that the content of a checkpoint belongs to.

    Raises:
        InputError: If no such task is installed.
    """
    return task_named(str(content.get("kind", _BEFORE_KINDS)))


def restore(path: str | os.PathLike, **options: Any) -> "Predictor":
    """Return the model in a file of any task, ready to predict.

    Args:
        path: A checkpoint, published weights of a classifier, or a deployed file.
        options: Options of the task's own :meth:`Task.restore`.

    Raises:
        CheckpointError: If the file cannot be read, or its model is unknown.
    """
    from ... import deploy
    from ...checkpoints import read_checkpoint

    content = deploy.load(path).metadata if deploy.is_deployed(path) else read_checkpoint(path)
    return task_of(content).restore(path, **options)
