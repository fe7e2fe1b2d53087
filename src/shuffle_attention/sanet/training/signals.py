"""Signals that stop a run: the first is granted at the next step, a second one at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from ..device import Process


class Interrupted(BaseException):
    """A signal stopped a command; a run in training was saved before.

    Args:
        number: The signal.
        where: After which step of a run, if one was in training.
        continuation: Command that continues the run.

    Attributes:
        exit_code: 128 plus the number of the signal, as a shell reports it.
        where: Signal and step; empty if no run was in training.
    """

    def __init__(self, number: int, where: str = "", continuation: str = ""):
        stopped = f"stopped by {signal.Signals(number).name}"
        self.exit_code = 128 + number
        self.where = f"{stopped} {where}" if where else ""
        super().__init__(f"{self.where}. Continue with: {continuation}" if where else stopped)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGTERM, SIGINT and, unless it is ignored (nohup), SIGHUP; only the main thread can receive signals."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _silence_closed_terminal(number: int) -> None:
    """Redirect output of a closed terminal to nowhere, since writing to it would fail before the run is saved."""
    if signal.Signals(number).name != "SIGHUP":
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


class StopRequest:
    """While entered, note the first signal instead of ending the process; a second one ends it.

    Under torchrun a Ctrl-C arrives twice, from the terminal and from torchrun: there a second signal counts only
    after a second. SIGHUP may come from shell and system, and never ends the process at once.

    Attributes:
        signal: The signal that was received, or None.
    """

    def __init__(self, process: Process):
        self.process = process
        self.signal: signal.Signals | None = None
        self._since = 0.0
        self._handled = _handled(self._note)

    def __enter__(self) -> "StopRequest":
        self._handled.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._handled.__exit__(*error)

    def _note(self, number: int, frame: FrameType | None) -> None:
        _silence_closed_terminal(number)
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
        elif signal.Signals(number).name != "SIGHUP" and (
            self.process.world_size == 1 or time.monotonic() - self._since > 1
        ):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def agreed(self) -> bool:
        """Return whether any process received a signal; all call it together, so that all stop at the same step."""
        if number := self.process.largest(self.signal or 0):
            self.signal = self.signal or signal.Signals(number)
        return self.signal is not None


def stop_signals_raised() -> AbstractContextManager[None]:
    """Return a context in which signals raise :class:`Interrupted` wherever no :class:`StopRequest` is entered."""

    def stop(number: int, frame: FrameType | None) -> None:
        _silence_closed_terminal(number)
        raise Interrupted(number)

    return _handled(stop)
