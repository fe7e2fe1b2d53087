"""Measure the ratios that the project has set itself targets for: ``python benchmarks/figures.py``.

Every ratio is taken within one repetition, in which all models of a scene run once, in an order drawn for it. The
repetitions of several processes are pooled. ``--table network`` has comparisons without targets.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from network import JOBS, Scene, model
from timing import FORMATS, Row, Times, judged, options, ratio, write


@dataclass(frozen=True)
class Figure:
    """A ratio of two models, for which there is a target or not."""

    what: str
    job: str
    model: str
    baseline: str
    target: float | None = None
    batch: int = 8
    sizes: tuple[int, ...] = (224,)
    layouts: tuple[str, ...] = tuple(FORMATS)

    def scenes(self) -> Iterator[Scene]:
        """Return the scenes that it is measured in."""
        return (Scene(self.job, self.batch, layout, size) for layout in self.layouts for size in self.sizes)


LAST, ONE = ("channels_last",), ("NCHW",)
FIGURES = [
    Figure("SA rewritten / plain, norms folded", "inference", "sa rewritten", "plain, norms folded", 1.00),
    Figure("SA rewritten / plain, norms folded", "inference", "sa rewritten", "plain, norms folded", 1.03, batch=1),
    Figure("SA rewritten / plain rewritten", "inference", "sa rewritten", "plain rewritten", 1.00),
    Figure("SA rewritten / plain rewritten", "inference", "sa rewritten", "plain rewritten", 1.03, batch=1),
    Figure("SA / plain", "inference", "sa", "plain"),
    Figure("SA / plain", "inference", "sa", "plain", batch=1),
    Figure("torchvision attached / plain", "inference", "torchvision attached", "torchvision", 1.00),
    Figure("torchvision attached / plain", "training step", "torchvision attached", "torchvision", 1.00),
    Figure("SA / plain", "training step", "sa", "plain", 0.95),
    Figure('plain attached "none" / plain', "training step", "plain with none", "plain"),
    Figure("SA rebuild / SA", "training step", "sa rebuild", "sa", 1.03),
    Figure("SA rebuild / plain", "kept", "sa rebuild", "plain", 0.82),
    Figure("SA rebuild-all / SA", "training step", "sa rebuild-all", "sa"),
    Figure("SA rebuild-all / plain", "kept", "sa rebuild-all", "plain"),
    Figure("SA / plain", "kept", "sa", "plain"),
    Figure("block end, 28²", "block end", "fused", "plain", 0.9, sizes=(28,), layouts=LAST),
    Figure("block end, 14²", "block end", "fused", "plain", 1.1, sizes=(14,), layouts=LAST),
    Figure("block end, 7²", "block end", "fused", "plain", 1.3, sizes=(7,), layouts=LAST),
    Figure("SA / plain, both compiled", "compiled inference", "sa", "plain", 1.02),
    Figure("SA / plain", "Mask R-CNN inference", "sa", "plain", 1.00, batch=1, layouts=ONE),
    Figure("SA / plain", "Mask R-CNN training step", "sa", "plain", 1.00, batch=1, layouts=ONE),
]
COMPARISONS = [
    Figure(f"{name} / plain", job, name, "plain", batch=batch)
    for job in ("inference", "training step")
    for batch in (1, 8)
    for name in ("sa", "sa by modules", "se", "eca")
]
TABLES = {"figures": FIGURES, "network": COMPARISONS}


def scenes_of(figures: Iterable[Figure]) -> dict[Scene, list[str]]:
    """Return the names of the models to time in each scene, baselines included."""
    scenes: dict[Scene, list[str]] = {}
    for figure in figures:
        for scene in figure.scenes():
            scenes.setdefault(scene, []).extend((figure.model, figure.baseline))
    return {scene: list(dict.fromkeys(names)) for scene, names in scenes.items()}


def check(layout: str) -> None:
    """Check that rewritten models compute what they computed before, before they are timed."""
    images = Scene("inference", 2, layout, 64).images()
    for name in ("plain, norms folded", "plain rewritten", "sa rewritten"):
        expected, got = (model(each, layout).eval()(images) for each in (re.split("[ ,]", name)[0], name))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def measure_part(scenes: dict[Scene, list[str]], part: int, repetitions: int | None) -> None:
    """Measure the scenes that one process measures, and print its number and times as a line of JSON for each."""
    with torch.no_grad():
        for layout in {scene.layout for scene in scenes}:
            check(layout)
    for number, (scene, names) in enumerate(scenes.items()):
        job = JOBS[scene.job]
        if part < job.processes:
            print(json.dumps([number, job.measure(scene, names, repetitions)]), flush=True)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repetitions", type=int, help="instead of those of each job")
    parser.add_argument("--table", default="figures", choices=TABLES)
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=JOBS)
    parser.add_argument("--processes", type=int, default=3, help="processes to pool")
    parser.add_argument("--part", type=int, help="measure as the process with this number, and print JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures = [figure for figure in TABLES[args.table] if figure.job in args.jobs]
    scenes = scenes_of(figures)
    if args.part is not None:
        measure_part(scenes, args.part, args.repetitions)
        return
    pooled: dict[Scene, dict[str, list[float]]] = {scene: {} for scene in scenes}
    for part in range(args.processes):
        command = [sys.executable, __file__, *sys.argv[1:], f"--part={part}"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for number, times in map(json.loads, output.splitlines()):
            for name, values in times.items():
                pooled[list(scenes)[number]].setdefault(name, []).extend(values)
    rows: list[Row] = []
    for figure in figures:
        for scene in figure.scenes():
            row = {"what": figure.what, **vars(scene), "target": figure.target}
            times = {name: Times(values) for name, values in pooled[scene].items()}
            row |= {"baseline": times[figure.baseline].median, "repetitions": len(times[figure.model].seconds)}
            row["ratio"] = ratio(times, figure.model, figure.baseline)
            rows.append(row)
            print(line(row), flush=True)
    if args.name:
        print(write(args.name, rows))


def line(row: Row) -> str:
    """Return a figure as printed: its conditions, the ratio [quartiles], and whether its target is met."""
    text = f"{row['job']:24} {row['what']:35} batch {row['batch']} {row['layout']:13}"
    middle, low, high = row["ratio"]
    return f"{text} {middle:.3f} [{low:.3f}, {high:.3f}] {judged(middle, row['target'])}".rstrip()


if __name__ == "__main__":
    main()
