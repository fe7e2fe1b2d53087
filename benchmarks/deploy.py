"""Time deployed files with attention beside those without, and measure files of all formats.

``python benchmarks/deploy.py`` writes ResNet-50 and SA-ResNet-50 for 224 pixels in every format, compares each file
with PyTorch, and runs both models in ONNX Runtime and OpenVINO side by side. It takes five minutes.
"""

import tempfile
import time
from collections import Counter
from pathlib import Path

import onnx
import timm
import torch
from timing import Row, judged, line, measure, options, write

import shuffle_attention.models  # noqa: F401 - registers the models
from shuffle_attention import ShuffleAttention, deploy

MODELS = {"plain": "resnet50", "sa": "sa_resnet50"}
SUFFIXES = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "torch": ".pt2",
    "torchscript": ".torchscript",
    "executorch": ".pte",
    "coreml": ".mlpackage",
}
TARGETS = {("onnx", 1): 1.10, ("onnx", 8): 1.15, ("openvino", 1): 1.10, ("openvino", 8): 1.12}
DIFFERENCE, NODES = 1e-5, 250
REPETITIONS = {1: 40, 8: 15}
PACKAGES = ("onnxruntime", "openvino", "executorch", "coremltools")


def model(name: str) -> torch.nn.Module:
    """Return an untrained model with statistics and gates that differ between channels, as in a trained one."""
    torch.manual_seed(0)
    network = timm.create_model(MODELS[name], zero_init_last=False)
    for module_name, module in network.named_modules():
        if isinstance(module, ShuffleAttention):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            # With branches as large as their shortcuts, PyTorch itself would be 2e-5 from float64.
            torch.nn.init.constant_(module.weight, 0.3 if module_name.endswith("bn3") else 1.0)
    with torch.no_grad():
        network(torch.randn(8, 3, 224, 224))
    return network.eval()


def write_file(name: str, format_name: str, folder: Path) -> tuple[Path, Row]:
    """Return a file of a model in a format, and its row: size, difference from PyTorch, and nodes of ONNX."""
    (folder := folder / name / format_name).mkdir(parents=True)
    path = folder / f"model{SUFFIXES[format_name]}"
    start = time.perf_counter()
    example = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    comparison = deploy.export(model(name), path, example=example, tolerance=1.0)
    row: Row = {"model": name, "format": format_name, "suffix": path.suffix}
    row["seconds_to_write"] = round(time.perf_counter() - start)
    row["bytes"] = sum(part.stat().st_size for part in folder.rglob("*") if part.is_file())
    row["difference"] = None if comparison is None else comparison.difference  # None: this machine cannot run it
    row["targets"] = {"difference": DIFFERENCE}
    if format_name == "onnx":
        operators = Counter(node.op_type for node in onnx.load(path).graph.node)
        row["nodes"], row["transposes"] = operators.total(), operators["Transpose"]
        row["targets"] |= {"nodes": NODES, "transposes": 0}
    return path, row


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--formats", nargs="+", default=list(SUFFIXES), choices=SUFFIXES)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        timed: dict[str, dict[str, Path]] = {}
        for format_name in args.formats:
            for name in MODELS if format_name in ("onnx", "openvino") else ("sa",):
                path, row = write_file(name, format_name, Path(folder))
                rows.append(row)
                print(described(row), flush=True)
                timed.setdefault(format_name, {})[name] = path
        for (runtime, batch), target in TARGETS.items():
            if runtime in timed:
                files = {name: deploy.load(path) for name, path in timed[runtime].items()}
                images = torch.randn(batch, 3, 224, 224)
                calls = {name: lambda file=file, images=images: file(images) for name, file in files.items()}
                about = {"runtime": runtime, "batch": batch}
                rows.append(measure(about, calls, lambda _: "plain", REPETITIONS[batch], {"sa": target}))
                print(line(rows[-1]), flush=True)
    if args.name:
        print(write(args.name, rows, *PACKAGES))


def described(row: Row) -> str:
    """Return the row of a file as printed."""
    text = f"{row['model']:6} {row['format']:12} {row['bytes'] / 2**20:6.1f} MB, {row['seconds_to_write']} s to write"
    for name, target in row["targets"].items():
        if row[name] is None:
            text += ", not run here"
        else:
            text += f", {name} {row[name]:.2g} {judged(row[name], target)}"
    return text


if __name__ == "__main__":
    main()
