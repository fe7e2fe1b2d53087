"""Speed of loading and augmenting small images: kept in memory and augmented in batches, or one by one from files.

    python benchmarks/loading.py --data cifar10 --json benchmarks/results/loading.json

Both ways take turns in one process; the median of the rounds is reported with its quartiles. "training" is the speed of
whole steps of the recipe's model, loading included. Without loader processes (--workers 0) the time is that of the
processor, with one thread: other work on the machine hardly changes it. With them it is that of the clock.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import torch

from shuffle_attention.files import write_json
from shuffle_attention.sanet.data.datasets import open_split
from shuffle_attention.sanet.data.loading import training_batches
from shuffle_attention.sanet.device import Process
from shuffle_attention.sanet.environment import environment
from shuffle_attention.sanet.network import create_network
from shuffle_attention.sanet.recipes.recipe import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train/ and val/")
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--images", type=int, default=3200, help="images of a round")
    parser.add_argument("--trained", type=int, default=0, help="images that are trained on in a round")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of images one by one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--channels", type=int, nargs=4, help="channels of the stages of the trained model")
    arguments = parser.parse_args()
    own = {"model_args": {"channels": arguments.channels}} if arguments.channels else {}
    recipe = load_recipe(arguments.recipe).replaced(
        data=arguments.data, check_images=False, workers=arguments.workers, **own
    )
    process = Process(torch.device("cpu"))
    speeds: dict[str, list[float]] = {}
    ways, seconds = {}, {}
    clock = time.perf_counter if arguments.workers else time.process_time
    if not arguments.workers:
        torch.set_num_threads(1)
    for name, megabytes in (("one by one", 0), ("in memory", recipe.cache_mb)):
        began = clock()
        ways[name] = training_batches(open_split(recipe, "train"), recipe.replaced(cache_mb=megabytes), process)
        seconds[name] = clock() - began
    model = create_network(recipe, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for round_ in range(arguments.rounds + 1):  # the first starts the loader processes and is not counted
        for name, batches in ways.items():
            for kind, images in (("loading", arguments.images), ("training", arguments.trained)):
                stream, began, count = batches.epoch(round_), 0.0, 0
                for number, (x, labels) in enumerate(stream):
                    if number == 1:
                        began = clock()
                    if kind == "training":
                        torch.nn.functional.cross_entropy(model(x), labels).backward()
                        optimizer.step()
                        optimizer.zero_grad()
                    count += len(labels)
                    if count >= images + recipe.batch_size:
                        break
                if images and round_:
                    speeds.setdefault(f"{kind}, {name}", []).append(images / (clock() - began))
    results = {name: quartiles(values) for name, values in speeds.items()}
    for name, (low, middle, high) in results.items():
        print(f"{name}: {middle:,.0f} images/s ({low:,.0f} to {high:,.0f})")
    print("seconds until the first epoch:", {name: round(value, 1) for name, value in seconds.items()})
    load = {
        "load": os.getloadavg(),
        "seconds_to_open": seconds,
        "threads": torch.get_num_threads(),
        "recipe": {**recipe.to_dict(), "data": Path(recipe.data).name},
    }
    if arguments.json:
        write_json(arguments.json, {"images_per_second": results, **load, **environment()})


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


if __name__ == "__main__":
    main()
