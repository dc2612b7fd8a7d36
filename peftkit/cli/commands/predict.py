"""Run predictions on a file or standard input."""

import argparse
from pathlib import Path

from peftkit.cli.commands.export import add_trust_remote_code

# Input fields of all tasks; importing the tasks would load torch for `--help`.
INPUT_FIELDS = ("text", "text_pair", "tokens", "source")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments."""
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER",
        help="folder of a run, an export or a model; or several runs on one base model",
    )  # fmt: skip
    parser.add_argument(
        "file", metavar="FILE", help="csv, tsv, json, jsonl, parquet, arrow or txt; - is standard input"
    )
    parser.add_argument(
        "--output", type=Path,
        help="a new .jsonl, .csv or .parquet file (default: FILE.predictions.jsonl, or standard output)",
    )  # fmt: skip
    parser.add_argument(
        "--input_format", help="format of standard input (default: jsonl), or of a file with another extension"
    )
    parser.add_argument(
        "--top_k", type=int, metavar="K", help="output only the probabilities of the K most probable labels"
    )
    for name in INPUT_FIELDS:
        parser.add_argument(f"--{name}", metavar="COLUMN", help=f"column for {name} (default: as in training)")
    add_trust_remote_code(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run `peftkit predict`. Raises UserError."""
    from peftkit.prediction.batch import predict

    columns = {name: getattr(arguments, name) for name in INPUT_FIELDS}
    predict(
        arguments.folders, None if arguments.file == "-" else Path(arguments.file), arguments.output,
        columns={name: column for name, column in columns.items() if column is not None},
        input_format=arguments.input_format, top_k=arguments.top_k, trust_remote_code=arguments.trust_remote_code,
    )  # fmt: skip
