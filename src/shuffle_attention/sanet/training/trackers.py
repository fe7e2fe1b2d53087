"""Trackers: the programs that a run sends its metrics to, step by step and epoch by epoch."""

import importlib
import importlib.util
import json
import logging
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ...errors import InputError, brief, require_extra, unknown
from ...files import write_json
from .signals import Interrupted

logger = logging.getLogger(__name__)
IDS = "trackers.json"  # in the folder of a run: the id of its record in each tracker
_PROJECT = "shuffle-attention"
_registered: dict[str, "type[Tracker]"] = {}
T = TypeVar("T", bound="type[Tracker]")


class Tracker(ABC):
    """A program that records runs. Errors of any kind may be raised: :class:`Trackers` handles them.

    Attributes:
        name: Name in a recipe's ``tracker``.
        module: Package that it needs, which the extra of the same name as the tracker brings.
    """

    name: ClassVar[str]
    module: ClassVar[str]

    @cached_property
    def package(self) -> Any:
        """The package, which is imported only where the tracker is used."""
        return importlib.import_module(self.module)

    @abstractmethod
    def start(self, folder: Path, settings: Mapping[str, Any], id: str | None) -> str:
        """Start the record of a run, or continue the one with an id; return the id of the record.

        Args:
            folder: Folder of the run.
            settings: Fields of its recipe.
            id: What this method returned when the run was started; None for a new record.
        """

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int, epoch: int | None) -> None:
        """Record metrics of an optimiser step or, if ``epoch`` is given, of an epoch, which ended at that step."""

    @abstractmethod
    def finish(self, status: str) -> None:
        """End the record of a run that is ``finished``, was ``stopped`` by a signal, or has ``failed``."""


def register_tracker(tracker: T) -> T:
    """Make a tracker known by its name; usable as a decorator."""
    _registered[tracker.name] = tracker
    return tracker


def require_trackers(names: Sequence[str]) -> None:
    """Raise InputError unless all trackers are known, and their packages are installed."""
    for name in names:
        if name not in _registered:
            raise unknown("tracker", name, _registered)
        require_extra(_registered[name].module, extra=name, note=f", or leave out --tracker {name}")


class Trackers:
    """The trackers of a run in this process. One that fails is left out from then on, with a warning."""

    def __init__(self) -> None:
        self._active: list[Tracker] = []

    def start(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any], *, resumed: bool) -> None:
        """Start the named trackers, and TensorBoard if it is installed.

        Raises:
            InputError: If a tracker cannot be started.
        """
        file = folder / IDS
        ids = _read_ids(file) if resumed and file.exists() else {}
        installed = [TensorBoard.name] if importlib.util.find_spec(TensorBoard.module) else []
        for name in dict.fromkeys([*installed, *names]):
            tracker = _registered[name]()
            try:
                ids[name] = tracker.start(folder, settings, ids.get(name))
            except Exception as error:  # whatever the package raises
                message = f"tracker {name} cannot be started: {_reason(error)}"
                if name in names:
                    raise InputError(message) from error
                logger.warning(message)
                continue
            self._active.append(tracker)
        if names:
            write_json(file, {name: id for name, id in ids.items() if id})
        elif not resumed:
            file.unlink(missing_ok=True)

    def log(self, values: Mapping[str, float], step: int, epoch: int | None = None) -> None:
        """Record metrics of a step, or of an epoch that ended at that step."""
        self._call("log", values, step, epoch)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        stopped = error is not None and issubclass(error, Interrupted | KeyboardInterrupt)
        self._call("finish", "stopped" if stopped else "failed" if error else "finished")

    def _call(self, method: str, *arguments: Any) -> None:
        for tracker in [*self._active]:
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # whatever the package raises: the training is worth more than its record
                self._active.remove(tracker)
                logger.warning("tracker %s failed, and records no more of this run: %s", tracker.name, _reason(error))


