"""Command-line entry point: parse the arguments and run the command."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import peftkit
from peftkit.cli.commands import check, combine, compare, export, init, plan, predict, report, train
from peftkit.errors import UserError, run_with_exit_code
from peftkit.system.plugins import load_plugins

COMMANDS: dict[str, ModuleType] = {
    "init": init, "train": train, "compare": compare, "plan": plan, "report": report, "check": check, "export": export,
    "combine": combine, "predict": predict,
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see {self.prog} --help")


def _build_common_parser() -> _Parser:
    """Build the parser of options that are accepted before and after the command."""
    common = _Parser(add_help=False, allow_abbrev=False)
    # A default would overwrite an option before the command.
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    common.add_argument(
        "--plugin", action="append", type=Path, default=argparse.SUPPRESS, metavar="FILE.py",
        help="run a Python file that registers a task, metric, data format or export format; can be repeated",
    )  # fmt: skip
    return common


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands, which raises UserError for an invalid or unknown argument."""
    common = _build_common_parser()
    parser = _Parser(prog="peftkit", description=peftkit.__doc__, allow_abbrev=False, parents=[common])
    parser.add_argument("--version", action="version", version=f"peftkit {peftkit.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        text = (command.__doc__ or "").splitlines()[0].rstrip(".")
        command_parser = commands.add_parser(
            name, help=text[0].lower() + text[1:], description=command.__doc__, allow_abbrev=False, parents=[common],
            # `train` lists the fields of the recipe too, so it prints its help once the recipe is read.
            add_help=command is not train,
        )  # fmt: skip
        command_parser.set_defaults(run=command.run, takes_fields=False)
        command.add_arguments(command_parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit with code 0, 1 (failure) or 2 (error that the user can fix)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments

    def run() -> None:
        # Load plug-ins first: a registered export format is a choice of `--format`.
        options, _ = _build_common_parser().parse_known_args(arguments)
        load_plugins(getattr(options, "plugin", []))
        parsed, rest = build_parser().parse_known_args(arguments)
        if rest and not parsed.takes_fields:
            raise UserError(f"{parsed.command}: unknown argument '{rest[0]}'; see peftkit {parsed.command} --help")
        parsed.fields = rest
        from peftkit.system.logging import set_up_logging

        set_up_logging(debug=debug)
        parsed.run(parsed)

    sys.exit(run_with_exit_code(run, debug=debug))
