"""The command ``sanet insert``."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ...errors import InputError
from ...files import require_folder_of, write_json
from ..recipes.recipe import Recipe
from ..recipes.settings import option
from . import Command


@dataclass(kw_only=True)
class Insert(Command):
    """Rank the positions where attention could be inserted into a classifier.

    Attention is attached at all positions as the identity. The gradient of the loss on some training images says how
    much a first step of its parameters would gain, and positions are ranked by this gain for the time of the layer.
    """

    name = "insert"
    summary = "rank positions for attention in a classifier"
    recipe_type = Recipe
    recipe_fields = (
        "data data_dir train_split val_fraction split_seed workers skip_bad_images img_size model_args in_chans "
        "small_stem"
    )
    examples = "sanet insert --rank runs/plain/best.pt --batches 32 --json rank.json"

    model: str = option(..., "checkpoint of a model without attention, or a model of timm", positional=True)
    rank: bool = option(False, "rank positions by expected gain for time")
    attention: str = option("shuffle", "name of the attention")
    where: list[str] = option(["residual"], "residual, stage, last, or globs over module names")
    batches: int = option(16, "batches of training images", minimum=4)
    batch_size: int = option(32, "images at a time", minimum=1)
    best: int = option(3, "number of positions to choose", minimum=1)
    json: str | None = option(None, "write the ranking to FILE", metavar="FILE")

    def run(self) -> int:
        """Rank the positions, and print and write the ranking."""
        from ..console import console, table
        from ..environment import environment
        from ..profile.rank import rank_positions
        from ..tasks.classification.rank import random_batches

        require_folder_of("--json", self.json)
        if not self.rank:
            raise InputError("give --rank to rank positions; attention is trained with sanet train --attach")
        given = {"workers": 0, **self.overrides}
        model, batches = random_batches(self.model, given, count=self.batches, batch_size=self.batch_size)
        where = self.where[0] if len(self.where) == 1 else self.where
        rows = rank_positions(model, batches, self.attention, where, best=self.best)
        columns = ("position", "map", "gain", "low", "high", "us", "gain/us", f"best {self.best}")
        ranking = table(columns, text=("position",), title=f"{self.attention} attention in {self.model}")
        for row in rows:
            numbers = (row.gain, row.low, row.high, row.microseconds, row.per_microsecond)
            share = f"{100 * row.in_best:.0f} %"
            ranking.add_row(row.position, "x".join(map(str, row.shape)), *(f"{each:.1e}" for each in numbers), share)
        console.print(ranking)
        console.print(f"attach(model, {self.attention!r}, where={[row.position for row in rows[: self.best]]})")
        if self.json is not None:
            about = {"model": self.model, "attention": self.attention, "batches": self.batches}
            about |= {"batch_size": self.batch_size, "best": self.best}
            write_json(self.json, {**about, "positions": [asdict(row) for row in rows], **environment()})
        return 0
