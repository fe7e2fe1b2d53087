"""The command ``sanet doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...files import require_folder_of, write_json
from ..recipes.settings import option
from . import Command

if TYPE_CHECKING:
    from torch import nn

_MISSING = "not built; install a C++ compiler (g++ or clang++), then: pip install --force-reinstall --no-deps "


@dataclass(kw_only=True)
class Doctor(Command):
    """Show versions, kernels, device and extras, and why residual blocks of a model do not run as one op.

    The exit code is 1 if the kernels of the CPU are missing, or disagree with the reference.
    """

    name = "doctor"
    summary = "show the installation, and what makes it slow"
    examples = "sanet doctor\nsanet doctor resnet50"
    modules = ()  # it is for incomplete installations

    model: str | None = option(None, "model of timm or of this package, or checkpoint, to look at", positional=True)
    json: str | None = option(None, "write what is shown to FILE", metavar="FILE")

    def run(self) -> int:
        """Print what was observed, and return 1 if the kernels of the CPU cannot be used."""
        require_folder_of("--json", self.json)
        kernels, works = _kernels()
        shown = {**_versions(), "kernels": kernels, "gpu": _gpu(), **dict(_extras())}
        if self.model is not None:
            shown |= dict(_blocks(self.model))
        width = max(map(len, shown))
        for name, text in shown.items():
            print(f"{name:<{width}}  {text}")
        if self.json is not None:
            write_json(self.json, shown)
        return 0 if works else 1


def _versions() -> dict[str, str]:
    import platform

    from ...errors import counted
    from ..environment import environment

    seen = environment("torchvision")
    commit = f", commit {seen['commit'][:12]}" if seen["commit"] else ""
    return {
        "shuffle-attention": f"{seen['shuffle_attention'] or 'not installed, run from its sources'}{commit}",
        "python": f"{seen['python']} on {platform.platform()}",
        **{name: seen[name] or "not installed" for name in ("torch", "torchvision", "timm")},
        "cpu": f"{seen['cpu']}, {seen['machine'].split(', ')[1]}, {counted(seen['threads'], 'thread')}",
        "instruction set": f"{seen['instruction_set']} (the variable ATEN_CPU_CAPABILITY allows fewer instructions)",
    }


def _kernels() -> tuple[str, bool]:
    """Return the state of the CPU kernels, and whether they are there and agree with the reference."""
    import torch

    from ...attention import create_attention
    from ...kernels import has_kernels, use_reference

    seeded = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, 7, 7, generator=seeded)
    layer = create_attention("shuffle", 64, groups=4)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=seeded)
    if not has_kernels(x):
        return f"{_MISSING}shuffle-attention", False
    with torch.no_grad(), use_reference():
        expected = layer(x)
    with torch.no_grad():
        difference = float((layer(x) - expected).abs().max())
    if not difference < 1e-5:
        return f"built, but they differ from the reference by {difference:.1e}; please report this", False
    return f"built; they agree with the reference to {difference:.1e}", True


def _gpu() -> str:
    import torch

    from ...kernels.backends.triton import HAS_TRITON

    if not torch.cuda.is_available():
        built = "PyTorch sees none" if torch.version.cuda else "this PyTorch is built for the CPU"
        return f"none ({built})"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names) + ("" if HAS_TRITON else "; Triton is not installed, so attention runs on the reference")


def _extras() -> Iterator[tuple[str, str]]:
    """Yield each extra of the package with the distributions that it lacks."""
    from importlib import metadata

    from packaging.requirements import Requirement

    try:
        about = metadata.metadata("shuffle-attention")
    except metadata.PackageNotFoundError:
        return
    requirements = [Requirement(line) for line in metadata.requires("shuffle-attention") or ()]
    for extra in sorted(about.get_all("Provides-Extra") or ()):
        missing = []
        for each in requirements:
            if each.marker is None or not each.marker.evaluate({"extra": extra}) or each.name == "shuffle-attention":
                continue
            try:
                found = metadata.version(each.name)
                if not each.specifier.contains(found, prereleases=True):
                    missing.append(f"{each.name}{each.specifier} (found {found})")
            except metadata.PackageNotFoundError:
                missing.append(each.name)
        lacks = f"lacks {', '.join(missing)}: pip install 'shuffle-attention[{extra}]'"
        yield f"extra {extra}", lacks if missing else "installed"


def _blocks(name: str) -> Iterator[tuple[str, str]]:
    """Yield how many residual blocks of a model end in one op, and why others do not."""
    from ...attach.insert import block_of
    from ...attach.trace import example_input
    from ...errors import counted, listed
    from ...models.fused_block import obstacles

    model = _model(name)
    reasons: dict[str, dict[str, None]] = {}
    for mode in ("evaluation", "training"):
        fused, kept = obstacles(model.train(mode == "training"), example_input(model))
        if not fused and not kept:
            known = sum(block_of(module) is not None for module in model.modules())
            hint = "; after attach(model, 'none') or attach(model, 'shuffle') their ends can run as one op"
            yield name, f"{counted(known, 'known residual block')} run module by module{hint if known else ''}"
            return
        yield f"{name}, {mode}", f"{counted(fused, 'residual block')} of {fused + len(kept)} end in one op"
        for norm, reason in kept.items():
            reasons.setdefault(reason, {})[norm] = None
    yield from (("not fused", f"{listed([*norms], 3)}: {reason}") for reason, norms in reasons.items())


def _model(name: str) -> nn.Module:
    from pathlib import Path

    from ...errors import require_extra

    require_extra(*Command.modules, extra="sanet")
    from ..network import create_network
    from ..recipes.recipe import Recipe
    from ..tasks import restore

    if Path(name).is_file():
        predictor: Any = restore(name)
        return predictor.model
    return create_network(Recipe(model=name), 1000)
