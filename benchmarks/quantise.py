"""Compare quantisers of deployed files: accuracy, size and time beside the file in floating point.

    python benchmarks/quantise.py runs/imagenette/best.pt --data imagenette2 --name quantise

ONNX Runtime's static quantisation and NNCF write files for both runtimes; attention stays in floating point in all.
``sanet export --int8`` uses ONNX Runtime for ONNX, and NNCF with its accurate bias correction for OpenVINO; for ONNX,
NNCF is measured with its default, fast correction. Ranges are measured on images of ``--data``, of its folder train/ if
there is one, and answers compared on its validation images.
SA-ResNet-50 with random weights, for 224 pixels, is measured as well, for size and time.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timing import Row, interleaved, options, ratio, write
from torch import Tensor, nn

from deploy import model as random_model
from shuffle_attention import deploy
from shuffle_attention.deploy.openvino import import_silently
from shuffle_attention.deploy.quantise import gate_nodes, graph_of_onnx, quantise
from shuffle_attention.sanet.commands.export import images_of
from shuffle_attention.sanet.device import Process
from shuffle_attention.sanet.statistics import mcnemar, share_at_most
from shuffle_attention.sanet.tasks.classification.predictor import restore_network
from shuffle_attention.sanet.tasks.classification.task import Classification

BATCHES = (1, 8)
LOSS, SIZE = 0.5, 0.30  # at most: points of accuracy, share of the size in floating point
Quantiser = Callable[[Path, Tensor, Path], None]


def nncf_on_onnx(path: Path, images: Tensor, output: Path) -> None:
    """Quantise an ONNX file with NNCF and its accurate bias correction, as an OpenVINO file is."""
    import onnx

    import_silently("openvino")
    nncf, graph = import_silently("nncf"), onnx.load(path)
    data = nncf.Dataset([{graph.graph.input[0].name: image.numpy()} for image in images.split(1)])
    gates = nncf.IgnoredScope(names=sorted(gate_nodes(graph_of_onnx(graph))))
    nncf.set_log_level(logging.ERROR)
    options = {"subset_size": len(images), "ignored_scope": gates, "fast_bias_correction": False}
    onnx.save(nncf.quantize(graph, data, **options), output)


def onnx_runtime_for_openvino(path: Path, images: Tensor, output: Path) -> None:
    """Quantise the ONNX file beside an OpenVINO file with ONNX Runtime, and convert it to OpenVINO."""
    openvino = import_silently("openvino")
    with tempfile.TemporaryDirectory() as folder:
        quantise(path.parent.parent / "onnx" / "model.onnx", images, Path(folder) / "int8.onnx")
        openvino.save_model(openvino.convert_model(Path(folder) / "int8.onnx"), output, compress_to_fp16=False)


QUANTISERS: dict[str, dict[str, Quantiser]] = {
    "onnx": {"ONNX Runtime": quantise, "NNCF": nncf_on_onnx},
    "openvino": {"NNCF": quantise, "ONNX Runtime": onnx_runtime_for_openvino},
}


def size(path: Path) -> int:
    """Return the size of a file with its parts, which alone are in its folder."""
    return sum(part.stat().st_size for part in path.parent.iterdir())


def rows(
    name: str, model: nn.Module, images: Tensor, validation: list[tuple[Tensor, Tensor]], repetitions: int
) -> Iterator[Row]:
    """Yield a row for each format and quantiser."""
    with tempfile.TemporaryDirectory() as folder:
        for format_name, quantisers in QUANTISERS.items():
            path = Path(folder) / format_name / f"model{'.onnx' if format_name == 'onnx' else '.xml'}"
            path.parent.mkdir()
            deploy.export(model, path, example=images[:4], tolerance=1e-4)
            files = {"float": deploy.load(path)}
            seconds = {}
            for quantiser, function in quantisers.items():
                output = Path(folder) / format_name / quantiser / path.name
                output.parent.mkdir()
                start = time.perf_counter()
                function(path, images, output)
                seconds[quantiser] = round(time.perf_counter() - start)
                files[quantiser] = deploy.load(output)
            whole = sum(part.stat().st_size for part in path.parent.iterdir() if part.is_file())
            times = {
                batch: interleaved({key: lambda f=f, b=images[:batch]: f(b) for key, f in files.items()}, repetitions)
                for batch in BATCHES
            }
            right = {
                key: torch.cat([file(batch).argmax(1) == labels for batch, labels in validation])
                for key, file in files.items()
                if validation
            }
            for quantiser in quantisers:
                about: Row = {"model": name, "runtime": format_name, "quantiser": quantiser}
                if right:
                    before, after = right["float"], right[quantiser]
                    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
                    about |= {
                        "images": len(before),
                        "top1": {
                            "float": 100 * float(before.double().mean()),
                            "int8": 100 * float(after.double().mean()),
                        },
                        "lost": lost,
                        "gained": gained,
                        "loss": 100 * (lost - gained) / len(before),
                        "loss_at_most": 100 * share_at_most(lost, len(before)),
                        "mcnemar_p": mcnemar(lost, gained),
                    }
                row: Row = about | {
                    "calibration_images": len(images),
                    "seconds_to_quantise": seconds[quantiser],
                    "size": round(size(files[quantiser].path) / whole, 4),
                    "ratios": {f"batch {batch}": ratio(times[batch], quantiser, "float") for batch in BATCHES},
                    "targets": {"loss": LOSS, "size": SIZE},
                }
                print(row, flush=True)
                yield row


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("checkpoint", help="checkpoint of a classifier")
    parser.add_argument("--data", required=True, help="its images", metavar="DIR")
    parser.add_argument("--repetitions", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    classifier = restore_network(args.checkpoint)
    classifier.recipe = classifier.recipe.replaced(data=args.data, workers=0)
    calibration = images_of(classifier, args.data, "train", 300)
    task: Any = Classification.open_validation(classifier)
    validation = [*task.held_out(Process(torch.device("cpu")), 128)]
    recipe = classifier.recipe
    name = " ".join([recipe.model, *(f"{key} {value}" for key, value in recipe.model_args.items())])
    results = [*rows(name, classifier.model.eval(), calibration, validation, args.repetitions)]
    noise = torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    results += rows("sa_resnet50, random weights", random_model("sa"), noise, [], args.repetitions // 3)
    if args.name:
        print(write(args.name, results, "onnxruntime", "openvino", "nncf"))


if __name__ == "__main__":
    main()
