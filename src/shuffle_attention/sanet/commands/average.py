"""The command ``sanet average``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, counted
from ...files import require_folder_of
from ..recipes.settings import option
from . import Command


@dataclass(kw_only=True)
class Average(Command):
    """Average the weights of checkpoints of one model, and write them as a checkpoint.

    The mean is that of timm's avg_checkpoints.py, to the bit. The statistics of BatchNorm are averaged as well.
    """

    name = "average"
    summary = "average the weights of checkpoints"
    examples = (
        "sanet train --data photos --keep-epochs 5 --output runs/photos\n"
        "sanet average runs/photos --output averaged.pt\n"
        "sanet eval averaged.pt"
    )

    checkpoints: list[str] = option(
        ..., "checkpoints, or the folder of a run with --keep-epochs", positional=True, metavar="CHECKPOINT"
    )
    output: str = option(..., "checkpoint to write", metavar="FILE")
    ema: bool | None = option(None, "averaged weights of each checkpoint (EMA); used by default if there are any")

    def run(self) -> int:
        """Average the checkpoints, and write the result."""
        from ...checkpoints import write_checkpoint
        from ...checkpoints.averaging import average_checkpoints
        from ..console import console
        from ..training.run_folder import RunFolder

        require_folder_of("--output", self.output)
        paths: list[Path] = []
        for path in map(Path, self.checkpoints):
            kept = [*RunFolder(path).kept_epochs().values()] if path.is_dir() else []
            if path.is_dir() and not kept and not (path / "config.json").is_file():
                raise InputError(
                    f"{path} has no weights of epochs; sanet train --keep-epochs N keeps those of the last N"
                )
            paths += kept or [path]
        if Path(self.output).resolve() in [path.resolve() for path in paths]:
            raise InputError(f"--output {self.output} is one of the checkpoints to average")
        content = average_checkpoints(paths, ema=self.ema)
        write_checkpoint(content, self.output)
        console.print(f"wrote the mean of {counted(len(paths), 'checkpoint')} to {self.output}")
        for path in paths:
            console.print(f"  {path}")
        return 0
