"""Fail if one of a few ratios is much worse than recorded: ``python benchmarks/gate.py``.

Each row is the time of something of ours over that of PyTorch's own, interleaved within one process. A row that is more
than 25 % worse than the median recorded in ``results/gate.json`` is measured again, and fails if it is worse again.
``--record`` replaces the record of this processor.

Other load only ever adds to a time, so that the fastest repetitions are compared, and on one thread: two would wait for
each other whenever one of them is interrupted. A record holds for one instruction set of one processor. On another
processor the same code has other ratios, by up to a factor of two where a map fits in one's cache and not in the
other's, so that there the rows are only printed.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import timm
import torch
from call import op_of
from layer import layer_calls, layer_with_random_gates
from network import in_inference
from tail import tail_calls
from timing import Row, instruction_sets, interleaved, options, read, write
from torch import nn

TOLERANCE = 1.25
REPETITIONS = 31
Pair = tuple[Callable[[], object], Callable[[], object]]  # ours and its baseline


def layer_forward() -> Pair:
    forward, x = layer_calls(1, 512, 28, "NCHW")["forward"], torch.randn(1, 512, 28, 28)
    return forward, lambda: nn.functional.group_norm(x, 64)


def block_end(layout: str) -> Pair:
    calls = tail_calls(1, 512, 28, layout)
    return calls["fused both ways"], calls["plain both ways"]


def narrow_block_end() -> Pair:
    """Return the end of a block with fewer channels than two vectors have lanes."""
    calls = tail_calls(32, 16, 16, "channels_last")
    return calls["fused both ways"], calls["plain both ways"]


def op_call() -> Pair:
    op, x = op_of(layer_with_random_gates(128)), torch.randn(1, 128, 4, 4)
    return lambda: op(x), lambda: nn.functional.group_norm(x, 16)


def inference() -> Pair:
    models = (timm.create_model(name, zero_init_last=False) for name in ("sa_resnet18", "resnet18"))
    ours, plain = (in_inference(model, torch.randn(2, 3, 96, 96)) for model in models)
    return ours, plain


ROWS: dict[str, Callable[[], Pair]] = {
    "layer forward / group norm": layer_forward,
    "block end both ways / plain, NCHW": lambda: block_end("NCHW"),
    "block end both ways / plain, channels_last": lambda: block_end("channels_last"),
    "narrow block end both ways / plain, channels_last": narrow_block_end,
    "op call / group norm": op_call,
    "SA-ResNet-18 inference / plain": inference,
}


def measure(make: Callable[[], Pair]) -> float:
    """Return the ratio of a row: the fastest repetition over the fastest one of the baseline."""
    times = interleaved(dict(zip(("ours", "baseline"), make(), strict=True)), REPETITIONS)
    return min(times["ours"].seconds) / min(times["baseline"].seconds)


def failures(rows: Mapping[str, Callable[[], Pair]], recorded: Mapping[str, float]) -> list[str]:
    """Return the names of the rows that are worse than recorded twice in a row, and print all of them.

    Args:
        rows: What to measure.
        recorded: Medians to compare with; rows without one are only printed.
    """
    failed = []
    for name, make in rows.items():
        limit = TOLERANCE * recorded.get(name, float("inf"))
        ratios = [measure(make)]
        if ratios[0] > limit:
            ratios.append(measure(make))
        if min(ratios) > limit:
            failed.append(name)
        values = ", again ".join(f"{value:.2f}" for value in ratios)
        before = f"recorded {recorded[name]:.2f}" if name in recorded else "not recorded"
        print(f"{name:50} {values:17} {before} {'TOO SLOW' * (min(ratios) > limit)}".rstrip(), flush=True)
    return failed


def processor() -> str:
    """Return the name and the model number of the processor; virtual ones share their names."""
    info = Path("/proc/cpuinfo")
    fields = dict(re.findall(r"^(.+?)\s*: (.*)$", info.read_text(), re.MULTILINE)) if info.exists() else {}
    return f"{fields.get('model name', 'unknown')}, model {fields.get('model', 'unknown')}"


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--record", action="store_true", help="record the medians of this processor")
    parser.set_defaults(threads=1)
    parser.add_argument("--here", action="store_true", help="measure in this process, on its instruction set")
    args = parser.parse_args()
    if not args.here:
        command = [sys.executable, __file__, *sys.argv[1:], "--here"]
        codes = [subprocess.run(command, env=os.environ | limits).returncode for limits in instruction_sets().values()]
        return int(any(codes))  # a crash has a negative one
    torch.set_num_threads(args.threads)
    name, instruction_set = processor(), torch.backends.cpu.get_cpu_capability()
    rows: list[Row] = read("gate").get(instruction_set, {}).get("rows", [])
    if args.record:
        medians = {row: round(sorted(measure(make) for _ in range(3))[1], 3) for row, make in ROWS.items()}
        print(write("gate", [row for row in rows if row["processor"] != name] + [{"processor": name, **medians}]))
        return 0
    recorded: Row = next((row for row in rows if row["processor"] == name), {})
    print(f"{instruction_set} on {name}", flush=True)
    failed = failures(ROWS, recorded)
    if not recorded:
        print("nothing is recorded for this processor, so that nothing can fail: see --record")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
