"""Train a model from a recipe."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.errors import UserError, install_sigterm_handler, run_with_exit_code

if TYPE_CHECKING:
    from peftkit.recipe.schema import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments; the fields of the recipe are parsed after reading the recipe."""
    parser.usage = "peftkit train RECIPE [--resume [CHECKPOINT]] [--FIELD VALUE ...]"
    parser.add_argument("recipe", nargs="?", help="a .yaml or .py file")
    parser.add_argument("-h", "--help", action="store_true")
    parser.set_defaults(takes_fields=True)


def run(arguments: argparse.Namespace) -> None:
    """Run `peftkit train`. Raises UserError."""
    from peftkit.recipe.parser import read_command_recipe
    from peftkit.recipe.schema import Recipe

    fields = [*arguments.fields, "--help"] if arguments.help else arguments.fields
    if arguments.recipe is None and not arguments.help:
        raise UserError("train: missing RECIPE (a .yaml or .py file); see peftkit train --help")
    recipe = Recipe() if arguments.recipe is None else read_command_recipe(arguments.recipe, fields)
    _train(recipe, fields, "peftkit train RECIPE")


def main(recipe: "Recipe", arguments: Sequence[str] | None = None) -> None:
    """Train from `recipe` with the fields from the command line; the last line of a recipe in Python.

    Exits with code 0 complete, 1 failure, 2 error that the user can fix, 130 interrupted, 143 ended by SIGTERM.
    `--debug` prints the traceback. `--resume` resumes from the last checkpoint, `--resume PATH` from PATH.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments

    def act() -> None:
        from peftkit.system.logging import set_up_logging

        set_up_logging(debug=debug)
        _train(recipe, arguments, Path(sys.argv[0]).name)

    sys.exit(run_with_exit_code(act, debug=debug))


def _train(recipe: "Recipe", arguments: Sequence[str], prog: str) -> None:
    from peftkit.cli.recipe_arguments import parse_run_arguments
    from peftkit.training.run import run as train

    install_sigterm_handler()
    parsed = parse_run_arguments(arguments, recipe, prog)
    train(parsed.recipe, resume=parsed.resume)
