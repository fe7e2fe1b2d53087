"""The command ``sanet explain``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import InputError
from ..recipes.settings import option
from . import Command


@dataclass(kw_only=True)
class Explain(Command):
    """Draw where in images the evidence for a class is, for one model or several side by side.

    Instead of maps: the gates of shuffle attention (--gates), or metrics of how faithful the maps are (--scores).
    """

    name = "explain"
    summary = "show what models attend to"

    images: list[str] = option(..., "files, folders, globs, or - for standard input", positional=True, metavar="IMAGE")
    skip_bad_images: bool = option(False, "leave out what cannot be read")

    checkpoint: str | None = option(None, "of sanet train, a published one, or bare weights", "models", metavar="FILE")
    compare: list[str] | None = option(None, "several checkpoints or models, side by side", "models", metavar="FILE")
    model: str | None = option(
        None, "a model of timm; with --checkpoint, the one whose bare weights the file has", "models"
    )
    pretrained: bool = option(False, "fetch timm's weights of models that are named", "models")
    ema: bool | None = option(None, "averaged weights; used by default if there are any", "models")
    labels: list[str] = option([], "names for the models", "models", metavar="A,B", separator=",")
    img_size: int | None = option(None, "side of the input; by default as trained", "models", minimum=1)
    device: str = option("auto", "cpu, cuda, mps, ...", "models")

    output: str = option("explained", "folder to write to", "what to show", metavar="DIR")
    method: Literal["gradcam", "gradcam++", "layercam", "scorecam", "group"] = option(
        "gradcam", "kind of map", "what to show"
    )
    target: str | None = option(
        None, "name or number of a class; by default the predicted one", "what to show", metavar="CLASS"
    )
    layer: str | None = option(None, "a module, or stage1, stage2, ...; by default the last stage", "what to show")
    limit: int | None = option(None, "number of images, evenly spaced", "what to show", minimum=1)
    batch_size: int = option(16, "images at a time", "what to show", minimum=1)

    gates: bool = option(False, "the gates, groups and shuffles of shuffle attention", "instead of maps")
    scores: bool = option(False, "deletion, insertion, drop and increase, as a table", "instead of maps")
    channels: list[int] = option(
        [], "channels of --layer, with --gates", "with --gates or --scores", metavar="N,M", separator=","
    )
    boxes: str | None = option(
        None, "COCO annotations of the images, for the pointing game", "with --gates or --scores", metavar="FILE"
    )
    tolerance: float = option(0.0, "pixels that the pointing game allows", "with --gates or --scores", minimum=0)
    steps: int = option(32, "steps of deletion and insertion", "with --gates or --scores", minimum=1)

    def run(self) -> int:
        """Open the models and the images, and write what was asked for."""
        from ..console import console
        from ..data.coco_reading import read_coco
        from ..data.image_files import find_images, require_apart
        from ..device import open_process
        from ..explain.gates import write_gates
        from ..explain.maps import write_maps
        from ..explain.models import folder_of, open_models, try_size
        from ..explain.scoring import write_scores

        images, target, layer, batch_size = self.images, self.target, self.layer, self.batch_size
        for one, other in (("checkpoint", "compare"), ("gates", "scores")):
            if getattr(self, one) and getattr(self, other):
                raise InputError(f"--{one} and --{other} cannot be given together")
        folder = Path(self.output)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--output {self.output}: that is a file; name a folder")
        there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise InputError(f"--output {self.output}: {there} cannot be written to")
        if self.boxes is not None and (not self.scores or len(images) != 1 or not Path(images[0]).is_dir()):
            raise InputError("--boxes goes with --scores and one folder, in which the annotated files lie")
        if self.channels and not (self.gates and layer):
            raise InputError("--channels goes with --gates and --layer, whose channels they are")
        sources = self._sources()
        files = find_images(images, self.limit, skip_bad=self.skip_bad_images)
        coco = None
        if self.boxes is not None:
            coco = read_coco(self.boxes, images[0], check_files=False, skip_bad=self.skip_bad_images)
        classifiers = open_models(
            sources,
            labels=self.labels,
            pretrained=self.pretrained,
            ema=self.ema,
            img_size=self.img_size,
            of_weights=self.model if self.checkpoint is not None else None,
        )
        read = [*images, *(file.path for file in files)]
        require_apart(folder, read, [folder_of(folder, classifier, classifiers) for classifier in classifiers])
        if target is not None:
            for classifier in classifiers:
                classifier.target(target)
        with open_process(self.device) as process:
            for classifier in classifiers:
                classifier.model, classifier.process = process.to_device(classifier.model, channels_last=False), process
                if self.img_size is not None:
                    try_size(classifier, self.img_size)
            if self.scores:
                settings = {name: getattr(self, name) for name in ("method", "target", "layer", "steps", "tolerance")}
                written = write_scores(classifiers, files, batch_size, coco, settings, folder)
            elif self.gates:
                written = write_gates(classifiers, files, batch_size, target, layer, self.channels, folder)
            else:
                written = write_maps(classifiers, files, batch_size, self.method, target, layer, folder)
        for line in written:
            console.print(line)
        return 0

    def _sources(self) -> list[str]:
        """Return the files and models to open."""
        import timm

        if self.compare is not None:
            if self.model is not None:
                raise InputError("--compare takes models by their names too; --model cannot be given with it")
            return list(self.compare)
        if self.checkpoint is not None:
            return [self.checkpoint]
        if self.model is None:
            raise InputError("name a model: --checkpoint FILE, --compare FILE FILE ... or --model NAME")
        if not timm.is_model(self.model):
            raise InputError(f"no model {self.model!r}; a checkpoint is given with --checkpoint")
        return [self.model]
