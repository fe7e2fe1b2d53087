"""Measure the cost of attention with constant gates: layers folded, answers changed and time in ONNX Runtime.

    python benchmarks/constant_gates.py runs/demo/best.pt

The gates are measured, and the answers compared, on the validation images of the checkpoint's recipe. Times are those
of the exported files, before and after, interleaved. The JSON is benchmarks/results/constant_gates.json.
"""

import copy
import tempfile
from pathlib import Path

import timing
import torch

from shuffle_attention import deploy
from shuffle_attention.sanet.device import Process
from shuffle_attention.sanet.tasks.classification.constant_gates import fold_constant_gates
from shuffle_attention.sanet.tasks.classification.predictor import restore_network
from shuffle_attention.sanet.tasks.classification.task import Classification


def main() -> None:
    parser = timing.options(__doc__)
    parser.add_argument("checkpoint", help="checkpoint of sanet train")
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.005, 0.02, 0.05, 1])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repetitions", type=int, default=61)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    original = restore_network(args.checkpoint)
    original.recipe = original.recipe.replaced(workers=0)
    task = Classification.open_validation(original)
    batches = [images for images, _ in task.held_out(Process(torch.device("cpu")), 64)]
    with tempfile.TemporaryDirectory() as folder:
        deploy.export(original.model, Path(folder) / "before.onnx", example=batches[0][:8])
        before = deploy.load(Path(folder) / "before.onnx")
        expected = torch.cat([before(images) for images in batches])
        rows = []
        for tolerance in args.tolerances:
            folded = copy.copy(original)
            report = fold_constant_gates(folded, tolerance)
            deploy.export(folded.model, Path(folder) / "after.onnx", example=batches[0][:8])
            after = deploy.load(Path(folder) / "after.onnx")
            output = torch.cat([after(images) for images in batches])
            about: timing.Row = {
                "model": original.label,
                "data": original.recipe.data,
                "tolerance": tolerance,
                "folded": report.folded,
                "kept": [*report.kept],
                "images": len(output),
                "changed": int((output.argmax(1) != expected.argmax(1)).sum()),
                "difference": float(f"{float((output - expected).abs().max() / expected.abs().max()):.2g}"),
            }
            for count in args.batches:
                images = batches[0][:count]
                calls = {"before": lambda i=images: before(i), "after": lambda i=images, after=after: after(i)}
                row = timing.measure({**about, "batch": count}, calls, lambda _: "before", args.repetitions)
                print(timing.line(row))
                rows.append(row)
        print(report)
    print(timing.write(args.name or "constant_gates", rows))


if __name__ == "__main__":
    main()
