"""Files that are written whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_UNFINISHED = ".unfinished-"


def remove_left_over(folder: Path) -> None:
    """Removes what a process that was killed while it wrote has left in a folder."""
    for path in folder.glob(f".*{_UNFINISHED}*"):
        path.unlink()


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[IO[bytes]]:
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
        os.unlink(temporary)
        raise
