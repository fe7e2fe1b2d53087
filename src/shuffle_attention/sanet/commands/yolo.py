"""The command ``sanet yolo``."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InputError, require_extra
from ..recipes.settings import option
from . import Command


@dataclass(kw_only=True)
class Yolo(Command):
    """Run ultralytics' command yolo, whose model files may then have rows ShuffleAttention.

    Example: sanet yolo detect train model=sa.yaml data=coco8.yaml epochs=3
    """

    name = "yolo"
    summary = "run ultralytics' yolo with ShuffleAttention in its model files"

    arguments: list[str] = option([], "arguments of yolo, such as train model=sa.yaml", positional=True, metavar="ARG")

    def run(self) -> int:
        """Run the command of ultralytics."""
        require_extra("ultralytics", extra="yolo")
        from ultralytics import cfg

        from ...models import yolo  # noqa: F401 - registers the rows

        cfg.ARGV = ["yolo", *self.arguments]
        try:
            cfg.entrypoint()
        except SyntaxError as error:  # raised for arguments that it does not know
            raise InputError(str(error)) from error
        return 0
