"""Read and write checkpoint files. Nothing in a file is executed, and a damaged file is refused."""

import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from ..errors import InputError, brief, listed
from ..files import atomic_write
from .pickles import PickleError, StandIn, unpickle

# `write_checkpoint` ends a file with the CRC of all bytes before these eight digits, as the comment of the zip.
_SEAL = b"crc32 of all before: "
_SEALED = re.compile(re.escape(_SEAL) + rb"([0-9a-f]{8})\Z")
_LEGACY = re.compile(rb"(?s)\x80.(\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.")  # how torch.save began before 1.6
_WEIGHT_FILES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")
_RESAVE = "load it where it was made, and save its weights: torch.save(model.state_dict(), 'weights.pth')"
# Files often downloaded in place of a checkpoint: their first bytes, their kind and the remedy.
NOT_DOWNLOADED: tuple[tuple[bytes, str, str], ...] = (
    (rb"version https://git-lfs", "is a Git LFS pointer, not the file it points to", "git lfs pull fetches that file"),
    (rb"(?i)\s*(<!doctype html|<html|<head|<body)", "is a web page", "download the file itself, not the page about it"),
)
# Files often taken for a checkpoint: their first bytes, their kind and the remedy.
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    *NOT_DOWNLOADED,
    (rb"\s*<\?xml", "is an XML document, perhaps a server's error", "download the file again"),
    (rb"\x89HDF\r\n", "is an HDF5 file, as Keras and TensorFlow write", "only weights of PyTorch can be read"),
    (rb"(?s)....TFL3", "is a TensorFlow Lite model", "only weights of PyTorch can be read"),
    (rb"GGUF|GGML|lmgg|tjgg", "holds quantised weights for llama.cpp", "only weights of PyTorch can be read"),
    (rb"\x80[\x00-\x05]", "was written by pickle and not by torch.save", _RESAVE),
    (rb"\x93NUMPY", "is a NumPy array", "only weights of PyTorch can be read"),
    (
        rb"(?s)\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!|.{257}ustar",
        "is compressed or an archive",
        "unpack it",
    ),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "is an image", "name the checkpoint"),
)
_ZIPS: tuple[tuple[str, str, str], ...] = (
    (
        r"(.*/)?constants\.pkl",
        "is a TorchScript archive, which carries code",
        "if you trust it, torch.save(torch.jit.load(path).state_dict(), 'weights.pth') writes its weights",
    ),
    (
        r"(.*/)?(archive_format|serialized_exported_program\.json)",
        "is a program of torch.export",
        "if you trust it, torch.save(torch.export.load(path).state_dict, 'weights.pth') writes its weights",
    ),
    (r".*\.npy", "is an archive of NumPy arrays", "only weights of PyTorch can be read"),
    (r".*\.weights\.h5", "is a Keras model", "only weights of PyTorch can be read"),
    (r"(?i).*(\.pth|\.pt|\.bin|\.ckpt|\.tar|\.safetensors)", "is a zip archive with a checkpoint in it", "unpack it"),
)


