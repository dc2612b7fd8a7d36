"""Write the report of a comparison or of runs as a page or a table."""

import argparse
from pathlib import Path

from peftkit.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUNS", help="a comparison folder, or run folders")
    parser.add_argument(
        "--format", choices=("html", "md", "csv", "json"), default="html", help="a page (html), or the tables"
    )
    parser.add_argument(
        "--output", type=Path, help="a new file (default: html to a file, other formats to standard output)"
    )
    parser.add_argument(
        "--examples", type=int, default=20, metavar="N",
        help="number of test rows with text (default: 20); with 0 the page contains no text of the data",
    )  # fmt: skip
    add_reload_data(parser)


def add_reload_data(parser: argparse.ArgumentParser) -> None:
    """Define `--reload_data` for commands on finished runs."""
    parser.add_argument(
        "--reload_data", "--reload-data", action="store_true",
        help="read remote data of a run again (a database, the Hub); local files need no option",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Run `peftkit report`. Raises UserError."""
    from peftkit.comparison.report.writer import format_report, write_report
    from peftkit.system.files import write_text

    if arguments.format == "html":
        options = {"examples": arguments.examples, "reload_data": arguments.reload_data}
        print(write_report(arguments.folders, output=arguments.output, **options))
        return
    if arguments.output is not None and arguments.output.exists():
        raise UserError(f"--output {arguments.output}: already exists; use another name or remove it")
    text = format_report(arguments.folders, arguments.format)
    if arguments.output is None:
        print(text, end="")
    else:
        write_text(arguments.output, text)
