"""A task from outside the package: a regression of the brightness of images, which trains in milliseconds."""

from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from shuffle_attention import load_checkpoint
from shuffle_attention.checkpoints import read_checkpoint
from shuffle_attention.sanet import tasks
from shuffle_attention.sanet.cli import collect
from shuffle_attention.sanet.commands import Command
from shuffle_attention.sanet.commands.train import Train
from shuffle_attention.sanet.network import recipe_of
from shuffle_attention.sanet.recipes.recipe import RunRecipe
from shuffle_attention.sanet.recipes.settings import option
from shuffle_attention.sanet.tasks.evaluation import Scores, run_model
from shuffle_attention.sanet.tasks.predictor import Prediction, Predictor
from shuffle_attention.sanet.tasks.task import Metric, Task


@dataclass(kw_only=True)
class BrightnessRecipe(RunRecipe):
    kind = "brightness"
    command = "sanet brightness train"
    shipped = "recipes"

    channels: int = option(4, "hidden channels", "model")

    @property
    def title(self) -> str:
        return "brightness"


class GreyImages(Dataset):
    """Grey images (1, 8, 8) of random brightness; a training key has the epoch before the index."""

    def __init__(self, count: int, seed: int):
        self.brightness = torch.rand(count, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.brightness)

    def __getitem__(self, key):
        value = self.brightness[key[1] if isinstance(key, tuple) else key]
        return value.expand(1, 8, 8), value


def brightness_model(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, channels, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(1))


@dataclass(kw_only=True, eq=False)
class BrightnessPredictor(Predictor):
    def inputs(self, image: Image.Image) -> Tensor:
        return functional.pil_to_tensor(image.convert("L"))[None] / 255

    def pixels(self, inputs: Tensor) -> Tensor:
        return inputs[0].expand(3, -1, -1).permute(1, 2, 0)

    @torch.inference_mode()
    def predict(self, image: Image.Image, threshold: float = 0.0) -> Prediction:
        value = float(self.model(self.inputs(image)))
        return Prediction([("brightness", value)], f"brightness {value:.2f}", lambda: image)


class Brightness(Task[BrightnessRecipe]):
    Recipe = BrightnessRecipe
    metric = "val_error"
    averages = MappingProxyType({"train_loss": 1.0})
    metrics = (
        Metric("train_loss", "loss", panel="squared error"),
        Metric("val_error", "error", "{:.3f}", "absolute error", "lower"),
    )

    @classmethod
    def open(cls, recipe, *, check):
        return cls(recipe, GreyImages(64, seed=0), GreyImages(18, seed=1))

    @classmethod
    def restore(cls, path, **options):
        recipe, num_classes = recipe_of(read_checkpoint(path), path, BrightnessRecipe)
        model = cls.open(recipe, check=False).create_model(restored=True)
        load_checkpoint(model, path)
        names = {"source": str(path), "label": recipe.title}
        return BrightnessPredictor(model=model, recipe=recipe, classes=None, num_classes=num_classes, **names)

    def create_model(self, *, restored):
        model = brightness_model(self.recipe.channels)
        model(torch.zeros(1, 1, 8, 8))
        return model

    def loss(self, trainer, batch, process):
        images, values = (part.to(process.device) for part in batch)
        loss = nn.functional.mse_loss(trainer(images)[:, 0], values)
        return loss, torch.stack([loss.detach() * len(images), torch.tensor(float(len(images)))])

    def evaluate(self, model, batches, process, *, watch=None):
        errors = []
        speed = run_model(
            model, batches, process, lambda _, out, values: errors.append((out[:, 0] - values).abs()), watch=watch
        )
        error = torch.cat(errors)
        return Scores({"error": float(error.mean())}, len(error), 0, speed)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the task, and a command that trains it, until the end of the test."""
    monkeypatch.setattr(tasks, "_registered", {})
    monkeypatch.setattr(Command, "known", collect())
    tasks.register_task(Brightness)

    @dataclass(kw_only=True)
    class TrainBrightness(Train):
        """Train a regression of brightness."""

        name = "brightness train"
        summary = "train a regression of brightness"
        recipe_type = BrightnessRecipe
