"""A classifier without the attention whose gates are constant over its images, and the checkpoint of a plain model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ....attention import attention_names, get_spec
from ....checkpoints import read_checkpoint, write_checkpoint
from ....deploy import Artefact, ConstantGatesReport, drop_constant_gates
from ....deploy.format import METADATA, described
from ....errors import InputError, listed
from ....models.sa_resnet import STAGES
from ...device import Process
from ...network import create_network
from ...recipes.recipe import Recipe
from .predictor import Classifier
from .task import Classification

_CPU = Process(torch.device("cpu"))
_ATTENTION_ARGS = ("attention", "attention_options", "groups")


def fold_constant_gates(classifier: Classifier, tolerance: float, batch_size: int = 64) -> ConstantGatesReport:
    """Fold the attention of a classifier whose gates are constant over the validation images of its recipe, in place.

    Raises:
        InputError: If the classifier has no attention, or there are no images.
    """
    task = Classification.open_validation(classifier)
    batches = task.held_out(_CPU, batch_size)
    readable = (images[labels >= 0] for images, labels in batches if bool((labels >= 0).any()))
    classifier.model, report = drop_constant_gates(classifier.to(_CPU).model, readable, tolerance)
    return report


def write_plain(
    classifier: Classifier, report: ConstantGatesReport, path: Path, metadata: Mapping[str, Any]
) -> Artefact:
    """Write a checkpoint of a classifier without attention, and return the model that it holds.

    Its weights, under ``model``, have the names and shapes of the plain model in timm and torchvision, and its recipe
    names that model. The metadata are not written.

    Raises:
        InputError: If attention is left, or the weights do not fit the plain model.
    """
    if report.kept:
        raise InputError(
            f"{path.name} would hold the weights of a plain model, and {len(report.kept)} attention layers are not "
            f"constant within {report.tolerance:g}: {listed([*report.kept], 4)}; a larger tolerance folds more, and an "
            f"exported file such as model.onnx may have attention"
        )
    recipe = plain_recipe(classifier.recipe)
    model = create_network(recipe, classifier.num_classes, restored=True)
    weights = classifier.model.state_dict()
    content = {"kind": recipe.kind, "recipe": recipe.shared().to_dict(), "num_classes": classifier.num_classes}
    write_checkpoint({**content, "classes": classifier.classes, "model": weights}, path)
    written = read_checkpoint(path)["model"]
    try:
        model.load_state_dict(written)
    except RuntimeError as error:
        raise InputError(f"without attention, {classifier.label} is not {recipe.model}: {error}") from error
    described_as = json.loads(described(metadata, weights.values())[METADATA])
    return Artefact(path, model.eval().forward, metadata=described_as, content=written.values)


def plain_recipe(recipe: Recipe) -> Recipe:
    """Return a recipe with the model that is left of its model without attention."""
    specs = [get_spec(name) for name in attention_names()]
    plain = {f"attention_resnet{depth}": f"resnet{depth}" for depth in STAGES}
    plain |= {spec.resnet(depth): f"resnet{depth}" for spec in specs if spec.resnet for depth in STAGES}
    args = {name: value for name, value in recipe.model_args.items() if name not in _ATTENTION_ARGS}
    return recipe.replaced(model=plain.get(recipe.model, recipe.model), model_args=args, attach={}, memory="keep")
