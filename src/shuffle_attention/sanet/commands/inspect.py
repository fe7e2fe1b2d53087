"""The command ``sanet inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import brief, counted, listed
from ...files import require_folder_of, write_json
from ..recipes.settings import option
from . import Command

if TYPE_CHECKING:
    from ...checkpoints.architecture import Architecture


_NAMES = ("arch", "architecture", "model", "model_name")  # of models, beside weights


@dataclass(kw_only=True)
class Inspect(Command):
    """Say what a checkpoint or a deployed file holds: its model and classes, what does not fit, and how to load it.

    Nothing in the file is executed.
    """

    name = "inspect"
    summary = "say what a checkpoint holds, and how to load it"

    file: str = option(..., "any file of weights, or a deployed file", positional=True, metavar="FILE")
    ema: bool | None = option(None, "averaged weights; used by default if there are any")
    json: str | None = option(None, "write the answer to FILE", metavar="FILE")

    def run(self) -> int:
        """Print the answer, and write it if asked to."""
        require_folder_of("--json", self.json)
        answer = examine(self.file, ema=self.ema)
        width = max(map(len, answer))
        for name, value in answer.items():
            lines = value if isinstance(value, list) else [str(value)]
            print(f"{name:<{width}}  " + f"\n{'':{width}}  ".join(lines))
        if self.json is not None:
            write_json(self.json, answer)
        return 0


def examine(path: str, *, ema: bool | None = None) -> dict[str, Any]:
    """Return what a checkpoint or a deployed file holds, in words, by topic.

    Raises:
        InputError: If the file is neither, or holds no weights.
    """
    from ... import deploy
    from ...checkpoints import find_state_dict
    from ...checkpoints.architecture import recognise
    from ...checkpoints.reading import read_file
    from ...checkpoints.weights import kind_of, not_finite

    if deploy.is_deployed(path):
        return _of_deployed(path, ema)
    content, words = read_file(path)
    weights, name = find_state_dict(content, ema=ema, path=path)
    known = recognise(weights)
    answer: dict[str, Any] = {"file": f"{path}, {_size(path)}, {words}"}
    beside = [f"{key}: {_words(value)}" for key, value in content.items() if key != name and name]
    if beside:
        answer["beside the weights"] = listed(beside, 12)
    values = sum(value.numel() for value in weights.values())
    types = sorted({str(value.dtype).removeprefix("torch.") for value in weights.values() if value.is_floating_point()})
    amount = f"{values / 1e6:,.1f} M" if values >= 1e5 else f"{values:,}"
    where = f"under {name!r}" if name else "a bare state dict"
    answer["weights"] = f"{where}: {counted(len(weights), 'entry')}, {amount} values of {listed(types) or 'integers'}"
    odd = [f"{key} ({kind})" for key, value in weights.items() if (kind := kind_of(value)) not in ("float", "integer")]
    if odd:
        answer["cannot load"] = listed(odd, 6)
    if faults := not_finite(weights):
        answer["NaN or infinity"] = listed(faults, 6) + "; loading it is refused"
    if isinstance(content.get("recipe"), dict):
        return answer | _of_run(content, path, known)
    if known is None:
        return answer | _of_others(content, weights, path)
    return answer | _of_weights(known, path)


def _size(path: str) -> str:
    import os

    size = os.path.getsize(path)
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"


def _of_deployed(path: str, ema: bool | None) -> dict[str, Any]:
    """Return what a deployed file says of itself."""
    from importlib.metadata import version
    from pathlib import Path

    from ... import deploy
    from ..tasks import restore

    file, form = deploy.load(path), deploy.find_format(None, Path(path))
    about, detects = file.metadata, file.metadata.get("kind") == "detector"
    runtime = ", ".join(f"{name} {version(name)}" for name in form.runtime or ("torch",))
    answer: dict[str, Any] = {"file": f"{path}, {_size(path)}, format {form.name}", "read with": runtime}
    sizes = "of any size" if file.shape is None else str(tuple(size or "any" for size in file.shape)).replace("'", "")
    answer["input"] = f"images {sizes}"
    if "recipe" not in about:
        answer["model"] = "of another program, which does not say its classes, nor how images are prepared for it"
        size = "" if file.shape and file.shape[-1] else " --img-size N"
        answer["load it"] = [f"sanet eval {path} --data DIR --mean X --std X{size}, with the values of its training"]
        return answer
    predictor = restore(path, ema=ema)
    recipe = predictor.recipe
    by = f"exported by version {about.get('version', 'unknown')} at commit {about.get('commit', 'unknown')}"
    answer["model"] = f"{predictor.label}, {by}"
    if "checkpoint" in about:
        answer["exported from"] = f"{about['checkpoint']}, SHA-256 {about.get('checkpoint_sha256', 'unknown')}"
    states = {True: "as they were written", False: "changed since they were written", None: "of unknown origin"}
    answer["weights"] = states[file.unaltered]
    answer["classes"] = f"{len(predictor.names)}: {listed(predictor.names, 8)}"
    if not detects:
        shown = [" ".join(f"{value:.4g}" for value in values) for values in (recipe.mean, recipe.std)]
        answer["images"] = f"{recipe.img_size} x {recipe.img_size} pixels, the central {recipe.crop_pct:g}, "
        answer["images"] += f"{recipe.interpolation}, mean {shown[0]}, deviation {shown[1]}"
    answer["load it"] = [f"sanet {'detect ' if detects else ''}eval {path}"]
    answer["load it"] += [
        f"sanet detect predict IMAGES --checkpoint {path}" if detects else f"sanet predict {path} IMAGES"
    ]
    return answer


def _of_run(content: dict[str, Any], path: str, known: Architecture | None) -> dict[str, Any]:
    """Return what the checkpoint of a run holds, which says itself what its model is."""
    from pathlib import Path

    from ...errors import InputError
    from ..network import recipe_of
    from ..tasks import restore, task_of

    try:
        task = task_of(content)
        recipe, _ = recipe_of(content, path, task.Recipe)
        predictor = restore(path)
    except InputError as error:
        return {"model": f"that of a run of sanet; it cannot be restored: {error}"}
    finished = counted(int(content.get("epoch", 0)), "epoch")
    evaluate = "sanet detect eval" if recipe.command == "sanet detect train" else "sanet eval"
    answer: dict[str, Any] = {
        "model": f"{predictor.label}, trained by {recipe.command} for {finished} on {recipe.data}"
    }
    if known is not None and known.attention:
        answer["attention"] = _attention(known)
    answer["classes"] = f"{len(predictor.names)}: {listed(predictor.names, 8)}"
    answer["fits"] = "all entries"
    answer["load it"] = [f"{evaluate} {path}"]
    if "processes" in content:
        answer["load it"].append(f"{recipe.command} --resume {Path(path).parent}")
    return answer


def _of_others(content: dict[str, Any], weights: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return what weights of another family are, if timm has their model."""
    from pathlib import Path

    import timm

    from ...checkpoints.architecture import in_timm

    beside = [content, *(getattr(value, "attributes", value) for value in content.values())]
    told = [each[key] for each in beside if isinstance(each, Mapping) for key in _NAMES if key in each]
    told += sorted((name for name in timm.list_models() if Path(path).name.startswith(name)), key=len)[-1:]
    names, num_classes = in_timm(weights, [name for name in told if isinstance(name, str)])
    load = f"load_checkpoint({'model' if names else 'your_model'}, {path!r})"
    if not names:
        entries = listed([brief(key, quoted=False) for key in weights], 3)
        command = f"sanet eval {path} --data DIR --model NAME, with the model's name in timm"
        return {
            "model": f"not known by its entries, such as {entries}",
            "load it": [command, "from shuffle_attention import load_checkpoint", load],
        }
    return {
        "model": f"{' or '.join(names)} of timm, by its entries",
        "classes": "no classifier" if num_classes is None else str(num_classes),
        "load it": [
            f"sanet eval {path} --data DIR --model {names[0]}",
            "import timm",
            "from shuffle_attention import load_checkpoint",
            f"model = timm.create_model({names[0]!r}, num_classes={num_classes or 0})",
            load,
        ],
    }


