"""Whether `sanet insert --rank` predicts anything: attention at the best three positions against three at random.

    python benchmarks/rank.py --output runs/rank --json benchmarks/results/rank.json --seeds 5

For each seed a plain ResNet is trained, its positions are ranked, and training goes on with attention, attached as the
identity, at the best three positions, at three that are drawn from the others, and nowhere. Runs are resumed and
finished ones are kept: the same command continues. "difference" is the mean over the seeds of the final validation loss
and top-1 less those of the random positions, with Student's 95 % interval.
"""

import argparse
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from shuffle_attention.files import write_json
from shuffle_attention.sanet.device import Process
from shuffle_attention.sanet.environment import environment
from shuffle_attention.sanet.profile.rank import rank_positions
from shuffle_attention.sanet.recipes.recipe import Recipe, load_recipe
from shuffle_attention.sanet.recipes.settings import read_yaml
from shuffle_attention.sanet.statistics import paired_difference
from shuffle_attention.sanet.tasks.classification.rank import random_batches
from shuffle_attention.sanet.tasks.classification.task import Classification
from shuffle_attention.sanet.training.loop import train
from shuffle_attention.sanet.training.run_folder import RunFolder, read_rows

PLAIN = {"model": "resnet18", "model_args": {"channels": [16, 32, 64, 128], "zero_init_last": False}}


def trained(folder: Path, recipe: Recipe) -> tuple[RunFolder, dict[str, Any]]:
    """Train, unless the run is finished, and return its folder and its last row of metrics."""
    files = RunFolder(folder)
    if not files.summary.exists():
        process = Process(torch.device(recipe.device))
        train(recipe, files.folder, process, task=Classification, resume=files.last.exists())
    return files, read_rows(files.metrics)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--json", type=Path, required=True, help="file of the results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--set", nargs="*", default=["recipe=digits"], metavar="FIELD=VALUE", help="recipe and fields")
    arguments = parser.parse_args()
    given = dict(pair.split("=", 1) for pair in arguments.set)
    recipe = load_recipe(given.pop("recipe", "digits")).replaced(**PLAIN, report=False, device="cpu")
    recipe = recipe.replaced(**{name: read_yaml(value) for name, value in given.items()})
    scores: dict[str, dict[str, dict[int, float]]] = {"val_loss": {}, "val_top1": {}}
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        own = recipe.replaced(seed=seed)
        plain, _ = trained(arguments.output / f"plain-{seed}", own)
        model, batches = random_batches(
            str(plain.last), {"workers": 0}, count=arguments.batches, batch_size=32, seed=seed
        )
        ranking = rank_positions(model, batches)
        names = [row.position for row in ranking]
        others = sorted(random.Random(seed).sample(names[3:], 3))
        for variant, where in (("best", names[:3]), ("random", others), ("none", [])):
            attach = {"attach": {"name": "shuffle", "where": where}} if where else {}
            _, last = trained(arguments.output / f"{variant}-{seed}", own.replaced(initial=str(plain.last), **attach))
            rows.append({"seed": seed, "variant": variant, "where": where} | {name: last[name] for name in scores})
            for name, by_variant in scores.items():
                by_variant.setdefault(variant, {})[seed] = float(last[name])
        rows.append({"seed": seed, "ranking": [asdict(row) for row in ranking]})
        differences = {
            name: {
                variant: asdict(difference)
                for variant in ("best", "none")
                if (difference := paired_difference(by_variant[variant], by_variant["random"]))
            }
            for name, by_variant in scores.items()
        }
        write_json(
            arguments.json, {"rows": rows, "difference": differences, "recipe": recipe.to_dict(), **environment()}
        )


if __name__ == "__main__":
    main()
