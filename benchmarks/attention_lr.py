"""Whether gates move, and whether it helps, if the attention learns faster than the rest of a model.

    python benchmarks/attention_lr.py --output runs/attention-lr --json benchmarks/results/attention_lr.json \
        --factors 1 3 10 30 --seeds 3 --set recipe=digits 'model_args={channels: [16, 32, 64, 128]}'

Runs are resumed and finished ones are kept: the same command continues. The file is written after every run. Factors
are compared on the same seeds: "difference" is the mean over the seeds of top-1 less that of the first factor, with
Student's 95 % interval.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from shuffle_attention.files import write_json
from shuffle_attention.sanet.device import Process
from shuffle_attention.sanet.environment import environment
from shuffle_attention.sanet.recipes.recipe import load_recipe
from shuffle_attention.sanet.recipes.settings import read_yaml
from shuffle_attention.sanet.statistics import paired_difference, summary
from shuffle_attention.sanet.tasks.classification.task import Classification
from shuffle_attention.sanet.training.gate_activity import METRICS, verdict
from shuffle_attention.sanet.training.loop import train
from shuffle_attention.sanet.training.run_folder import RunFolder, read_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--json", type=Path, required=True, help="file of the results")
    parser.add_argument("--factors", type=float, nargs="+", default=[1, 3, 10, 30])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=["recipe=digits"], metavar="FIELD=VALUE", help="recipe and fields")
    arguments = parser.parse_args()
    given = dict(pair.split("=", 1) for pair in arguments.set)
    recipe = load_recipe(given.pop("recipe", "digits")).replaced(**{k: read_yaml(v) for k, v in given.items()})
    recipe = recipe.replaced(report=False, device="cpu" if not torch.cuda.is_available() else "cuda")
    scores: dict[float, dict[int, float]] = {factor: {} for factor in arguments.factors}
    rows = []
    for seed in range(arguments.seeds):
        for factor in arguments.factors:
            files = RunFolder(arguments.output / f"attention-lr-{factor:g}" / f"seed-{seed}")
            if not files.summary.exists():
                own = recipe.replaced(seed=seed, attention_lr=factor)
                process = Process(torch.device(own.device))
                train(own, files.folder, process, task=Classification, resume=files.last.exists())
            history, last = read_rows(files.metrics), read_rows(files.gates)[-1]
            scores[factor][seed] = history[-1]["val_top1"]
            rows.append(
                {
                    "factor": factor,
                    "seed": seed,
                    "top1": history[-1]["val_top1"],
                    **{metric.name: history[-1][metric.name] for metric in METRICS},
                    "verdict": verdict(last),
                    "layers": last,
                }
            )
            write_json(
                arguments.json, {"recipe": recipe.to_dict(), "factors": compared(scores), "runs": rows, **environment()}
            )
    print(json.dumps(compared(scores), indent=1))


def compared(scores: dict[float, dict[int, float]]) -> dict[str, dict[str, Any]]:
    """Return mean and deviation of each factor, and its paired difference from the first one."""
    first = next(iter(scores.values()))
    return {
        f"{factor:g}": {"top1": asdict(summary(each)), "difference": asdict(paired_difference(each, first))}
        for factor, each in scores.items()
        if each
    }


if __name__ == "__main__":
    main()
