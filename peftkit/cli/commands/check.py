"""Check the data of a recipe before training."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments."""
    parser.usage = "peftkit check RECIPE [--output FILE.json] [--FIELD VALUE ...]"
    parser.add_argument("recipe", help="a .yaml or .py file; set any field by its dotted name, as in train")
    parser.add_argument("--output", type=Path, help="also write the findings to this .json file")
    parser.set_defaults(takes_fields=True)


def run(arguments: argparse.Namespace) -> None:
    """Run `peftkit check`. Raises UserError."""
    from peftkit.cli.recipe_arguments import read_recipe_arguments
    from peftkit.data.report import check

    print(check(read_recipe_arguments(arguments.recipe, arguments.fields, "peftkit check RECIPE"), arguments.output))
