"""Run benchmarks for each instruction set, and write tables and chart: ``python benchmarks/bench.py [NAME ...]``.

The sets are the processor's best and AVX2. Child processes are limited to AVX2 by the variables in ``timing.py``.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import figures
from timing import instruction_sets, read

HERE = Path(__file__).parent
KEPT = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
# By name of the results: the command.
BENCHMARKS = {
    "figures": "figures.py",
    "network": "figures.py --table network --processes 2",
    "layer": "layer.py",
    "layer_bfloat16": "layer.py --batches 32 --dtype bfloat16 --compiled",
    "call": "call.py",
    "tail": "tail.py",
    "tail_memory_kept": "tail.py --batches 8 32",
    "memory": "memory.py",
    "follow": "follow.py",
    "deploy": "deploy.py",
}
ONCE = {"network", "layer_bfloat16", "tail_memory_kept", "memory", "follow", "deploy"}  # for the best set only


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; by default all")
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    for name in args.names or BENCHMARKS:
        for place, (instruction_set, limits) in enumerate(instruction_sets().items()):
            if place and name in ONCE:
                continue
            print(f"\n{name}, {instruction_set}", flush=True)
            start = time.monotonic()
            script, *options = BENCHMARKS[name].split()
            kept = KEPT if name.endswith("memory_kept") else {}
            command = [sys.executable, str(HERE / script), *options, "--name", name]
            subprocess.run(command, check=True, env=os.environ | limits | kept)
            print(f"{time.monotonic() - start:.0f} seconds", flush=True)
    for script in ("picture.py", "tables.py"):
        subprocess.run([sys.executable, str(HERE / script)], check=True)
    for instruction_set, section in read("figures").items():
        print(f"\n{instruction_set}, {section['machine']['date']}, load {section['machine']['load']}")
        print("\n".join(map(figures.line, section["rows"])))


if __name__ == "__main__":
    main()