class CheckpointError(InputError):
    """A checkpoint that cannot be used as asked; nothing has been loaded."""


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Return the content of a checkpoint file, or of a folder of ``sanet pack`` or timm's for the Hub, on the CPU.

    No code of it is run.

    Tensors and plain containers are returned; other objects are stand-ins that do nothing (:mod:`.pickles`).

    Raises:
        CheckpointError: If the file is damaged, or is not a checkpoint; the message says what it is.
        FileNotFoundError: If there is no such file.
    """
    return read_file(path)[0]


def read_file(path: str | os.PathLike) -> tuple[dict[str, Any], str]:
    """Return the content of a checkpoint file, and its format in words.

    Raises:
        CheckpointError: If the file is damaged, or is not a checkpoint; the message says what it is.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        config = path / "config.json"
        if config.is_file() and (path / "model.safetensors").is_file():
            return _read_packed(path, config)
        names = ("best.pt", "last.pt", "model.safetensors", "pytorch_model.bin")
        inside = [name for name in names if (path / name).is_file()]
        hint = f"; did you mean {path / inside[0]}?" if inside else ""
        raise CheckpointError(f"{path} is a folder and not a checkpoint{hint}")
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(300)
        file.seek(0)
        try:
            if start[8:9] == b"{":  # whatever its name: the length of a header in eight bytes, and the header
                from safetensors.torch import load_file

                content, words = load_file(path), "safetensors, which has no checksums"
            elif start.startswith(b"PK"):
                content, words = _read_zip(file, size)
            elif _LEGACY.match(start):
                content, words = _read_legacy(file, size), "a file of torch.save before version 1.6, without checksums"
            else:
                raise CheckpointError(_recognised(start, path))
        except CheckpointError as error:
            raise CheckpointError(f"{path} was not loaded: it {error}") from error
        except PickleError as error:
            raise CheckpointError(f"{path} was not loaded: it {brief(str(error), quoted=False)}") from error
        # A damaged file can fail anywhere inside the readers, with whatever error stood there.
        except Exception as error:
            reason = brief(str(error) or type(error).__name__, quoted=False)
            if reason == "File is not a zip file":
                reason = "its end is missing"
            raise CheckpointError(
                f"{path} was not loaded: it is damaged or cut off ({size:,} bytes; {reason}); copy it again"
            ) from error
    if isinstance(content, StandIn) and "_modules" in content.attributes:
        content = {"model": content}
    if isinstance(content, StandIn) and content.items:
        content = content.items
    if not isinstance(content, dict):
        kind = content.name if isinstance(content, StandIn) else type(content).__name__
        raise CheckpointError(f"{path} holds a {kind}, not a dict of weights")
    return content, words


