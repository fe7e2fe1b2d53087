"""Read tables of image paths and labels: CSV files as people and programs write them."""

import codecs
import csv
import io
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import DataError, brief, counted, listed
from .image_files import SUFFIXES, is_image_name, subfolders
from .listing import SPLITS, Tree, labelled

logger = logging.getLogger(__name__)
# Names of columns, of which a table's first counts; case, spaces and hyphens do not.
_PATHS = ("path", "file_path", "filepath", "image_path", "img_path", "file", "file_name", "filename", "image", "img")
_PATHS += ("image_file", "image_name", "img_name", "image_id", "images", "id")
_LABELS = ("label", "class", "class_name", "classname", "target", "category", "category_name", "label_name", "labels")
_PARTS = ("split", "set", "subset", "partition")
_TRIED = 20  # rows whose files tell where the images are


@dataclass(frozen=True)
class _Row:
    """A row of a table: its line, path and label, and its part such as ``train``, empty without such a column."""

    line: int
    path: str
    label: str
    part: str


def read_table(
    data: str | os.PathLike,
    split: str,
    classes: Sequence[str] | None = None,
    *,
    root: str | os.PathLike | None = None,
    val_fraction: float | None = None,
    split_seed: int = 0,
    skip_bad: bool = False,
) -> Tree | None:
    """Return the images of one split of a table, or None if the data are not a table.

    Args:
        data: CSV file, or folder with ``train.csv`` and perhaps ``val.csv`` and without class folders.
        split: "train" or "val".
        classes: Class names in the order of their labels, if known; the table must not have others.
        root: Folder that paths are relative to; by default that of the table, or one in it that is called like the
            table or ``images``.
        val_fraction: Share of each class to draw for validation, if there is no split.
        split_seed: Seed of the draw.
        skip_bad: Whether to leave out rows that cannot be used.

    Raises:
        DataError: If the table cannot be read, lacks a column or a split, or has rows that cannot be used.
    """
    given = Path(data).expanduser()
    tables = {part: _in_folder(given, names) for part, names in SPLITS.items()}
    table = given if given.is_file() else tables[split] or tables["train"]
    if table is None:
        return None
    rows = _read(table)
    pair = None not in tables.values()
    values = sorted({row.part for row in rows} - {""})
    parts = {part: next((name for name in names if name in values), None) for part, names in SPLITS.items()}
    divided = bool(val_fraction) and not pair and parts["val"] is None
    if val_fraction and not divided and split == "train":
        there = tables["val"] if pair else f"rows of {parts['val']!r}"
        raise DataError(f"{data} has {there}, and --val-fraction is for data without a split; give one of them")
    if any(parts.values()) and not pair:
        rows = [row for row in rows if row.part == parts["train" if divided else split]]
    elif not pair and not divided and (split == "train" or table == tables["train"]):
        raise DataError(
            f"{table} has no split{f' but the parts {listed(values)}' if values else ''}: give --val-fraction 0.2, "
            f"which evaluates on a fifth of each class; or a column {' or '.join(_PARTS)} with train and val; or the "
            f"folder of train.csv and val.csv"
        )
    rows = _usable(rows, table, skip_bad)
    folder, ending = _location(table, rows, root)
    files = [(os.path.normpath(os.path.join(folder, row.path + ending)), row.label) for row in rows]
    inside = os.path.join(os.path.abspath(folder), "")
    outside = [path for path, _ in files if not os.path.abspath(path).startswith(inside)]
    if outside:
        logger.warning(
            "%d of %d paths of %s lead out of %s: %s", len(outside), len(files), table, folder, listed(outside)
        )
    present = sorted({label for _, label in files})
    if split == "train" and classes is None and len(present) == 1:
        raise DataError(f"{table} has the single class {present[0]}, and a classifier needs two or more")
    drawn_by = [row.path for row in rows] if divided else None
    return labelled(files, present, split, str(table), classes, drawn_by, val_fraction or 0, split_seed)