def _of_weights(known: Architecture, path: str) -> dict[str, Any]:
    """Return what weights are without a recipe, which their names and shapes tell."""
    body = f"{known.detector} on {known.model}" if known.detector else known.model
    likeness = "" if not known.differing else ", or one like it"
    answer: dict[str, Any] = {"model": f"{body}{likeness}; input of {counted(known.in_chans, 'channel')}"}
    if known.small_stem:
        answer["model"] += ", with the 3x3 stem for small images"
    if known.prefixes:
        answer["prefix"] = f"{' and '.join(map(repr, known.prefixes))}, which loading removes"
    if known.attention:
        answer["attention"] = _attention(known)
    answer["classes"] = "no classifier" if known.num_classes is None else str(known.num_classes)
    if known.detector and known.num_classes:
        answer["classes"] = f"{known.num_classes - 1} and the background"
    faults = {"missing": known.missing, "unexpected": known.unexpected, "of another shape": known.reshaped}
    differing = [f"{len(entries)} {kind}: {listed(entries, 4)}" for kind, entries in faults.items() if entries]
    answer["fits"] = differing or "all entries"
    if known.unused:
        answer["not used"] = listed(known.unused, 4)
    answer["load it"] = _code(known, path)
    return answer


def _attention(known: Architecture) -> str:
    """Return the name of the attention, and how it starts."""
    start = {"identity": "; starts as the identity", "published": "; starts as published", "": ""}[known.start]
    return f"{known.attention}{', attached' if known.attached else ''}{start}"


