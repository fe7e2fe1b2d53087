"""Train ResNet-18 on CIFAR-10 with and without attention, all images on the device.

The recipe: SGD with Nesterov momentum 0.9, batches of 512, a learning rate that rises linearly to 0.4 over a fifth of
the steps and falls linearly to 0, weight decay 5e-4 (none for norms, biases and gates), label smoothing 0.1, random
crops of images padded by 4 and random flips, bfloat16 by autocast, channels_last. The accuracy is that of the last
epoch. Runs with the same seed see the same images in the same order; seeds come before variants, so that a stop leaves
as many seeds of each.
"""

import argparse
import functools
import io
import itertools
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from shuffle_attention.files import atomic_write
from shuffle_attention.models.attention_resnet import resnet_with
from shuffle_attention.models.sa_resnet import small_input_stem
from shuffle_attention.sanet.statistics import paired_difference, summary

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "shuffle": ("shuffle", {}),
    "shuffle off": ("shuffle", {"attention_options": {"shuffle": False}}),
    "se": ("se", {}),
}
PAD, SMOOTHING, SAVE_EVERY = 4, 0.1, 60.0  # pixels; -; seconds
RECIPE = {"batch": 512, "rate": 0.4, "rise": 0.2, "decay": 5e-4, "momentum": 0.9}
Data = tuple[Tensor, Tensor, Tensor, Tensor]
"""Images (N, H, W, 3), uint8, those of the training set padded, and labels: training set, test set."""


def files_of(path: Path) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """Read an archive or a folder; yield the last three parts of each path, and the file."""
    if path.is_dir():
        for file in path.rglob("*"):
            if file.is_file():
                yield file.parts[-3:], file.read_bytes()
        return
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield PurePosixPath(member.name).parts[-3:], content.read()


def read_images(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return images (N, H, W, 3) and labels of ``train`` and ``test``, in the order of their paths.

    Raises:
        ValueError: If one of them has no images, or their classes differ.
    """
    files = {at: content for at, content in files_of(path) if len(at) == 3 and at[0] in ("train", "test")}
    read, classes = {}, sorted({at[1] for at in files})
    for split in ("train", "test"):
        chosen = sorted(at for at in files if at[0] == split)
        if {at[1] for at in chosen} != set(classes) or not classes:
            raise ValueError(f"{path} must have images of the same classes as train/CLASS/IMAGE and test/CLASS/IMAGE")
        images = np.stack([np.asarray(Image.open(io.BytesIO(files[at])).convert("RGB")) for at in chosen])
        read[split] = torch.from_numpy(images), torch.tensor([classes.index(at[1]) for at in chosen])
    return read


def load(options: argparse.Namespace) -> Data:
    """Return the data on the device; a dry run without ``--data`` has random images of 8 pixels."""
    if options.data:
        read = read_images(options.data)
    else:
        generator = torch.Generator().manual_seed(0)
        shapes = {"train": (48, 8, 8, 3), "test": (20, 8, 8, 3)}
        read = {
            split: (
                torch.randint(256, shape, dtype=torch.uint8, generator=generator),
                torch.randint(10, shape[:1], generator=generator),
            )
            for split, shape in shapes.items()
        }
    padded = nn.functional.pad(read["train"][0], (0, 0, PAD, PAD, PAD, PAD))
    tensors = padded, read["train"][1], read["test"][0], read["test"][1]
    return tuple(t.to(options.device) for t in tensors)  # type: ignore[return-value]


def batches(data: Data, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an epoch of randomly cropped and flipped images (B, 3, H, W), float32, channels_last, and labels."""
    images, labels, *_ = data
    generator = torch.Generator().manual_seed(seed)  # a CPU generator draws the same numbers for any device
    order = torch.randperm(len(images), generator=generator)
    corner = torch.randint(2 * PAD + 1, (len(images), 2, 1), generator=generator)
    flip = torch.randint(2, (len(images), 1), generator=generator) == 1
    rows, columns = (torch.arange(length - 2 * PAD) for length in images.shape[1:3])
    rows, columns = corner[:, 0] + rows, corner[:, 1] + torch.where(flip, columns.flip(0), columns)
    order, rows, columns = (t.to(images.device) for t in (order, rows, columns))
    for start in range(0, len(images) - size + 1, size):
        part = slice(start, start + size)
        yield images[order[part, None, None], rows[part, :, None], columns[part, None]], labels[order[part]]


def prepared(images: Tensor) -> Tensor:
    """Return uint8 images (B, H, W, 3) as (B, 3, H, W), float32 around 0, channels_last."""
    return ((images.float() - 120) / 64).permute(0, 3, 1, 2)


def rate(step: int, steps: int) -> float:
    """Return the learning rate of a step."""
    rise = max(1, round(RECIPE["rise"] * steps))
    return RECIPE["rate"] * min((step + 1) / rise, (steps - step) / (steps - rise + 1))


def create(variant: str, classes: int, seed: int, options: argparse.Namespace) -> nn.Module:
    attention, further = VARIANTS[variant]
    name, fixed = resnet_with(attention, 18)
    if options.dry_run:
        further = {**further, "channels": (16, 32, 64, 128)}
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=classes, **fixed, **further)
    small_input_stem(model)
    return model.to(options.device, memory_format=torch.channels_last)