def _in_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the table of a split in a folder, if the split is not a folder of class folders."""
    if not folder.is_dir() or any(subfolders(folder / name) for name in names if (folder / name).is_dir()):
        return None
    paths = (folder / f"{name}{ending}" for name in names for ending in (".csv", ".tsv"))
    return next((path for path in paths if path.is_file()), None)


def _read(table: Path) -> list[_Row]:
    """Return the rows of a table, without empty ones.

    Raises:
        DataError: If it is not a table, or has no columns of paths and labels.
    """
    try:
        content = table.read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")
        first, _, rest = text.lstrip().partition("\n")
        delimiter = max(",;\t|", key=lambda each: _promise(next(csv.reader([first], delimiter=each), [])))
        if told := re.fullmatch(r"sep=(.)\s*", first):  # Excel's way to name the delimiter
            text, delimiter = rest, told[1]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read as a table, such as a CSV file in UTF-8: {error}") from error
    if not lines:
        raise DataError(f"{table} is empty")
    path, label, part = _columns(table, lines[0][1])
    headless = is_image_name(lines[0][1][path])
    rows = []
    for line, cells in lines[0 if headless else 1 :]:
        cells += [""] * (max(path, label, part or 0) + 1 - len(cells))
        name = cells[path].replace("\\", "/") if os.sep == "/" else cells[path]
        rows.append(_Row(line, name, cells[label], "" if part is None else cells[part].casefold()))
    if all(re.fullmatch(r"\d+\.0", row.label) for row in rows if row.label):  # how pandas writes a column with gaps
        rows = [replace(row, label=row.label.removesuffix(".0")) for row in rows]
    return rows


def _key(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


def _promise(header: Sequence[str]) -> tuple[int, int]:
    """Return how many columns of a header are known, and how many there are: the most with the right delimiter."""
    return sum(_key(name) in _PATHS + _LABELS + _PARTS for name in header), len(header)


def _columns(table: Path, header: Sequence[str]) -> tuple[int, int, int | None]:
    """Return the columns of paths, labels and, if there is one, parts; a table without header has the first two."""
    keys = [_key(name) for name in header]
    images = [column for column, name in enumerate(header) if is_image_name(name)]
    if len(header) == 2 and len(images) == 1:
        return images[0], 1 - images[0], None
    path, label, part = (
        next((keys.index(name) for name in names if name in keys), None) for names in (_PATHS, _LABELS, _PARTS)
    )
    others = [column for column in range(len(keys)) if column not in (path, label, part)]
    if len(others) == 1 and (path is None) != (label is None):
        path, label = (others[0] if column is None else column for column in (path, label))
    if path is None or label is None:
        wanted = " and ".join(
            f"{kind} (such as {', '.join(names[:3])})"
            for kind, names, column in (("paths", _PATHS, path), ("labels", _LABELS, label))
            if column is None
        )
        raise DataError(f"{table} has no column of {wanted}; it has {brief(listed(list(header), 10), quoted=False)}")
    return path, label, part


def _usable(rows: Sequence[_Row], table: Path, skip_bad: bool) -> list[_Row]:
    """Return the rows with a path and a label, each image once.

    Raises:
        DataError: If there are none, or others and ``skip_bad`` is not set.
    """
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(os.path.normpath(row.path), set()).add(row.label)
    faults: dict[str, list[str]] = {}
    kept: dict[str, _Row] = {}
    repeated = []
    for row in rows:
        key, line = os.path.normpath(row.path), f"line {row.line}"
        if not row.path or not row.label:
            faults.setdefault("without a label" if row.path else "without a path", []).append(line)
        elif len(labels[key]) > 1:
            faults.setdefault("with another label than the same image elsewhere", []).append(f"{line}: {row.path}")
        elif key in kept:
            repeated.append(f"{line}: {row.path}")
        else:
            kept[key] = row
    if repeated:
        logger.warning("%s: left out %s of repeated images: %s", table, counted(len(repeated), "row"), listed(repeated))
    message = "; ".join(f"{counted(len(lines), 'row')} {kind} ({listed(lines)})" for kind, lines in faults.items())
    if faults and not (skip_bad and kept):
        hint = "" if skip_bad else "; correct them, or leave them out with --skip-bad-images"
        raise DataError(f"{table} cannot be used as it is: {message}{hint}")
    if faults:
        logger.warning("%s: left out are %s", table, message)
    if not kept:
        raise DataError(f"{table} has no rows to use")
    return list(kept.values())


def _location(table: Path, rows: Sequence[_Row], root: str | os.PathLike | None) -> tuple[str, str]:
    """Return the folder that paths are relative to, and the ending that they lack.

    Raises:
        DataError: If none of the first images exists.
    """
    stem, parent = table.stem, table.parent
    folders = (
        [Path(root).expanduser()] if root else [parent, parent / stem, parent / "images", parent / f"{stem}_images"]
    )
    tried = [row.path for row in rows[:_TRIED]]
    endings = [""] if any(map(is_image_name, tried)) else ["", *SUFFIXES, *map(str.upper, SUFFIXES)]
    for folder in folders:
        for ending in endings:
            if any(os.path.isfile(os.path.join(folder, name + ending)) for name in tried):
                return str(folder), ending
    raise DataError(
        f"{table}: none of its first images exists, such as {brief(tried[0], quoted=False)} in "
        f"{' or '.join(map(str, folders))}; --data-dir DIR names the folder of its images"
    )
