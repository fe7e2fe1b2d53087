"""The processes that load images: they leave signals to the main process, and go when it goes."""

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing import util
from multiprocessing.synchronize import Event
from types import FrameType


def ignore_signals(before: Callable[[int], None] | None = None) -> Callable[[int], None]:
    """Returns a ``worker_init_fn`` of loaders whose processes a signal does not end, but the main process does.

    A signal to a terminal's or a job's whole process group must not end them before the run has stopped.

    Args:
        before: What else is to be done first as a process begins, given its number.
    """
    return partial(_begin, before=before, leaving=_leaving())


@functools.cache
def _leaving() -> Event:
    """Set as this process leaves, when Python sends SIGTERM to those that still load and waits for their end.

    Where an error is not caught, its traceback keeps the loaders alive until then.
    """
    event = multiprocessing.Event()
    util.Finalize(None, event.set, exitpriority=0)
    return event


def _begin(worker: int, before: Callable[[int], None] | None, leaving: Event) -> None:
    if before is not None:
        before(worker)

    def heed(number: int, frame: FrameType | None) -> None:
        if leaving.is_set():
            os._exit(128 + number)

    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):  # Windows has no SIGHUP
        signal.signal(getattr(signal, name), heed)