def train(
    variant: str, seed: int, job: str, load: Callable[[], Data], rows, options: argparse.Namespace
) -> dict[str, Any] | None:
    """Train one model, or continue it, and return its row; None if the time is over before its end."""
    data, path = load(), options.out / "unfinished.pt"
    batch = 8 if options.dry_run else int(RECIPE["batch"])
    per_epoch = len(data[0]) // batch
    steps, classes = per_epoch * options.epochs, int(data[1].max()) + 1
    model = create(variant, classes, seed, options)
    optimizer = create_optimizer_v2(
        model, opt="sgd", lr=RECIPE["rate"], weight_decay=RECIPE["decay"], momentum=RECIPE["momentum"]
    )
    state: dict[str, Any] = {"job": job, "commit": rows.about["commit"], "epoch": 0, "seconds": 0.0, "loss": []}
    if path.exists():
        before = torch.load(path, map_location=options.device, weights_only=True)
        if all(before[key] == state[key] for key in ("job", "commit")):
            model.load_state_dict(before.pop("model"))
            optimizer.load_state_dict(before.pop("optimizer"))
            state = before
    saved, longest = time.monotonic(), 0.0
    for epoch in range(state["epoch"], options.epochs):
        began = time.monotonic()
        stop = began + longest > rows.until
        if stop or began - saved > SAVE_EVERY:
            with atomic_write(path) as file:
                torch.save({**state, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            saved = time.monotonic()
        if stop:
            return None
        model.train()
        total = torch.zeros((), device=options.device)
        for step, (images, labels) in enumerate(batches(data, batch, 1000 * seed + epoch)):
            for group in optimizer.param_groups:
                group["lr"] = rate(epoch * per_epoch + step, steps)
            with torch.autocast(options.device, torch.bfloat16):
                loss = nn.functional.cross_entropy(model(prepared(images)), labels, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        state["loss"] = [*state["loss"], total.item() / per_epoch]
        longest = max(longest, time.monotonic() - began)
        state["seconds"] += time.monotonic() - began
        state["epoch"] = epoch + 1
    accuracy = evaluate(model, data, options)
    path.unlink(missing_ok=True)
    row = {"variant": variant, "seed": seed, "epochs": options.epochs, "accuracy": accuracy, "loss": state["loss"]}
    row |= {
        "seconds": round(state["seconds"], 1),
        "images": [len(data[0]), len(data[2])],
        "recipe": RECIPE | {"batch": batch},
    }
    return row | {"text": f"accuracy {accuracy:.2%}, {row['seconds']} s"}


@torch.inference_mode()
def evaluate(model: nn.Module, data: Data, options: argparse.Namespace) -> float:
    """Return the share of the test set that is classified correctly."""
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=options.device)
    for images, labels in zip(data[2].split(1000), data[3].split(1000), strict=True):
        with torch.autocast(options.device, torch.bfloat16):
            right += (model(prepared(images)).argmax(1) == labels).sum()
    return right.item() / len(data[3])


def run(rows, options: argparse.Namespace) -> list[str]:
    """Add a row for each variant and seed, print means and deviations, and return the names of the rows."""
    if options.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    data = functools.cache(functools.partial(load, options))
    jobs = {}
    for seed, variant in itertools.product(range(options.seeds), VARIANTS):
        name = f"{variant}, seed {seed}, {options.epochs} epochs"
        jobs[name] = (0.0, functools.partial(train, variant, seed, name, data, rows, options))
    jobs = {name: job for name, job in jobs.items() if options.only in name}
    names, current, scores = rows.run(jobs), rows.current(), {}
    for row in (current[name] for name in names if name in current and not current[name]["wrong"]):
        scores.setdefault(row["variant"], {})[row["seed"]] = 100 * row["accuracy"]
    for variant, by_seed in scores.items():
        difference = paired_difference(by_seed, scores.get("none", {}))
        print(variant, summary(by_seed), "minus none:", difference, sep="  ")
    return names
