"""Damage valid files at random: reading them ends with the right values or in ``InputError``, within bounds.

``python tests/fuzz.py`` tries 1,000 files of each format, each in a process of its own (``make fuzz``); the suite tries
a few in its own process (``test_fuzz.py``). A format is one entry of ``FORMATS``, which :func:`fuzzed` adds.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import logging
import math
import os
import pickle
import pickletools
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shuffle_attention.errors import InputError

SECONDS = 10  # of CPU time, which the load of the machine does not change
PATIENCE = 120  # seconds
MEMORY = 2 * 2**30
LONGEST_MESSAGE = 2000
Mutation = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Format:
    """A kind of file that is read.

    Attributes:
        write: Function that writes a valid file into an empty folder and returns the path of the file to damage.
        read: Function that reads the damaged file as the package does.
        mutations: Functions that damage the bytes of the file; each is drawn equally often.
        same: Function that compares the valid file's value with the damaged one's; None if the format has no checksum,
            so that damaged values cannot be told from others.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    mutations: Sequence[Mutation]
    same: Callable[[Any, Any], bool] | None = None


FORMATS: dict[str, Format] = {}


def fuzzed(name: str, write: Callable[[Path], Path], read: Callable[[Path], Any], **options: Any) -> None:
    """Add a format to those that are tried."""
    FORMATS[name] = Format(write, read, **({"mutations": BYTES} | options))


