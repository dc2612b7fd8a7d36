"""Run several methods on the same data and compare them."""

import argparse
import sys
from pathlib import Path

from peftkit.comparison.options import (
    DEFAULT_METHODS,
    DEFAULT_RUNS,
    make_budget,
    parse_compared_values,
    parse_learning_rates,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments."""
    parser.usage = "peftkit compare RECIPE [--methods a,b,c] [--over FIELD=a,b] [OPTIONS] [--FIELD VALUE ...]"
    parser.add_argument("recipe", help="a .yaml or .py file; set any field by its dotted name, as in train")
    parser.add_argument(
        "--methods", metavar="A,B",
        help="full, lora, qlora, dora, rslora, the name of any method of peft (ia3, prefix_tuning), or recipe files "
        f"(default: {DEFAULT_METHODS}, without --over)",
    )  # fmt: skip
    parser.add_argument(
        "--over", action="append", default=[], metavar="FIELD=A,B",
        help="compare any field of the recipe, such as model.name_or_path=a,b; "
        "repeat the option to compare all combinations",
    )  # fmt: skip
    parser.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help=f"number of hyperparameter settings per row, compared on validation (default: {DEFAULT_RUNS})",
    )
    parser.add_argument(
        "--seeds", type=int, metavar="N", help=f"number of runs per row with the best setting (default: {DEFAULT_RUNS})"
    )
    parser.add_argument("--quick", action="store_true", help="one setting and one seed per row, for a first look")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="number of parallel runs on separate devices (default: 1)"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="number of ranks per run (default: 1)")
    parser.add_argument(
        "--learning_rates", default="", help="default learning rate by method, such as full=3e-5,ia3=5e-3"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="comparison folder; an unfinished comparison there is resumed (default: comparisons/NAME)",
    )
    parser.set_defaults(takes_fields=True)


def run(arguments: argparse.Namespace) -> None:
    """Run `peftkit compare`. Raises UserError."""
    # Check the options before imports that take seconds.
    rates = parse_learning_rates(arguments.learning_rates)
    over = parse_compared_values(arguments.methods, arguments.over)
    budget = make_budget(
        trials=arguments.trials, seeds=arguments.seeds, is_quick=arguments.quick, jobs=arguments.jobs,
        processes=arguments.processes,
    )  # fmt: skip

    from peftkit.cli.recipe_arguments import read_recipe_arguments
    from peftkit.comparison.comparison_file import RUNS_FOLDER, get_run_folder
    from peftkit.comparison.grid import make_folder_name
    from peftkit.comparison.report.writer import NAMES, PICTURES, write_all_formats
    from peftkit.comparison.runner import compare

    recipe = read_recipe_arguments(arguments.recipe, arguments.fields, "peftkit compare RECIPE")
    folder = compare(recipe, over, budget=budget, output=arguments.output, learning_rates=rates)
    findings = write_all_formats(folder)
    print("\n" + (folder / NAMES["md"]).read_text(encoding="utf-8"))
    if (folder / NAMES["html"]).exists():
        print(f"page     {folder / NAMES['html']}")
        print(f"pictures {folder / PICTURES}")
    print(f"numbers  {folder / NAMES['csv']}, {folder / NAMES['json']}")
    print(f"runs     {folder / RUNS_FOLDER}")
    if findings.recommended:
        best = next(row for row in findings.rows if row.name == findings.recommended)
        path = get_run_folder(folder, make_folder_name(best.name), seed=best.seeds[0])
        print(f"\nExport a run as a standard model:  peftkit export {path} my-model")
    # Out of memory and divergence are results; any other failure is an error.
    if failed := [row.name for row in findings.rows if row.broken]:
        sys.exit(f"peftkit: {', '.join(failed)} failed; see the table")
