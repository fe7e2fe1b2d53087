"""The command ``sanet pack``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...files import write_text
from ..recipes.settings import option
from . import Command

if TYPE_CHECKING:
    from ..tasks.classification.predictor import Classifier

_CARD = """---
{data}
---

# {title}

{model}, trained on {dataset} with [shuffle-attention](https://pypi.org/project/shuffle-attention).

## Intended use

{use}

## Results

{results}

## Use

```python
import timm
import shuffle_attention.models

model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

`sanet eval DIR --data IMAGES` evaluates a copy of this folder, and `sanet predict DIR IMAGES` classifies images.

## Input and classes

{view}

{classes}

## Training

{recipe}

## Source

Zhang and Yang, SA-Net: Shuffle Attention for Deep Convolutional Neural Networks, ICASSP 2021, arXiv:2102.00240.
"""


@dataclass(kw_only=True)
class Pack(Command):
    """Write a trained classifier as a folder for the Hugging Face Hub, which timm and sanet load.

    The folder has model.safetensors, config.json (classes, mean, standard deviation, crop) and a model card with the
    data, the recipe and the metrics of the run. It is kept if the model that timm creates from it computes the same.
    """

    name = "pack"
    summary = "write a classifier as a folder for the Hugging Face Hub"
    examples = "sanet pack runs/photos --license mit --output photos-model"

    run_: str = option(..., "folder of a run, or checkpoint", positional=True, metavar="RUN")
    output: str = option(..., "folder to write, which must not exist", metavar="DIR")
    license: str = option(..., "licence of the weights, by the Hub's name, such as mit or cc-by-nc-4.0")
    title: str | None = option(None, "title of the model card (name of DIR)")
    intended_use: str | None = option(None, "what the model is for, as text of the card", metavar="TEXT")
    ema: bool | None = option(None, "averaged weights; used by default if there are any")
    push: str | None = option(None, "upload the folder to this repository of the Hub, OWNER/NAME", metavar="REPOSITORY")
    private: bool = option(False, "create the repository as a private one")

    def run(self) -> int:
        """Write the folder, compare it with the checkpoint, and upload it if asked to."""
        import tempfile

        from ..console import console
        from ..tasks.classification.predictor import restore_network
        from ..training.run_folder import RunFolder

        folder = Path(self.output)
        if folder.exists():
            raise InputError(f"--output {folder} exists; name a folder that does not")
        if not folder.resolve().parent.is_dir():
            raise InputError(f"--output {folder}: there is no folder {folder.resolve().parent}")
        files = RunFolder(Path(self.run_)) if Path(self.run_).is_dir() else None
        predictor = restore_network(files.best if files else self.run_, ema=self.ema)
        summary = files.read_summary() if files and files.summary.exists() else {}
        with tempfile.TemporaryDirectory(dir=folder.resolve().parent, prefix=f".{folder.name}.unfinished-") as parent:
            unchecked = Path(parent) / folder.name
            _write(predictor, unchecked)
            write_text(unchecked / "README.md", self._card(predictor, summary))
            unchecked.rename(folder)
        console.print(f"{folder} holds {predictor.label}; timm.create_model('local-dir:{folder}', pretrained=True)")
        if self.push is not None:
            console.print(f"uploaded to {_push(folder, self.push, private=self.private)}")
        return 0

    def _card(self, predictor: Classifier, summary: dict[str, Any]) -> str:
        from huggingface_hub import EvalResult, ModelCardData

        from ...errors import counted, listed
        from ..report.run import changed_fields
        from ..tasks.classification.task import TASK
        from ..tasks.task import outcome

        recipe, title = predictor.recipe, self.title or Path(self.output).name
        dataset = Path(recipe.data).name if summary else "data that the checkpoint does not name"
        best: dict[str, float] = summary.get("best", {})
        results = "The checkpoint has no record of a run."
        scores = None
        if best:
            rows = [f"| {name} | {value} |" for name, value in outcome(TASK.metrics, best).items()]
            machine = ", ".join(f"{name} {summary[name]}" for name in ("cpu", "torch", "commit") if summary.get(name))
            measured = f"Validation data of {dataset}, epoch {int(best['epoch'])}; {machine}."
            results = "\n".join(["| metric | value |", "|---|---:|", *rows, "", measured])
            value = round(best["val_top1"] / 100, 6)
            scores = [EvalResult("image-classification", dataset, dataset, "accuracy", value)]
        data = ModelCardData(
            license=self.license,
            library_name="timm",
            pipeline_tag="image-classification",
            tags=["image-classification", "timm", "shuffle-attention"],
            model_name=title,
            eval_results=scores,
        )
        size = f"{recipe.in_chans} x {recipe.img_size} x {recipe.img_size}"
        names = predictor.names
        use = f"Classifying images like those of {dataset}. It was not tested on others."
        changed = [f"| {name} | {value} |" for name, value, _ in changed_fields(recipe)]
        return _CARD.format(
            data=data.to_yaml().strip(),
            title=title,
            model=f"{predictor.label}, {predictor.about}",
            dataset=dataset,
            use=self.intended_use or use,
            results=results,
            repository=self.push or f"OWNER/{Path(self.output).name}",
            view=f"Images of {size} values, resized with {recipe.interpolation} interpolation and cropped to the share "
            f"{recipe.crop_pct:g}; mean {recipe.mean}, standard deviation {recipe.std}.",
            classes=f"{counted(len(names), 'class')}: {listed(names, 50)}.",
            recipe="\n".join(
                ["Settings that differ from their defaults:", "", "| setting | value |", "|---|---|", *changed]
            ),
        )


def _write(predictor: Classifier, folder: Path) -> None:
    """Write weights and configuration, load them with timm, and compare the logits.

    Raises:
        InputError: If timm cannot create the model from its name and arguments.
    """
    import timm
    import torch
    from timm.models import save_for_hf

    from ...models.attention_resnet import AttentionResNet
    from ...models.sa_resnet import SAResNet

    recipe, model = predictor.recipe, predictor.model
    if recipe.attach:
        raise InputError(
            f"{predictor.source} has attached attention, which timm cannot create from a configuration; train "
            f"sa_{recipe.model} or attention_{recipe.model} instead, or share the checkpoint itself"
        )
    args = {"num_classes": predictor.num_classes, "in_chans": recipe.in_chans, **recipe.model_args}
    if recipe.small_stem:
        if not isinstance(model, SAResNet | AttentionResNet):
            raise InputError(
                f"{predictor.source} is a {recipe.model} with the stem for small images, which timm cannot create from "
                "a configuration; attention_resnet with attention none has this stem and the same layers"
            )
        args["small_stem"] = True
    size = (recipe.in_chans, recipe.img_size, recipe.img_size)
    view = {name: getattr(recipe, name) for name in ("mean", "std", "crop_pct", "interpolation")}
    content = {
        "kind": recipe.kind,
        "recipe": recipe.shared().to_dict(),
        "num_classes": predictor.num_classes,
        "classes": predictor.classes,
    }
    config = {"label_names": predictor.names, "shuffle_attention": content}
    model.pretrained_cfg.pop("tag", None)  # type: ignore[union-attr]
    save_for_hf(
        model,
        str(folder),
        model_config=config,
        model_args=args,
        safe_serialization=True,
        data_config={"input_size": size, **view},
    )
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = torch.equal(model.eval()(images), loaded(images))
    if not same:
        raise InputError(f"{predictor.source}: timm creates a model that computes something else")


def _push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder to a repository of the Hub, which is created where it does not exist, and return its address."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="shuffle-attention")
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Upload model")
    except Exception as error:  # libraries of the network raise errors of many types
        raise InputError(
            f"{folder} was written, and not uploaded to {repository} ({type(error).__name__}: {str(error)[:200]}); "
            "hf auth login stores an access token"
        ) from error
    return str(address)
