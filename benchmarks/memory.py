"""Measure the memory that attention costs a model: ``python benchmarks/memory.py``.

``kept`` is the bytes that the forward of a training step keeps for the backward, each storage once and
parameters apart. ``allocated`` is the most bytes that PyTorch has allocated at a time within a step. ``peak``
is how much the process grows in two training steps of a model, which is there already: the most memory that
it had resident, read from the kernel, less what it had before. Each model has a process of its own, because
resident memory does not shrink reliably.
"""

import itertools
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from network import Scene, model, training_step
from timing import FORMATS, judged, options, write
from torch.profiler import ProfilerActivity, profile

from shuffle_attention.sanet.profile.costs import kept_for_backward

MODELS = ("plain", "sa", "sa rebuild", "sa rebuild-all", "sa by modules", "se", "eca")
TARGETS = {("sa", "kept"): 1.0, ("sa rebuild", "kept"): 0.82}


def resident() -> int:
    """Return the bytes that this process has resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def allocated(step: Callable[[], object]) -> int:
    """Return the most bytes that a step has at a time, beyond those that were there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events: Any = profiled.profiler
    events = [event for event in events.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def of_one(name: str, scene: Scene) -> dict[str, int]:
    """Return ``kept``, ``allocated`` and ``peak`` of one model, in bytes."""
    network, images = model(name, scene.layout), scene.images()
    step = training_step(network, images)
    before = resident()
    for _ in range(2):  # the second has the optimiser's state beside the rest
        step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before  # kilobytes on Linux
    return {"kept": kept_for_backward(network, images), "allocated": allocated(step), "peak": peak}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--of", nargs=2, metavar=("MODEL", "LAYOUT"), help="print the numbers of one model as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.of:
        print(json.dumps(of_one(args.of[0], Scene("training step", args.batch, args.of[1], args.size))))
        return
    rows = []
    for layout in FORMATS:
        sizes = {}
        for name in MODELS:
            command = [sys.executable, __file__, *sys.argv[1:], "--of", name, layout]
            sizes[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for what in ("kept", "allocated", "peak"):
            mib = {name: round(size[what] / 2**20, 1) for name, size in sizes.items()}
            rows.append({"bytes": what, "layout": layout, "batch": args.batch, "size": args.size, "mib": mib})
            ratios = {name: mib[name] / mib["plain"] for name in mib if name != "plain"}
            cells = [f"{name} {r:.3f} {judged(r, TARGETS.get((name, what)))}".strip() for name, r in ratios.items()]
            print(f"{what} {layout:13} plain {mib['plain']:.0f} MiB ", *cells, sep="  ", flush=True)
    if args.name:
        print(write(args.name, rows))


if __name__ == "__main__":
    main()
