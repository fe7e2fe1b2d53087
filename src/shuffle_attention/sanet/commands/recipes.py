"""The command ``sanet recipes``."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import unknown
from ..recipes.recipe import Recipe, RunRecipe, load_recipe, recipe_about, recipe_fields, recipe_names
from ..recipes.settings import option
from ..tasks.detection.recipe import DetectionRecipe
from . import Command


@dataclass(kw_only=True)
class Recipes(Command):
    """List the recipes of sanet train and sanet detect train, or show all settings of one.

    What is shown is a recipe in YAML: write it to a file, change it, and train with --recipe FILE.
    """

    name = "recipes"
    summary = "list the recipes, or show one"

    recipe: str | None = option(None, "recipe to show; without one, all are listed", positional=True, metavar="NAME")
    detect: bool = option(False, "of sanet detect train")

    def run(self) -> int:
        """Print the list, or one recipe."""
        kinds: list[type[RunRecipe]] = [DetectionRecipe] if self.detect else [Recipe, DetectionRecipe]
        if self.recipe is None:
            print("\n\n".join(map(_list, kinds)))
            print("\nsanet recipes NAME shows the settings of one, those of detect train with --detect.")
            return 0
        for kind in kinds:
            if self.recipe in recipe_names(kind):
                about = "\n".join(f"# {line}" for line in recipe_about(self.recipe, kind))
                unset = {"data"} - recipe_fields(self.recipe, kind)[0].keys()
                print(load_recipe(self.recipe, kind).to_yaml(about, unset=unset), end="")
                return 0
        raise unknown("recipe", self.recipe, [name for kind in kinds for name in recipe_names(kind)])


def _list(kind: type[RunRecipe]) -> str:
    names = recipe_names(kind)
    width = max(map(len, names))
    lines = [f"  {name:<{width}}  {recipe_about(name, kind)[0]}" for name in names]
    return "\n".join([f"recipes of {kind.command}:", *lines])