def _code(known: Architecture, path: str) -> list[str]:
    """Return commands, or lines of Python, that load weights."""
    from ...models.detectors import ARCHITECTURES

    arguments = "" if known.num_classes in (None, 1000) else f", num_classes={known.num_classes}"
    arguments += "" if known.in_chans == 3 else f", in_chans={known.in_chans}"
    base = f"resnet{known.model.rpartition('resnet')[2]}" if known.attached else known.model
    headless = [] if known.detector or known.num_classes is not None else ["fc.*"]
    differing = [*headless, *known.missing, *known.unexpected, *known.reshaped]
    may_differ = "" if not differing else f", may_differ={differing if len(differing) < 6 else ['...']}"
    note = ["# the entries in may_differ are not loaded; the model keeps its own, at their start"]
    note = note if len(differing) > len(headless) else []
    if known.detector and known.detector not in ARCHITECTURES:
        return [f"with torchvision, since this package has no {known.detector}"]
    if known.detector:
        arguments = f"{known.detector!r}, {known.model!r}, {known.num_classes}, weights={path!r}{may_differ}"
        code = ["from shuffle_attention.models.detectors import create_detector", *note]
        code.append(f"model = create_detector({arguments})")
    else:
        code = [
            "import timm, shuffle_attention.models",
            f"from shuffle_attention import {'attach, ' if known.attached else ''}load_checkpoint",
            f"model = timm.create_model({base!r}{arguments})",
        ]
        if known.small_stem:
            code.append("shuffle_attention.models.small_input_stem(model)")
        if known.attached:
            code.append(f"attach(model, {known.attention!r})")
        code += [*note, f"load_checkpoint(model, {path!r}{may_differ})"]
    commands = [f"sanet eval {path} --data DIR"] if not (known.detector or known.attached or differing) else []
    if known.attention == "none" and not known.detector and len(differing) == len(headless):
        sa = f"sa_{known.model}"
        commands.append(f"sanet train --model {sa} --initial {path} --data DIR   # attention starts as the identity")
    return [*commands, *code]


def _words(value: Any) -> str:
    """Return a value beside the weights in a few words."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}" if value.numel() > 1 else brief(value.item())
    if isinstance(value, Mapping | list | tuple):
        return counted(len(value), "value" if isinstance(value, list | tuple) else "entry")
    return brief(value)[:60]
