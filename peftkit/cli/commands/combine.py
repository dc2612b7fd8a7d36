"""Combine several LoRA runs on one base model into one run."""

import argparse
from pathlib import Path

from peftkit.cli.commands.export import add_trust_remote_code
from peftkit.cli.commands.report import add_reload_data
from peftkit.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments."""
    parser.add_argument("run_folders", type=Path, nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new run folder")
    parser.add_argument("--weights", default="", metavar="A,B", help="one weight per run, in order (default: equal)")
    parser.add_argument(
        "--combination_type", default="cat",
        help="as in peft's add_weighted_adapter: cat (default; exact, sum of ranks), svd, linear, ties, dare_ties, ...",
    )  # fmt: skip
    parser.add_argument("--density", type=float, help="share of values that ties, dare and magnitude_prune retain")
    add_reload_data(parser)
    add_trust_remote_code(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run `peftkit combine`. Raises UserError and NotReproducedError."""
    from peftkit.export.combine import combine

    try:
        weights = [float(weight) for weight in filter(None, arguments.weights.split(","))]
    except ValueError:
        raise UserError(f"--weights: expected numbers separated by commas, got '{arguments.weights}'") from None
    combine(
        arguments.run_folders, arguments.out, weights=weights, combination_type=arguments.combination_type,
        density=arguments.density, trust_remote_code=arguments.trust_remote_code, reload_data=arguments.reload_data,
    )  # fmt: skip
