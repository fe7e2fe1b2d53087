"""The command ``sanet predict``."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import DataError, InputError, counted, listed
from ...files import atomic_write, require_folder_of
from ..recipes.recipe import Recipe
from ..recipes.settings import option
from . import Command

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "table"}
Best = Sequence[tuple[int, float]]  # indices of the most probable classes, with their probabilities


@dataclass(kw_only=True)
class Predict(Command):
    """Predict the classes of images: one row per image, in the order in which the images are given.

    IMAGE is a file, a folder, which is searched with its subfolders, a glob in quotes, or - for a list of files and
    folders on standard input, one per line, or separated by NUL (find -print0). Images are turned upright by their
    EXIF orientation unless --as-stored is given.

    All files are checked before the first row is written. An image that cannot be read is an error (exit code 2) unless
    --skip-bad-images is given: it is then left out and named (exit code 0). Damage in the middle of a file is only
    noticed when the image is decoded: the rows before it are then on standard output already, and --output writes
    nothing.
    """

    name = "predict"
    summary = "predict the classes of images"
    examples = (
        "sanet predict runs/digits/best.pt photos/\n"
        "sanet predict runs/digits/best.pt 'photos/**/*.jpg' --output predictions.csv --features features.npy\n"
        "find photos -name '*.png' -print0 | sanet predict runs/digits/best.pt - --format jsonl"
    )
    recipe_type = Recipe
    recipe_fields = (
        "workers check_images skip_bad_images as_stored bit_depth img_size mean std interpolation crop_pct model "
        "model_args in_chans small_stem device precision channels_last"
    )

    checkpoint: str = option(..., "checkpoint, bare weights, or a deployed file", positional=True)
    images: list[str] = option(..., "files, folders, globs, or - for standard input", positional=True, metavar="IMAGE")
    top: int = option(5, "most probable classes of a row", minimum=1)
    format: Literal["table", "csv", "jsonl"] | None = option(
        None, "by default by the suffix of --output; without it, a table on a terminal and CSV elsewhere"
    )
    output: str | None = option(None, "write the rows to FILE instead of standard output", metavar="FILE")
    features: str | None = option(
        None,
        "write the input of the classifier, a row of float32 per image, to FILE.npy; not of a deployed file",
        metavar="FILE",
    )
    batch_size: int = option(64, "images at a time", minimum=1)
    ema: bool | None = option(None, "averaged weights; used by default if there are any")
    rewrite: bool = option(True, "use a faster copy that computes the same; never used with --features")

    def run(self) -> int:
        """Predict the classes of all images, and write a row for each."""
        from ..console import console, errors, progress_bar
        from ..data.datasets import Samples
        from ..data.image_files import expand_sources
        from ..data.images import check_images, inspect_image
        from ..data.loading import evaluation_batches
        from ..device import open_process, require_one_process
        from ..tasks.classification.predictor import restore_network
        from ..tasks.evaluation import run_model

        require_one_process("sanet predict")
        terminal = self.output is None and sys.stdout.isatty()
        rows = self._rows(terminal)
        files = [str(path) for path, _ in expand_sources(self.images)]
        self._require_apart(files)
        # Starting processes takes longer than decoding a batch.
        settings = {"device": "auto", "workers": 2 if len(files) > self.batch_size else 0, **self.overrides}
        classifier = restore_network(self.checkpoint, ema=self.ema, settings=settings)
        recipe, reading = classifier.recipe, classifier.recipe.reading
        if self.rewrite and self.features is None:  # rewriting renumbers channels
            classifier.rewrite()
        kept = check_images(files, skip_bad=recipe.skip_bad_images, **reading) if recipe.check_images else None
        images = Samples([(file, 0) for file in files], files, None, reading=reading, kept=kept)
        seen, damaged = 0, []
        with open_process(recipe.device) as process, ExitStack() as stack:
            batches = evaluation_batches(images, recipe, process, self.batch_size)
            model = classifier.to(process).model
            features = stack.enter_context(classifier.features()) if self.features else None
            write_features = stack.enter_context(_npy(self.features)) if self.features else None
            write = stack.enter_context(_text(self.output, terminal))
            # On a terminal both the rows and the bar below them go to standard output.
            bar = progress_bar(len(images), "predicting", console if terminal else errors)
            advance = stack.enter_context(bar)
            head, row = rows(classifier.spelled, classifier.names, min(self.top, classifier.num_classes), files)

            def receive(_: Tensor, logits: Tensor, labels: Tensor) -> None:
                nonlocal seen
                readable = labels >= 0
                names = [images.name(index) for index in range(seen, seen + len(labels))]
                for index in (seen + (~readable).nonzero().flatten()).tolist():
                    fault = inspect_image(files[images.kept[index]], **reading, whole=True).fault
                    damaged.append(f"{images.name(index)} ({fault or 'cannot be decoded'})")
                if damaged and not recipe.skip_bad_images:
                    hint = "repair or remove them, or leave them out with --skip-bad-images"
                    raise DataError(f"{counted(len(damaged), 'image')} cannot be decoded: {listed(damaged)}; {hint}")
                chosen = [name for name, good in zip(names, readable.tolist(), strict=True) if good]
                probabilities = logits[readable].float().softmax(1)
                if not probabilities.isfinite().all():
                    bad = chosen[int((~probabilities.isfinite()).any(1).nonzero()[0])]
                    raise DataError(f"{self.checkpoint} returns NaN or infinity for {bad}")
                top = probabilities.topk(min(self.top, probabilities.shape[1]))
                best = zip(top.indices.tolist(), top.values.tolist(), strict=True)
                lines = (row(name, [*zip(*each, strict=True)]) for name, each in zip(chosen, best, strict=True))
                write("".join([head] * (not seen) + [*lines]))
                if features and write_features:
                    write_features(features.pop()[readable])
                seen += len(labels)

            options: dict[str, Any] = {"precision": recipe.precision, "channels_last": recipe.channels_last}
            run_model(model, batches, process, receive, **options, watch=advance)
            if len(damaged) == len(images):
                raise DataError(f"none of {counted(len(images), 'image')} can be decoded: {listed(damaged)}")
        if damaged:
            logger.warning("left out %s that cannot be decoded: %s", counted(len(damaged), "image"), listed(damaged))
        if self.output or self.features:
            written = " and ".join(name for name in (self.output, self.features) if name)
            logger.info("wrote %s to %s", counted(seen - len(damaged), "row"), written)
        return 0

    def _rows(self, terminal: bool) -> Callable[..., tuple[str, Callable[[str, Best], str]]]:
        """Return the function that makes the writer of the format.

        Raises:
            InputError: If the suffix of the output does not tell the format.
        """
        named = self.format or _SUFFIXES.get(Path(self.output or "").suffix.lower())
        if self.output and named is None:
            known = ", ".join(_SUFFIXES)
            raise InputError(f"--output {self.output} does not end in one of {known}; name its --format")
        return {"table": _table, "csv": _csv, "jsonl": _jsonl}[named or ("table" if terminal else "csv")]

    def _require_apart(self, files: Sequence[str]) -> None:
        """Raise InputError if the files to write cannot be written, or would overwrite one of the files to read."""
        if self.features is not None and Path(self.features).suffix != ".npy":
            raise InputError(f"--features {self.features}: the file must end in .npy")
        if self.output is not None and self.features is not None and Path(self.output) == Path(self.features):
            raise InputError(f"--output and --features name the same file, {self.output}")
        for name in ("output", "features"):
            path = getattr(self, name)
            require_folder_of(f"--{name}", path)
            if path is not None and os.path.exists(path):
                read = next((file for file in (self.checkpoint, *files) if _same(file, path)), None)
                if read is not None:
                    raise InputError(f"--{name} {path} would overwrite {read}, which is read")


def _same(one: str, other: str) -> bool:
    return os.path.exists(one) and os.path.samefile(one, other)


@contextmanager
def _text(path: str | None, terminal: bool) -> Iterator[Callable[[str], object]]:
    """Yield a function that writes text to a file, which is complete at the end or not written, or to the output."""
    from ..console import console

    if path is not None:
        with atomic_write(path) as file:
            yield lambda text: file.write(text.encode())
    elif terminal:
        yield lambda text: console.print(text, end="")
    else:

        def write(text: str) -> None:
            sys.stdout.buffer.write(text.encode())
            sys.stdout.buffer.flush()

        sys.stdout.flush()
        yield write


@contextmanager
def _npy(path: str) -> Iterator[Callable[[Tensor], None]]:
    """Yield a function that appends rows (N, D) to an array of float32, which is complete at the end or not written."""
    import numpy as np

    def header(shape: tuple[int, ...]) -> bytes:
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return buffer.getvalue()

    shape = (0, 0)
    with atomic_write(path) as file:
        file.write(header((2**31, 2**31)))

        def append(rows: Tensor) -> None:
            nonlocal shape
            shape = (shape[0] + len(rows), rows.shape[1])
            file.write(rows.float().cpu().numpy().astype("<f4").tobytes())

        yield append
        file.seek(0)
        file.write(header(shape))


def _csv(spelled: Sequence[str], names: Sequence[str], top: int, files: Sequence[str]) -> Any:
    """Return the header of a CSV file, and a function from a file and its most probable classes to its line.

    Names for people are columns too if they are not those of the data.
    """
    columns = ["predicted", *(["name"] if list(spelled) != list(names) else []), "probability"]

    def line(values: Sequence[object]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        return text.getvalue()

    def row(file: str, best: Best) -> str:
        cells = [(spelled[index], names[index], f"{share:.6g}") for index, share in best]
        return line([file, *(cell for each in cells for cell in (each if len(columns) == 3 else each[::2]))])

    ranks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    return line(["file", *(column + rank for rank in ranks for column in columns)]), row


def _jsonl(spelled: Sequence[str], names: Sequence[str], top: int, files: Sequence[str]) -> Any:
    """Return no header, and a function from a file and its most probable classes to a line of JSON."""

    def row(file: str, best: Best) -> str:
        predictions = [
            {"class": spelled[index], "name": names[index], "index": index, "probability": float(f"{share:.6g}")}
            for index, share in best
        ]
        return json.dumps({"file": file, "predictions": predictions}, ensure_ascii=False) + "\n"

    return "", row


def _table(spelled: Sequence[str], names: Sequence[str], top: int, files: Sequence[str]) -> Any:
    """Return the header of a table as wide as the terminal, and a function from a file and its classes to its line.

    A name that is too long for its column has a line to itself, so that it can be read, and copied, in full.
    """
    from rich.cells import cell_len

    from ..console import console

    names = [_printable(name) for name in names]
    second = min(24, max(map(cell_len, ["class", *names])))
    room = console.width - second - (9 if top == 1 else 35)
    first = min(max(16, room), max(map(cell_len, ["image", *map(_printable, files)])))

    def line(file: str, share: str, name: str, others: str) -> str:
        text = file + " " * (first - cell_len(file)) if cell_len(file) <= first else f"{file}\n{'':{first}}"
        text += f"  {share:>5}  {name}"
        indent = " " * (first + second + 11)
        width = max(20, console.width - len(indent))
        wrapped = textwrap.wrap(others, width, break_long_words=False, break_on_hyphens=False)
        wrapped = [part.replace("\xa0", " ") for part in wrapped]
        if wrapped and cell_len(name) > second:
            text, wrapped = text + "\n" + indent, wrapped
        elif wrapped:
            text += " " * (second - cell_len(name) + 2)
        return text + f"\n{indent}".join(wrapped) + "\n"

    def row(file: str, best: Best) -> str:
        (index, share), *others = best
        rest = [f"{names[index]} {100 * share:.1f}".replace(" ", "\xa0") for index, share in others]
        return line(_printable(file), f"{100 * share:.1f}", names[index], ", ".join(rest))

    return line("image", "%", "class", "next" if top > 1 else ""), row


def _printable(text: str) -> str:
    """Return text with control characters escaped, which would move the cursor."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
