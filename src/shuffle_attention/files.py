"""Files that are written whole or not at all, and folders that one process at a time writes to."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import InputError

_UNFINISHED = ".unfinished-"


def remove_left_over(folder: Path) -> None:
    """Removes what a process that was killed while it wrote has left in a folder."""
    for path in folder.glob(f".*{_UNFINISHED}*"):
        path.unlink()


def require_folder_of(option: str, file: str | os.PathLike | None) -> None:
    """Raises InputError unless the folder is there that an option wants a file written to; None wants none."""
    if file is not None and not Path(file).resolve().parent.is_dir():
        raise InputError(f"{option} {file}: there is no folder {Path(file).parent}")


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A file to write to that takes the place of ``path`` when it is complete and on disk.

    Whatever stops the writing, the path holds, at every moment, what it held before or all of what is new.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{_UNFINISHED}")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        # A signal that came right after the replacement finds it gone.
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike, content: Any, indent: int | None = 1) -> None:
    """Writes JSON whole or not at all. Infinities and what is no number are null: JSON has no word for them."""
    write_text(path, json.dumps(_in_json(content), indent=indent, allow_nan=False) + "\n")


def _in_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a folder for this process, until the end of the block or of the process, however it ends.

    Raises:
        InputError: If another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where a folder cannot be locked
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process is working in {folder}; wait for it, or name another folder") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        # Loader processes have the descriptor too: closing it here alone would not let the folder go.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
