"""The command ``sanet verify``."""

from __future__ import annotations

from dataclasses import dataclass

from ...files import require_folder_of
from ..recipes.recipe import Recipe
from ..recipes.settings import option
from . import Command


@dataclass(kw_only=True)
class Verify(Command):
    """Compare a deployed file with its checkpoint on labelled images, and write a certificate.

    Exit code: 0 if the file is within its bounds, 1 if it is not, 2 if the two cannot be compared.
    """

    name = "verify"
    summary = "compare a deployed file with its checkpoint, and certify it"
    recipe_type = Recipe
    recipe_fields = "data data_dir val_split val_fraction split_seed workers check_images skip_bad_images"

    file: str = option(..., "file that sanet export wrote", positional=True)
    checkpoint: str = option(..., "checkpoint that it was exported from", positional=True)
    tolerance: float | None = option(
        None,
        "largest difference of logits, relative to the largest; 1e-5, and any for int8 or dropped gates",
        minimum=0,
    )
    max_loss: float | None = option(
        None,
        "largest loss of accuracy; any, and 0.5 for int8 or dropped gates",
        minimum=0,
        maximum=100,
        metavar="POINTS",
    )
    batch_size: int = option(64, "images at a time", minimum=1)
    ema: bool | None = option(None, "averaged weights; used by default if there are any")
    json: str | None = option(None, "write the certificate to FILE", metavar="FILE")
    output: str | None = option(None, "write the certificate as a page to FILE", metavar="FILE.html")

    def run(self) -> int:
        """Compare the file with the checkpoint, print the result, and write the certificate."""
        from ...deploy import load
        from ..console import console
        from ..device import require_one_process
        from ..report.certificate import certify
        from ..tasks import restore

        require_one_process("sanet verify")
        require_folder_of("--json", self.json)
        require_folder_of("--output", self.output)
        artefact, predictor = load(self.file), restore(self.checkpoint, ema=self.ema)
        predictor.recipe = predictor.recipe.replaced(**{"workers": 2, **self.overrides})
        bounds = {"tolerance": self.tolerance, "max_loss": self.max_loss}
        certificate = certify(artefact, predictor, batch_size=self.batch_size, **bounds)
        certificate.show()
        if self.json is not None:
            certificate.write(self.json)
        if self.output is not None:
            certificate.write_page(self.output, predictor.recipe)
            console.print(f"wrote {self.output}")
        return 1 if certificate.failures else 0
