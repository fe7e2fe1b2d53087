"""Files that are written completely or not at all."""

import csv
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import InputError

_UNFINISHED = ".unfinished-"


def remove_left_over(folder: Path) -> None:
    """Remove the temporary files that a process killed while writing left in a folder."""
    for path in folder.glob(f".*{_UNFINISHED}*"):
        path.unlink()


def require_folder_of(option: str, file: str | os.PathLike | None) -> None:
    """Raise ``InputError`` unless the folder of a file to be written exists, or if it is a folder; None passes."""
    if file is not None and not Path(file).resolve().parent.is_dir():
        raise InputError(f"{option} {file}: there is no folder {Path(file).parent}")
    if file is not None and Path(file).is_dir():
        raise InputError(f"{option} {file} is a folder; name a file")


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open a file for writing that replaces ``path`` when it is complete and on disk.

    Whatever interrupts the writing, ``path`` holds either its previous content or all of the new content.
    """
    path, temporary = Path(path), None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{_UNFINISHED}")
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        # No space left on device, but for which file? The name of the temporary one tells nobody.
        if isinstance(error, OSError) and (error.filename is None or _UNFINISHED in str(error.filename)):
            error.filename = str(path)
        # A signal may arrive right after the replacement, when the temporary file is gone.
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file completely or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike, content: Any, indent: int | None = 1) -> None:
    """Write JSON completely or not at all. Infinities and NaN become null, since JSON cannot represent them."""
    write_text(path, json.dumps(_in_json(content), indent=indent, allow_nan=False) + "\n")


def _in_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write a CSV file completely or not at all, with 10 significant digits per float.

    Args:
        path: File to write.
        rows: Values by column; a missing one leaves its cell empty.
        columns: Columns of the header; by default those of the first row.
    """
    text = io.StringIO()
    if columns or rows:
        writer = csv.DictWriter(text, columns or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.10g}" if isinstance(v, float) else v for k, v in row.items()})
    write_text(path, text.getvalue())


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, of all files of a folder by name, or of both files of an OpenVINO model."""
    path = Path(path)
    pair = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    parts = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else pair
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
