"""Arguments of commands with a recipe: fields of the recipe and options of a run."""

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from peftkit.errors import UserError
from peftkit.recipe.parser import parse_fields, read_command_recipe
from peftkit.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class RecipeArguments:
    """A parsed command line.

    Attributes:
        recipe: Recipe with the fields from the command line.
        resume: Whether to resume from the last checkpoint, or the checkpoint to resume from.
    """

    recipe: Recipe
    resume: bool | str = False


def read_recipe_arguments(path: str | Path, fields: Sequence[str], prog: str) -> Recipe:
    """Read the recipe file and set the fields of the command line. Raises UserError."""
    return _parse(fields, read_command_recipe(path, fields), prog, training=False).recipe


def parse_run_arguments(arguments: Sequence[str], recipe: Recipe, prog: str) -> RecipeArguments:
    """Parse the command line of a training run: fields of the recipe and options. Raises UserError."""
    return _parse(arguments, recipe, prog, training=True)


def add_recipe_options(parser: ArgumentParser, *, training: bool) -> None:
    """Define the options of a command with a recipe; with `training` also those of a training run."""
    parser.add_argument("--ds", metavar="NAME", help="short for --training.deepspeed")
    if training:
        parser.add_argument(
            "--resume", nargs="?", const=True, default=False, metavar="CHECKPOINT",
            help="resume from the last checkpoint in training.output_dir, or from CHECKPOINT",
        )  # fmt: skip
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        # The `deepspeed` launcher adds this option; the environment has the same value.
        parser.add_argument("--local_rank", "--local-rank", help="set by the deepspeed launcher")


def _parse(arguments: Sequence[str], recipe: Recipe, prog: str, *, training: bool) -> RecipeArguments:
    found, options = parse_fields(arguments, recipe, prog, partial(add_recipe_options, training=training))
    if options.ds is not None:
        if any(argument.split("=")[0] == "--training.deepspeed" for argument in arguments):
            raise UserError("--ds, --training.deepspeed: duplicate option; pass only one of them")
        found = replace(found, training={**found.training, "deepspeed": options.ds})
    if not training:
        return RecipeArguments(recipe=found)
    return RecipeArguments(recipe=found, resume=options.resume)
