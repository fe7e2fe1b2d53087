"""The lock of a run: one process at a time writes to its folder."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ...errors import InputError

logger = logging.getLogger(__name__)
LOCK = ".lock"  # in a folder while a process has reserved it


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Reserve a folder for this process until the block ends or the process dies, however it dies.

    Raises:
        InputError: If another process has reserved it.
    """
    # Only filelock 4, for Python 3.11, releases the lock in forked loader processes. With an older one they hold it for
    # the 5 seconds in which they notice that the main process was killed.
    patience = 0 if sys.version_info >= (3, 11) else 6
    lock = FileLock(folder / LOCK)
    try:
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            if not patience:
                raise
            logger.warning("waiting up to %d seconds for another process to leave %s", patience, folder)
            held = lock.acquire(timeout=patience)
    except Timeout as error:
        raise InputError(f"another process is working in {folder}; wait for it, or name another folder") from error
    except NotImplementedError:  # a file system without locks
        yield
        return
    with held:
        try:
            yield
        finally:
            with suppress(OSError):  # Windows does not remove an open file
                (folder / LOCK).unlink()
