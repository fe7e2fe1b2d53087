"""The commands ``sanet eval`` and ``sanet detect eval``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ...errors import InputError, counted
from ...files import require_folder_of, write_csv, write_json
from ..recipes.recipe import Recipe
from ..recipes.settings import option
from ..tasks.detection.recipe import DetectionRecipe
from . import Command

if TYPE_CHECKING:
    from ..tasks.evaluation import Scores

_MOST_CLASSES = 20  # in the printed table


@dataclass(kw_only=True)
class Evaluate(Command):
    """Evaluate a classifier on its validation data, or on other images."""

    name = "eval"
    summary = "evaluate a classifier"
    recipe_type = Recipe
    recipe_fields = (
        "data data_dir val_split val_fraction split_seed workers check_images skip_bad_images as_stored bit_depth "
        "img_size mean std interpolation crop_pct model model_args in_chans small_stem device precision channels_last"
    )

    checkpoint: str = option(..., "checkpoint, bare weights, or a deployed file", positional=True)
    batch_size: int = option(128, "images at a time", minimum=1)
    ema: bool | None = option(None, "averaged weights; used by default if there are any")
    rewrite: bool = option(True, "evaluate a faster copy that computes the same, with folded norms and no shuffle")
    json: str | None = option(None, "write the metrics to FILE", metavar="FILE")
    predictions: str | None = option(None, "write each image's class and prediction to FILE, as CSV", metavar="FILE")

    def run(self) -> int:
        """Evaluate the checkpoint, and print and write its metrics."""
        from ..console import console
        from ..device import open_process
        from ..environment import environment
        from ..tasks import task_named

        require_folder_of("--json", self.json)
        require_folder_of("--predictions", self.predictions)
        task, settings = task_named(self.recipe_type.kind), {"device": "auto", "workers": 2, **self.overrides}
        predictor = task.restore(self.checkpoint, ema=self.ema, settings=settings)
        recipe = predictor.recipe
        if not predictor.knows_data and "data" not in self.overrides:
            what = "what" if recipe.has_data else f"where {recipe.data} is, which"
            raise InputError(
                f"{self.checkpoint} does not say {what} its model was trained on; name images by --data DIR"
            )
        if self.rewrite:
            predictor.rewrite()
        with open_process(recipe.device) as process:
            opened = task.open_validation(predictor)
            batches = opened.held_out(process, self.batch_size)
            scores = opened.evaluate(predictor.to(process).model, batches, process)
            if process.rank != 0:
                return 0
        left_out = getattr(opened.validation, "left_out", 0)
        scores = replace(scores, unreadable=scores.unreadable + left_out)
        metrics: dict[str, Any] = {
            "checkpoint": str(self.checkpoint),
            "weights": predictor.weights,
            "rewritten": predictor.rewritten and asdict(predictor.rewritten),
            "model": recipe.title,
            "data": recipe.data,
            "classes": len(predictor.names),
            **self.details(opened, scores),
            **scores.to_dict(),
            "batch_size": self.batch_size,
            "device": str(process.device),
            **environment(),
        }
        self.show(metrics)
        if scores.unreadable:
            console.print(f"{counted(scores.unreadable, 'image')} could not be read and not counted")
        if self.json is not None:
            write_json(self.json, metrics)
        if self.predictions is not None:
            self.write_predictions(self.predictions, opened, scores)
        return 0

    def details(self, opened: Any, scores: Scores) -> dict[str, Any]:
        """Return what the file of metrics says of the input of the task's model, and of each class."""
        import torch

        from ..tasks.classification.report import Predictions, scores_by_class
        from ..tasks.predictor import readable

        labels, predicted = (torch.tensor([each[name] for each in scores.results]) for name in ("label", "predicted"))
        predictions = Predictions(labels, predicted, opened.num_classes, [], scores.metrics["loss"], scores.unreadable)
        by_class = [
            {"name": each.name, "images": each.images, "recall": each.recall, "precision": each.precision}
            for each in scores_by_class(predictions, readable(opened.classes, opened.num_classes))
        ]
        recalls = [each["recall"] for each in by_class if each["recall"] is not None]
        about = {"img_size": opened.recipe.img_size, "crop_pct": opened.recipe.crop_pct}
        return {**about, "mean_recall": sum(recalls) / len(recalls), "by_class": by_class}

    def show(self, metrics: dict[str, Any]) -> None:
        """Print the metrics as a table."""
        from ..console import console, table

        columns = ("top-1 %", "top-5 %", "loss", "images", "images/s", "size", "classes", "weights")
        scores = table(columns, title=f"{metrics['model']} from {metrics['checkpoint']}")
        accuracy = f"{metrics['top1']:.3f}", f"{metrics['top5']:.3f}", f"{metrics['loss']:.4f}"
        speed = f"{metrics['images']:,}", f"{metrics['images_per_second']:,.0f}"
        size = str(metrics["img_size"]), str(metrics["classes"])
        scores.add_row(*accuracy, *speed, *size, metrics["weights"] or "state dict")
        console.print(scores)
        classes = [each for each in metrics["by_class"] if each["images"]]
        rows = [
            (each["name"], f"{each['images']:,}", f"{each['recall']:.2f}", _percent(each["precision"]))
            for each in classes
        ]
        title = f"lowest recall first; the mean of all classes is {metrics['mean_recall']:.2f} %"
        _print_classes(("class", "images", "recall %", "precision %"), rows, title)

    def write_predictions(self, path: str, opened: Any, scores: Scores) -> None:
        """Write a row per readable image: file, class, most probable class, and its probability."""
        from ..data.datasets import Samples

        classes, rows = opened.classes or range(opened.num_classes), []
        for each in scores.results:
            index = each["index"]
            name = opened.validation.name(index) if isinstance(opened.validation, Samples) else index
            predicted = {"label": classes[each["label"]], "predicted": classes[each["predicted"]]}
            rows.append({"file": name, **predicted, "probability": f"{each['probability']:.6g}"})
        write_csv(path, rows, ("file", "label", "predicted", "probability"))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _print_classes(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    """Print the scores of the first classes as a table, unless there is only one class."""
    from ..console import console, table

    if len(rows) < 2:
        return
    by_class = table(columns, title=title)
    for row in rows[:_MOST_CLASSES]:
        by_class.add_row(*row)
    console.print(by_class)
    if len(rows) > _MOST_CLASSES:
        console.print(f"and {counted(len(rows) - _MOST_CLASSES, 'more class')}, which --json FILE has too")


@dataclass(kw_only=True)
class EvaluateDetector(Evaluate):
    """Evaluate a detector by COCO's metrics."""

    name = "detect eval"
    summary = "evaluate a detector"
    recipe_type = DetectionRecipe
    recipe_fields = (
        "data val_annotations val_images workers check_images skip_bad_images as_stored bit_depth min_size "
        "max_size device precision channels_last"
    )

    checkpoint: str = option(..., "checkpoint of sanet detect train, or a file of sanet detect export", positional=True)
    batch_size: int = option(4, "images at a time", minimum=1)
    predictions: str | None = option(
        None, "write the detections to FILE, as COCO's results", metavar="FILE", aliases=("--results",)
    )

    def details(self, opened: Any, scores: Scores) -> dict[str, Any]:
        """Return what the file of metrics says of the data and the input of the task's model, and of each class."""
        from ..tasks.detection.class_scores import scores_by_class

        recipe = opened.recipe
        by_class = scores_by_class(opened.data, scores.results, masks="mask_AP" in scores.metrics)
        about = {"data": opened.data.source, "min_size": recipe.min_size[-1], "max_size": recipe.max_size}
        return {**about, **by_class.to_dict()}

    def show(self, metrics: dict[str, Any]) -> None:
        """Print COCO's scores, one line for boxes and one for masks; a dash where no object has the size."""
        from ..console import console, table
        from ..tasks.detection.coco_scores import COCO_SCORES, score_text

        scores = table(("", *COCO_SCORES), title=f"{metrics['model']} from {metrics['checkpoint']}")
        for kind in ("box", "mask"):
            if f"{kind}_AP" in metrics:
                scores.add_row(kind, *(score_text(metrics[f"{kind}_{name}"]) for name in COCO_SCORES))
        console.print(scores)
        classes = [each for each in metrics["by_class"] if each["AP"] is not None]
        names = ("AP", "AP50", "recall", "precision")
        rows = [
            (each["name"], f"{each['objects']:,}", *(f"{each[name]:.3f}" for name in names))
            for each in sorted(classes, key=lambda each: each["AP"])
        ]
        title = f"lowest AP first; recall and precision at a score of {metrics['score_threshold']:.2f}"
        _print_classes(("class", "objects", *names), rows, title)
        console.print(f"{counted(metrics['images'], 'image')}, {metrics['images_per_second']:,.1f} images/s")

    def write_predictions(self, path: str, opened: Any, scores: Scores) -> None:
        """Write the detections as COCO's results."""
        write_json(path, scores.results, indent=None)
