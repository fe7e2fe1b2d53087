"""Time of a training step on a CPU if freed memory is kept, over that if it is returned to the system.

    python benchmarks/freed_memory.py --name freed_memory

A process decides once how it keeps memory, so that the two ways take turns in processes of their own. The time is that
of the processor, with one thread: other work on the machine hardly changes it.
"""

import json
import statistics
import subprocess
import sys
import time

import timm
import torch
from timing import options, write
from torch import nn

import shuffle_attention.models  # noqa: F401 - timm then knows the SA-ResNets
from shuffle_attention.sanet.device import keep_freed_memory

# Name: model, its arguments, batch size, height and width, memory format.
NETWORKS = {
    "resnet50": ("resnet50", {}, 8, 224, "contiguous"),
    "sa_resnet50": ("sa_resnet50", {}, 8, 224, "contiguous"),
    "resnet18 at a quarter of its width": ("resnet18", {"channels": [16, 32, 64, 128]}, 64, 64, "channels_last"),
}
STEPS = 12


def seconds_of_a_step(network: str) -> float:
    """Return the median over the steps, without those of the start."""
    model_name, arguments, batch, size, layout = NETWORKS[network]
    torch.manual_seed(0)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    model = timm.create_model(model_name, num_classes=10, **arguments).to(memory_format=memory_format).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    times = []
    for _ in range(STEPS):
        images = torch.randn(batch, 3, size, size).contiguous(memory_format=memory_format)
        began = time.process_time()
        nn.functional.cross_entropy(model(images), torch.zeros(batch, dtype=torch.int64)).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - began)
    return statistics.median(times[STEPS // 4 :])


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--here", nargs=2, metavar=("NETWORK", "WAY"), help="measure in this process: kept or returned")
    parser.set_defaults(threads=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.here:
        if args.here[1] == "kept":
            keep_freed_memory()
        print(seconds_of_a_step(args.here[0]))
        return
    rows = []
    for network in NETWORKS:
        times: dict[str, list[float]] = {"returned": [], "kept": []}
        for _ in range(args.rounds):
            for way, seconds in times.items():
                command = [sys.executable, __file__, "--here", network, way]
                seconds.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        low, middle, high = statistics.quantiles(
            (kept / returned for kept, returned in zip(times["kept"], times["returned"], strict=True)), n=4
        )
        rows.append({"network": network, "kept / returned": [middle, low, high], "seconds": times})
        print(json.dumps(rows[-1] | {"seconds": None}), flush=True)
    if args.name:
        print(write(args.name, rows, "timm"))


if __name__ == "__main__":
    main()