def flip_a_bit(data: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(data)
    damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def truncate(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def insert_bytes(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.randbytes(draw.choice((1, 4, 100))) + data[at:]


def remove_bytes(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + data[at + draw.choice((1, 4, 100)) :]


def overwrite(data: bytes, draw: random.Random) -> bytes:
    at, new = draw.randrange(len(data)), draw.randbytes(draw.choice((1, 4, 100)))
    return data[:at] + new + data[at + len(new) :]


def swap_parts(data: bytes, draw: random.Random) -> bytes:
    a, b, c = sorted(draw.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def repeat_a_part(data: bytes, draw: random.Random) -> bytes:
    at, size = draw.randrange(len(data)), draw.choice((1, 10, 100))
    return data[:at] + data[at : at + size] * draw.choice((2, 10, 100)) + data[at + size :]


EXTREMES = (
    *("0", "-1", "1.5", "1e999", "-1e308", "1e9", "NaN", "null", "true", '"1"', "[]", "[[]]", "{}", '""', "9" * 400),
    *('"../../a.png"', '"/etc/passwd"', '"\\u0000"', "[" * 3000, "o" * 10_000, "&x;", "<!DOCTYPE a>", "*a", "\xff\xfe"),
)


def replace_a_value(data: bytes, draw: random.Random) -> bytes:
    """Put an extreme value in the place of a number or a quoted text; of several, so that one hides no other."""
    for _ in range(draw.choice((1, 1, 3))):
        places = [match.span() for match in re.finditer(rb'"[^"]*"|-?[0-9][0-9.e+-]*', data)] or [(0, len(data))]
        start, end = draw.choice(places)
        data = data[:start] + draw.choice(EXTREMES).encode("latin-1") + data[end:]
    return data


BYTES: tuple[Mutation, ...] = (
    flip_a_bit,
    truncate,
    insert_bytes,
    remove_bytes,
    overwrite,
    swap_parts,
    repeat_a_part,
)


@functools.cache
def valid_file(name: str) -> tuple[str, bytes, Any, dict[str, bytes]]:
    """Return the name, the bytes and the value of a format's valid file, and the files beside it."""
    with tempfile.TemporaryDirectory() as folder:
        path = FORMATS[name].write(Path(folder))
        beside = {
            str(file.relative_to(folder)): file.read_bytes()
            for file in Path(folder).rglob("*")
            if file.is_file() and file != path
        }
        return str(path.relative_to(folder)), path.read_bytes(), FORMATS[name].read(path), beside


def attempt(name: str, seed: int) -> str:
    """Read one damaged file, and return ``read`` or ``refused``.

    Raises:
        AssertionError: If it was read with other values, or its error has an endless message.
        Exception: Whatever else reading raised.
    """
    form, draw = FORMATS[name], random.Random(f"{name} {seed}")
    file, data, expected, beside = valid_file(name)
    with tempfile.TemporaryDirectory() as folder:
        for other, content in beside.items():
            (Path(folder) / other).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / other).write_bytes(content)
        path = Path(folder) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw.choice(form.mutations)(data, draw))
        message = ""
        try:
            value = form.read(path)
        except InputError as error:
            message = str(error)
        assert len(message) <= LONGEST_MESSAGE, f"a message of {len(message):,} characters"
        if message:
            return "refused"
        assert form.same is None or form.same(expected, value), "read with other values"
        return "read"


def _in_child(name: str, seed: int) -> str:
    """Return the outcome of an attempt in a forked process with limits of time and memory."""
    import resource

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(PATIENCE)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            outcome = attempt(name, seed)
        except BaseException:
            outcome = traceback.format_exc()
        used = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        if used > MEMORY:
            outcome = f"took {used / 2**30:.1f} GB"
        os.write(writer, outcome.encode()[-60_000:])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        outcome = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    limits = f"{SECONDS} s of CPU time are allowed, and {PATIENCE} s in all"
    return outcome if status == 0 else f"ended by signal {-status} ({limits})"


def main() -> int:
    """Try many files of each format, print what went wrong, and return 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=f"of {', '.join(FORMATS)}; all by default")
    parser.add_argument("--count", type=int, default=1000, help="files of each format (1000)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first file (0)")
    options = parser.parse_args()
    logging.disable()  # of warnings, which damaged files give by the thousand
    failed = False
    for name in options.formats or FORMATS:
        valid_file(name)
        counts, start, slowest = {"read": 0, "refused": 0}, time.monotonic(), 0.0
        for seed in range(options.first, options.first + options.count):
            before = sum(os.times()[2:4])
            outcome = _in_child(name, seed)
            slowest = max(slowest, sum(os.times()[2:4]) - before)
            if outcome not in counts:
                failed = True
                print(f"{name} {seed}: {outcome}", flush=True)
                continue
            counts[outcome] += 1
        wrong = options.count - sum(counts.values())
        print(
            f"{name}: {counts['read']} read, {counts['refused']} refused, {wrong} wrong of {options.count} files "
            f"in {time.monotonic() - start:.0f} s, the slowest {slowest:.1f} s of CPU time",
            flush=True,
        )
    return int(failed)


def _content() -> dict[str, Any]:
    import torch

    body = {"conv.weight": torch.arange(500.0).view(5, 5, 2, 10), "bn.num_batches_tracked": torch.tensor(3)}
    recipe = {"model": "sa_resnet18", "lr": 0.1, "decay_milestones": [30, 60]}
    return {"state_dict": body, "epoch": 3, "args": argparse.Namespace(lr=0.1, out=Path("x")), "recipe": recipe}


def _write_checkpoint(folder: Path) -> Path:
    from shuffle_attention.checkpoints import write_checkpoint

    write_checkpoint({**_content(), "args": None}, folder / "last.pt")
    return folder / "last.pt"


def _write_zip(folder: Path) -> Path:
    import torch

    torch.save({**_content(), "args": None}, folder / "model.pt")
    return folder / "model.pt"


def _write_objects(folder: Path) -> Path:
    import torch

    torch.save(_content(), folder / "model.pth.tar")
    return folder / "model.pth.tar"


def _write_legacy(folder: Path) -> Path:
    import torch

    torch.save(_content(), folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


def _write_safetensors(folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(_content()["state_dict"], folder / "model.safetensors", {"format": "pt"})
    return folder / "model.safetensors"


def _read_checkpoint(path: Path) -> Any:
    from shuffle_attention.checkpoints import find_state_dict, read_checkpoint

    content = read_checkpoint(path)
    return content, find_state_dict(content, path=path)


def _use_checkpoint(path: Path) -> None:
    """Do all that commands do with a checkpoint before they have its model."""
    import torch

    from shuffle_attention import load_checkpoint
    from shuffle_attention.checkpoints import CheckpointError, read_checkpoint
    from shuffle_attention.sanet.commands.inspect import examine
    from shuffle_attention.sanet.network import recipe_of

    model = torch.nn.Sequential()
    model.add_module("conv", torch.nn.Conv2d(2, 5, (2, 10), bias=False))
    model.conv.weight.data = torch.zeros(5, 5, 2, 10)
    model.add_module("bn", torch.nn.BatchNorm2d(5, affine=False))
    with contextlib.suppress(CheckpointError):
        load_checkpoint(model, path, may_differ=["bn.running_*"])
    content = read_checkpoint(path)
    if "recipe" in content:
        recipe_of({"num_classes": 2, **content}, path)
    else:
        examine(str(path))


def _in_pickle(mutation: Mutation) -> Mutation:
    """Return a mutation of the pickle in a file of torch.save, whose checksums then hold."""

    def mutate(data: bytes, draw: random.Random) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, mutation(content, draw) if name.endswith("data.pkl") else content)
        return out.getvalue()

    return mutate


def _swap_instruction(data: bytes, draw: random.Random) -> bytes:
    """Replace one instruction of a pickle by another, with an argument of some kind."""
    places = [position for _, _, position in pickletools.genops(data)]
    number = draw.randrange(1, len(places) - 1)
    code = draw.choice(pickletools.opcodes).code.encode("latin1")
    argument = draw.choice(
        (b"", draw.randbytes(1), draw.randbytes(4), b"os\nsystem\n", b"torch\nload\n", b"9" * 5000 + b"\n")
    )
    return data[: places[number]] + code + argument + data[places[number + draw.choice((0, 1))] :]


def _change_number(data: bytes, draw: random.Random) -> bytes:
    """Replace a number in a pickle by a huge or a negative one."""
    numbers = [
        (position, following)
        for (op, _, position), (_, _, following) in itertools.pairwise(pickletools.genops(data))
        if op.name.startswith("BININT")
    ]
    start, end = draw.choice(numbers)
    new = pickle.dumps(draw.choice((2**31 - 1, -1, -(2**31), 2**63, 10**400, 1e308, math.nan, None)), 2)[2:-1]
    return data[:start] + new + data[end:]


def _equal(a: Any, b: Any) -> bool:
    import torch

    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


IN_PICKLE = tuple(map(_in_pickle, (*BYTES, _swap_instruction, _swap_instruction, _change_number)))
TEXT: tuple[Mutation, ...] = (*BYTES, *[replace_a_value] * 7)


def _boxes(folder: Path, split: str = "train") -> Any:
    """Return four tiny images with masks of all kinds, written as COCO."""
    from shuffle_attention.sanet.data.formats import read_data, require_data
    from shuffle_attention.sanet.tasks.detection.samples import digits_coco

    digits_coco(split, 3, size=64, digits=(1, 2)).write(folder, split)
    path = folder / f"annotations/instances_{split}.json"
    content = json.loads(path.read_text())
    content["annotations"][0] |= {"segmentation": [[4, 4, 20, 4, 20, 20, 4.5, 20]], "iscrowd": 0}
    content["annotations"][1] |= {"segmentation": {"size": [64, 64], "counts": [100, 50, 3946]}, "iscrowd": 1}
    path.write_text(json.dumps(content))
    return read_data(require_data(folder, split))


def _write_coco(folder: Path) -> Path:
    _boxes(folder)
    return folder / "annotations/instances_train.json"


def _write_yolo(folder: Path) -> Path:
    from shuffle_attention.sanet.data.formats import format_named

    with tempfile.TemporaryDirectory() as source:
        format_named("yolo").write({"train": _boxes(Path(source))}, folder)
    return folder / "labels/train/00001.txt"


def _write_yolo_data(folder: Path) -> Path:
    _write_yolo(folder)
    text = (folder / "data.yaml").read_text()
    (folder / "data.yaml").write_text('path: "."\nnc: 10\n' + text)
    return folder / "data.yaml"


def _write_voc(folder: Path) -> Path:
    from shuffle_attention.sanet.data.formats import format_named

    with tempfile.TemporaryDirectory() as source:
        format_named("voc").write({"train": _boxes(Path(source))}, folder)
    return folder / "Annotations/00001.xml"


def _read_boxes(path: Path) -> Any:
    """Read the data of a damaged file as training does, down to the masks of every image."""
    from shuffle_attention.sanet.data.formats import read_data, require_data

    root = path if path.suffix == ".yaml" else path.parents[1 if path.suffix != ".txt" else 2]
    with contextlib.suppress(InputError):
        _use(read_data(require_data(root, "train"), masks=True, skip_bad=True))
    data = read_data(require_data(root, "train"))
    _use(data)
    return data


def _use(data: Any) -> None:
    from shuffle_attention.sanet.tasks.detection.samples import CocoSamples, detection_transform

    samples = CocoSamples(data, masks=data.has_masks)
    samples.transform = detection_transform(training=True)
    for index in range(len(samples)):
        samples[0, index]
    data.parted(0.5)


fuzzed("coco", _write_coco, _read_boxes, mutations=TEXT)
fuzzed("yolo", _write_yolo, _read_boxes, mutations=TEXT)
fuzzed("yolo-data", _write_yolo_data, _read_boxes, mutations=TEXT)
fuzzed("voc", _write_voc, _read_boxes, mutations=TEXT)
fuzzed("checkpoint", _write_checkpoint, _read_checkpoint, same=_equal)
fuzzed("zip", _write_zip, _read_checkpoint, same=_equal)
fuzzed("pickle", _write_objects, _use_checkpoint, mutations=IN_PICKLE)
fuzzed("legacy", _write_legacy, _use_checkpoint)
fuzzed("safetensors", _write_safetensors, _use_checkpoint)

# Values that recipes may get from other hands: of other types, without end, and of every size.
_NASTY = (
    *("null", "-1", "1e400", ".nan", "[1, 2]", "{a: 1}", "2020-01-01", "2020-13-45", "0x" + "f" * 100, "9" * 5000),
    *("[" * 500, "{a: " * 500, "&a [*a]", "*a", "!!int ''", "!!float x", "!!binary a", "!!python/name:os.system ''"),
    *("'" + "x" * 20_000 + "'", "1:" * 1000 + "1", "&a [&b [*b, *b], *b]", "\x00", "\ud800", "? [a]: b", "<<: {a: 1}"),
)


def replace_a_value(data: bytes, draw: random.Random) -> bytes:
    lines = data.split(b"\n")
    at = draw.choice([number for number, line in enumerate(lines) if b": " in line])
    value = draw.choice(_NASTY).encode(errors="surrogatepass")
    return b"\n".join([*lines[:at], lines[at].split(b": ")[0] + b": " + value, *lines[at + 1 :]])


def multiply_by_aliases(data: bytes, draw: random.Random) -> bytes:
    key = draw.choice((b"attach", b"model_args", b"mean", b"opt", b"epochs"))
    lists = [b"  - &x0 [1]", *(b"  - &x%d [%s]" % (n + 1, b", ".join([b"*x%d" % n] * 10)) for n in range(9))]
    lines = [line for line in data.split(b"\n") if not line.startswith(key + b":")]
    return b"\n".join([*lines, key + b":", *lists[: draw.randrange(1, 11)]])


def _write_recipe(folder: Path) -> Path:
    from shuffle_attention.sanet.recipes.recipe import load_recipe

    recipe = load_recipe("imagenet-modern").replaced(attach={"name": "shuffle", "groups": "auto"}, mean=[0.5, 0.4, 0.3])
    (folder / "own.yaml").write_text(recipe.to_yaml())
    return folder / "own.yaml"


def _read_recipe(path: Path) -> Any:
    from shuffle_attention.sanet.recipes.recipe import load_recipe

    recipe = load_recipe(path)
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe
    return recipe


fuzzed("recipe", _write_recipe, _read_recipe, mutations=(*BYTES, replace_a_value, multiply_by_aliases))

if __name__ == "__main__":
    sys.exit(main())