def _read_packed(folder: Path, config: Path) -> tuple[dict[str, Any], str]:
    """Return the content of a folder for the Hub as that of a checkpoint, and its format in words.

    Raises:
        CheckpointError: If its configuration is not one of timm's.
    """
    try:
        known = json.loads(config.read_text(encoding="utf-8"))
        architecture, given, seen = known["architecture"], known.get("model_args") or {}, known["pretrained_cfg"]
        channels, *sizes = seen["input_size"]
        recipe = {
            "model": str(architecture),
            "model_args": {name: value for name, value in given.items() if name not in ("num_classes", "in_chans")},
            "in_chans": channels,
            "img_size": sizes[0],
            **{name: seen[name] for name in ("mean", "std", "crop_pct", "interpolation")},
        }
        about = {"recipe": recipe, "num_classes": known["num_classes"], "classes": known.get("label_names")}
        about |= known.get("shuffle_attention") or {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = brief(str(error) or type(error).__name__, quoted=False)
        raise CheckpointError(f"{config} does not describe a model of timm ({reason})") from error
    content, words = read_file(folder / "model.safetensors")
    return {**about, "state_dict": content}, f"a folder for the Hugging Face Hub, with {words}"


def write_checkpoint(content: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a checkpoint atomically, with a checksum: a process killed meanwhile leaves the previous file."""
    with atomic_write(path) as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:  # torch.save raises it for a full disk
            raise OSError(f"{path} could not be written: {error.__context__ or error}") from error
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", len(_SEAL) + 8) + _SEAL)  # the length of the zip's comment, and the comment
        file.write(b"%08x" % _crc(file, file.tell()))


def _crc(file: IO[bytes], size: int) -> int:
    """Return the CRC of the first bytes of a file, whose position is then behind them."""
    file.seek(0)
    crc = 0
    while size and (chunk := file.read(min(size, 1 << 20))):
        crc, size = zlib.crc32(chunk, crc), size - len(chunk)
    return crc


def _recognised(start: bytes, path: Path) -> str:
    """Return what a file is that is not a checkpoint, and what would help."""
    if not start:
        return "is empty (0 bytes); copy it again"
    for pattern, words, advice in _OTHERS:
        if re.match(pattern, start):
            return f"{words}: {advice}"
    if re.match(rb"\s*[{\[]", start):
        try:
            files = sorted(set(json.loads(path.read_bytes()[: 1 << 26])["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return "is JSON and not a checkpoint"
        names = listed([brief(name, quoted=False) for name in files], 3)
        return f"is the index of weights in {len(files)} files ({names}): {_RESAVE}"
    if path.suffix.lower() in (".onnx", ".pb"):
        return "is a model of ONNX or TensorFlow: only weights of PyTorch can be read"
    text = start.decode("latin1")
    if start.isascii() and re.sub(r"\s", "", text).isprintable():
        return f"is damaged, or a text and not a checkpoint; it begins with {text[:40]!r}"
    return f"is damaged, or not a checkpoint; it begins with the bytes {start[:8].hex(' ')}"


def _read_zip(file: IO[bytes], size: int) -> tuple[Any, str]:
    """Return the content of a zip that torch.save wrote; every byte that is used agrees with its checksum."""
    file.seek(max(0, size - len(_SEAL) - 8))
    sealed = _SEALED.search(file.read())
    if sealed is not None and _crc(file, size - 8) != int(sealed[1], 16):
        raise CheckpointError("is damaged: its checksum is another one; copy it again")
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        for pattern, words, advice in _ZIPS:
            matching = [name for name in names if re.fullmatch(pattern, name)]
            if matching and (not pickles or pattern.endswith("pkl")):
                raise CheckpointError(f"{words} ({brief(matching[0], quoted=False)}): {advice}")
        if not pickles:
            raise CheckpointError(
                f"is a zip archive of something else ({listed([brief(name, quoted=False) for name in names], 3)})"
            )
        if len(set(names)) < len(names) or (sealed is None and archive.comment):
            raise CheckpointError("is damaged: its directory does not agree with itself; copy it again")
        if sum(entry.file_size for entry in entries) > 20 * size:
            raise CheckpointError("would grow to more than 20 times its size when unpacked")
        if sealed is None and (damaged := archive.testzip()) is not None:
            name = brief(damaged, quoted=False)
            raise CheckpointError(f"is damaged: the checksum of {name} is another one; copy it again")
        prefix = pickles[0].removesuffix("data.pkl")
        if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") != b"little":
            raise CheckpointError("was written on a machine of the other byte order")
        storages: dict[str, Tensor] = {}

        def storage(identity: Any) -> Tensor:
            _, dtype, key, _, count = identity
            if not isinstance(dtype, torch.dtype):
                raise PickleError(f"holds quantised tensors ({dtype}): {_RESAVE} before it is quantised")
            if key not in storages:
                with archive.open(f"{prefix}data/{key}") as record:
                    storages[key] = torch.empty(archive.getinfo(record.name).file_size, dtype=torch.uint8)
                    cast(Any, record).readinto(storages[key].numpy())
            return storages[key][: count * dtype.itemsize].view(dtype)

        with archive.open(pickles[0]) as record:
            content = unpickle(record, storage)
    return content, f"a file of torch.save, whose checksum{' holds' if sealed else 's hold'}"


def _read_legacy(file: IO[bytes], size: int) -> Any:
    """Return the content of a file that torch.save wrote before version 1.6: pickles, and the tensors' values."""

    def no_storage(_: Any) -> Tensor:
        raise PickleError("is damaged")

    for _ in ("magic number", "version"):
        unpickle(file, no_storage)
    if not unpickle(file, no_storage).get("little_endian", True):
        raise CheckpointError("was written on a machine of the other byte order")
    storages: dict[str, tuple[Tensor, int]] = {}
    left = size

    def storage(identity: Any) -> Tensor:
        nonlocal left
        if len(identity) == 4:  # the class of a module, with its source code
            return identity[1]
        _, dtype, key, _, count, view = identity
        if not isinstance(dtype, torch.dtype):
            raise PickleError(f"holds quantised tensors ({dtype}): {_RESAVE} before it is quantised")
        if key not in storages:
            left -= count * dtype.itemsize
            if count < 0 or left < 0:
                raise PickleError("is cut off: its tensors need more bytes than it has; copy it again")
            storages[key] = torch.empty(count * dtype.itemsize, dtype=torch.uint8), count
        values = storages[key][0].view(dtype)
        return values if view is None else values[view[1] : view[1] + view[2]]

    content = unpickle(file, storage)
    keys = unpickle(file, no_storage)
    if sorted(keys) != sorted(storages):
        raise CheckpointError("is damaged: it lists other tensors than it has; copy it again")
    for key in keys:
        values, count = storages[key]
        stored = file.read(8)
        if stored != struct.pack("<q", count) or cast(Any, file).readinto(values.numpy()) != len(values):
            raise CheckpointError("is cut off or damaged: the values of a tensor have another length; copy it again")
    if file.read(1):
        raise CheckpointError("is damaged: it goes on after its end; copy it again")
    return content