def _read_ids(file: Path) -> dict[str, str]:
    """Return the ids in the file of a run."""
    try:
        ids = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); without it the run starts new records") from error
    if not isinstance(ids, dict) or not all(isinstance(id, str) for id in ids.values()):
        raise InputError(f"{file} does not hold the ids of a run's records; without it the run starts new ones")
    return ids


def _reason(error: Exception) -> str:
    return brief(str(error) or type(error).__name__, quoted=False)


@register_tracker
class TensorBoard(Tracker):
    """Event files in the folder of the run, as TensorBoard reads them."""

    name = module = "tensorboard"

    def start(self, folder: Path, settings: Mapping[str, Any], id: str | None) -> str:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(folder))
        return ""  # it continues whatever is in the folder

    def log(self, values: Mapping[str, float], step: int, epoch: int | None) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step if epoch is None else epoch)
        if epoch is not None:
            self._writer.flush()

    def finish(self, status: str) -> None:
        self._writer.close()


@register_tracker
class MLflow(Tracker):
    """A run of MLflow, at its tracking URI (``MLFLOW_TRACKING_URI``)."""

    name = module = "mlflow"

    def start(self, folder: Path, settings: Mapping[str, Any], id: str | None) -> str:
        self._client = self.package.MlflowClient()
        if id is not None:
            self._client.update_run(id, status="RUNNING")
        else:
            title = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            experiment = self._client.get_experiment_by_name(title)
            number = experiment.experiment_id if experiment else self._client.create_experiment(title)
            id = str(self._client.create_run(number, run_name=str(folder)).info.run_id)
            parameters = [
                self.package.entities.Param(name, brief(value, quoted=False)) for name, value in settings.items()
            ]
            self._client.log_batch(id, params=parameters)
        self._id = id
        return id

    def log(self, values: Mapping[str, float], step: int, epoch: int | None) -> None:
        at = (int(1000 * time.time()), step if epoch is None else epoch)
        metrics = [self.package.entities.Metric(name, value, *at) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, status: str) -> None:
        self._client.set_terminated(self._id, {"finished": "FINISHED", "stopped": "KILLED"}.get(status, "FAILED"))


@register_tracker
class WeightsAndBiases(Tracker):
    """A run of Weights & Biases; its files are in the folder of the run, and ``WANDB_MODE=offline`` sends nothing."""

    name = module = "wandb"

    def start(self, folder: Path, settings: Mapping[str, Any], id: str | None) -> str:
        id = id or secrets.token_hex(8)
        self._run = self.package.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            dir=os.environ.get("WANDB_DIR", folder),
            id=id,
            name=os.environ.get("WANDB_NAME", str(folder)),
            config=dict(settings),
            allow_val_change=True,
            resume="allow",
            reinit="create_new",  # a run of the caller's goes on
            settings=self.package.Settings(console="off"),  # the progress bar stays as it is
        )
        self._run.define_metric("*", step_metric="epoch")
        self._run.define_metric("step/*", step_metric="step")
        return id

    def log(self, values: Mapping[str, float], step: int, epoch: int | None) -> None:
        self._run.log({**values, **({"step": step} if epoch is None else {"epoch": epoch})}, step=step)

    def finish(self, status: str) -> None:
        self._run.finish(exit_code=int(status != "finished"))


@register_tracker
class Trackio(Tracker):
    """A run of trackio, in its own folder (``TRACKIO_DIR``)."""

    name = module = "trackio"

    def start(self, folder: Path, settings: Mapping[str, Any], id: str | None) -> str:
        id = id or f"{folder.name}-{secrets.token_hex(4)}"  # trackio finds a run again by its name
        self._run = self.package.init(
            project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
            name=id,
            config=dict(settings),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return id

    def log(self, values: Mapping[str, float], step: int, epoch: int | None) -> None:
        self._run.log({**values, **({} if epoch is None else {"epoch": epoch})}, step=step)

    def finish(self, status: str) -> None:
        self.package.finish()
