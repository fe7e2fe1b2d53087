"""The folder of the uploads, bounded in size and age, and the images in it, checked before a pixel is decoded."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from PIL import Image

from ...errors import DataError
from ..data.images import FORMATS, open_image, to_mode, turned
from ..training.run_lock import LOCK, run_lock

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
# A network resizes the shorter side to its own, and the longer one with it: a line of pixels would fill the memory.
MAX_RATIO = 20
KEPT_SIDE = 2048  # pixels of the longer side that are kept
MAX_TOTAL = 25 * MAX_BYTES  # of all uploads, those on their way included
KEPT = 60  # seconds for an upload to arrive, and then to be read, which happens at once
_PREFIX = "sanet-demo-"


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Yield a new folder for uploads, which is removed at the end of the block; remove those of killed processes."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as folder, run_lock(Path(folder)):
        yield Path(folder)


def _remove_abandoned(parent: Path) -> None:
    """Remove this user's folders of uploads that no process has locked; links are not followed."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError, NotImplementedError):  # it is in use or vanishes, or there are no locks
            own = not hasattr(os, "getuid") or folder.lstat().st_uid == os.getuid()
            if own and folder.is_dir() and not folder.is_symlink() and (folder / LOCK).is_file():
                with FileLock(folder / LOCK, timeout=0):
                    shutil.rmtree(folder)


class Uploads:
    """The folder of the uploads. What is in it from the start, such as examples, stays.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._kept = set(folder.rglob("*"))
        self._arrived = 0

    def remove_old(self) -> int:
        """Remove uploads older than ``KEPT``, and return the number of bytes of the others."""
        total = 0
        for path in sorted({*self.folder.rglob("*")} - self._kept, reverse=True):
            with suppress(OSError):  # removed, or a folder that is not empty
                status = path.stat()
                if time.time() - status.st_ctime < KEPT:
                    total += 0 if path.is_dir() else status.st_size
                elif path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()
        return total

    @contextmanager
    def arriving(self) -> Iterator[Callable[[int], bool]]:
        """Yield a function that counts bytes of an upload as they arrive, and returns whether there is room for them.

        They count until the end of the block. A visitor who sends slowly takes no room from others.
        """
        there, own = self.remove_old(), 0

        def has_room(size: int) -> bool:
            nonlocal own
            own += size
            self._arrived += size
            return there + self._arrived <= MAX_TOTAL

        try:
            yield has_room
        finally:
            self._arrived -= own


def read_upload(path: str | os.PathLike, bit_depth: int | None = None) -> Image.Image:
    """Return an uploaded image: upright, RGB, its longer side at most ``KEPT_SIDE``.

    Args:
        path: The file.
        bit_depth: Bits that pixels of more than 8 bits fill; 16 by default.

    Raises:
        DataError: If the file has too many bytes or, by its header, too many pixels, one side is too much longer than
            the other, or it cannot be decoded.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"{path.name} has {_mega(size)}, and {_mega(MAX_BYTES)} are allowed: make it smaller first")
    if not size:
        raise DataError(f"{path.name} is an empty file")
    try:
        with open_image(path) as image:
            _check_size(path.name, image.width, image.height)
            image.load()
            whole = to_mode(turned(image), "RGB", bit_depth=bit_depth)
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        known = ", ".join(name for name in FORMATS if name != "MPO")
        raise DataError(f"{path.name} is not an image that can be read; {known} would do") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, which is above ours
        raise DataError(f"{path.name} has far more than {MAX_PIXELS:,} pixels: make it smaller first") from error
    except MemoryError as error:
        raise DataError(f"{path.name} does not fit into memory: make it smaller first") from error
    # Decoders raise whatever stood in their way: OSError, ValueError, SyntaxError, struct.error ...
    except Exception as error:
        raise DataError(f"{path.name} cannot be read: {str(error) or type(error).__name__}") from error
    whole.thumbnail((KEPT_SIDE, KEPT_SIDE), Image.Resampling.BICUBIC)
    return whole


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name} has {width:,} x {height:,} pixels, {width * height / 1e6:,.0f} million, and "
            f"{MAX_PIXELS / 1e6:,.0f} million are allowed: make it smaller first"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise DataError(
            f"{name} has {width:,} x {height:,} pixels; one side may be at most {MAX_RATIO} times the other: crop it"
        )


def _mega(size: int) -> str:
    return f"{size / 2**20:,.1f} MB"
