"""Measure the memory that attention costs a model: ``python benchmarks/memory.py``.

``kept`` is the bytes that the forward of a training step keeps for the backward, each storage once and
parameters apart. ``peak`` is how much the process grows in two training steps of a network, which is
there already: the most memory that it had resident, read from the kernel, less what it had before. Each
network has a process of its own, because resident memory does not shrink reliably.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from network import FORMATS, NETWORKS, images_of, network, training_step, unfused
from timing import judged, write

from shuffle_attention.sanet.profile.costs import kept_for_backward

KEPT_TARGET = 1.0


def resident() -> int:
    """Bytes that this process has resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def of_one(name: str, batch: int, size: int, layout: str) -> dict[str, int]:
    """Measure ``kept`` and ``peak`` of one model, in a separate process."""
    images = images_of(batch, size, layout)
    model = network(name).to(memory_format=FORMATS[layout])

    def run() -> dict[str, int]:
        step = training_step(model, images)
        before = resident()
        for _ in range(2):  # the second has the optimiser's state beside the rest
            step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before  # kilobytes on Linux
        return {"kept": kept_for_backward(model, images), "peak": peak}

    return unfused(run)() if name == "sa-modules" else run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--of", nargs=2, metavar=("NETWORK", "LAYOUT"), help="print the figures of one network as JSON")
    parser.add_argument("--name", help="write results/NAME.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.of:
        print(json.dumps(of_one(args.of[0], args.batch, args.size, args.of[1])))
        return
    rows = []
    for layout in FORMATS:
        found = {}
        for name in dict.fromkeys(["plain", *args.networks]):
            numbers = [f"--batch={args.batch}", f"--size={args.size}", f"--threads={args.threads}"]
            command = [sys.executable, __file__, "--of", name, layout, *numbers]
            found[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        row = {"batch": args.batch, "size": args.size, "layout": layout, "kept_target": KEPT_TARGET}
        for what in ("kept", "peak"):
            plain = found["plain"][what]
            row[f"plain_{what}_mib"] = round(plain / 2**20, 1)
            row |= {f"{name}_{what}_over_plain": round(found[name][what] / plain, 4) for name in found}
            text = f"{what} {args.batch} {layout:13} plain {plain / 2**20:.0f} MiB"
            for name in found:
                if name != "plain":
                    ratio = row[f"{name}_{what}_over_plain"]
                    target = KEPT_TARGET if (name, what) == ("sa", "kept") else None
                    text += f"  {name} {ratio:.3f} {judged(ratio, target)}"
            print(text, flush=True)
        rows.append(row)
    if args.name:
        print(write(args.name, rows))


if __name__ == "__main__":
    main()
