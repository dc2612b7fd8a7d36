"""peftkit train | compare | check | export | predict: words to functions, and nothing else."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import peftkit
from peftkit.errors import UserError, exit_code_of

# Of all tasks; named here too, since `--help` loads none of them.
INPUT_FIELDS = ("text", "text_pair", "tokens", "source")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; {self.prog} --help tells more")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="peftkit", description=peftkit.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"peftkit {peftkit.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error; anywhere in the line")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    train = commands.add_parser(
        "train", add_help=False, allow_abbrev=False, help="train by a recipe",
        usage="peftkit train RECIPE [--FIELD VALUE ...]",
    )  # fmt: skip
    train.add_argument("recipe", nargs="?", help="a .yaml or .py file")
    train.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    train.add_argument("-h", "--help", action="store_true")

    compare = commands.add_parser(
        "compare", allow_abbrev=False, help="run several methods on the same data",
        usage="peftkit compare RECIPE [--methods a,b,c] [--output FOLDER] [--FIELD VALUE ...]",
    )  # fmt: skip
    compare.add_argument("recipe", help="a .yaml or .py file; any field can be set by its dotted name, as in train")
    compare.add_argument(
        "--methods", default="full,lora,qlora",
        help="full, lora, qlora, dora, rslora, any method of peft by its name (ia3, prefix_tuning), or recipe files",
    )  # fmt: skip
    compare.add_argument("--learning_rates", default="", help="other than the usual ones, such as full=3e-5,ia3=5e-3")
    compare.add_argument("--output", type=Path, help="a new folder; comparisons/NAME when not given")

    check = commands.add_parser(
        "check", allow_abbrev=False, help="look at a recipe's data before anything is trained",
        usage="peftkit check RECIPE [--output FILE.json] [--FIELD VALUE ...]",
    )  # fmt: skip
    check.add_argument("recipe", help="a .yaml or .py file; any field can be set by its dotted name, as in train")
    check.add_argument("--output", type=Path, help="write the findings to this .json file too")

    export = commands.add_parser("export", allow_abbrev=False, help="make an ordinary model of a run")
    export.add_argument("run", type=Path, help="the folder of a finished run")
    export.add_argument("out", type=Path, help="a new folder")
    export.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a logit that passes")

    predict = commands.add_parser("predict", allow_abbrev=False, help="label the rows of a file")
    predict.add_argument("folder", type=Path, help="the folder of a run or of a model")
    predict.add_argument("file", type=Path, help="csv, tsv, json, jsonl, parquet or arrow")
    predict.add_argument(
        "--output", type=Path, help="a new .jsonl or .csv file; here, NAME-OF-FILE.predictions.jsonl, when not given"
    )
    for name in INPUT_FIELDS:
        predict.add_argument(
            f"--{name}", metavar="COLUMN", help=f"the column of the {name}, when not the one trained on"
        )
    for command in (export, predict):
        command.add_argument("--trust_remote_code", action="store_true", help="run code that the base model brings")
    return parser


def _train(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit import Recipe, main
    from peftkit.parsing import read_recipe

    if chosen.help:
        words = [*words, "--help"]
    elif chosen.recipe is None:
        raise UserError("train: which recipe? give a .yaml or a .py file; --help lists every field")
    sys.argv[0] = "peftkit train RECIPE"
    if chosen.local_rank is not None:
        words = [*words, f"--local_rank={chosen.local_rank}"]
    main(Recipe() if chosen.recipe is None else read_recipe(chosen.recipe), words)


def _compare(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.compare import PICTURE, TABLE, compare
    from peftkit.parsing import parse_recipe, read_recipe

    rates = {}
    for word in filter(None, chosen.learning_rates.split(",")):
        name, _, rate = word.partition("=")
        try:
            rates[name] = float(rate)
        except ValueError:
            raise UserError(f"--learning_rates: '{word}' is not METHOD=NUMBER") from None
    recipe = parse_recipe(words, read_recipe(chosen.recipe), prog="peftkit compare RECIPE")
    methods = [word.strip() for word in chosen.methods.split(",") if word.strip()]
    folder, reports = compare(recipe, methods, output=chosen.output, learning_rates=rates)
    print("\n" + (folder / TABLE).read_text(encoding="utf-8"))
    print(f"table    {folder / TABLE}")
    if (folder / PICTURE).exists():
        print(f"picture  {folder / PICTURE}")
    for report in reports:
        print(f"{report.status:<8} {folder / report.method}/report.json")
    for report in reports:
        if report.status == "complete":
            print(f"\nAn ordinary model of a run:  peftkit export {folder / report.method} my-model")
            break
    # Out of memory is a finding; a method that failed otherwise is for someone to look at.
    if failed := [report.method for report in reports if report.status == "failed"]:
        sys.exit(f"peftkit: {', '.join(failed)} failed; the table says why")


def _check(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.check import check
    from peftkit.parsing import parse_recipe, read_recipe

    print(check(parse_recipe(words, read_recipe(chosen.recipe), prog="peftkit check RECIPE"), chosen.output))


def _export(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.export import export

    export(chosen.run, chosen.out, tolerance=chosen.tolerance, trust_remote_code=chosen.trust_remote_code)


def _predict(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.predict import predict

    columns = {name: getattr(chosen, name) for name in INPUT_FIELDS}
    given = {name: column for name, column in columns.items() if column is not None}
    trust = chosen.trust_remote_code
    predict(chosen.folder, chosen.file, chosen.output, columns=given, trust_remote_code=trust)


def main(words: Sequence[str] | None = None) -> None:
    """The command line; ends the process with 0, 1 (failed) or 2 (the user can put it right)."""
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]

    def act() -> None:
        chosen, rest = _parser().parse_known_args(words)
        if rest and chosen.command not in ("train", "compare", "check"):
            raise UserError(f"{chosen.command}: unknown argument '{rest[0]}'; --help lists them")
        from peftkit.log import set_up_logging

        set_up_logging(debug=debug)
        commands: dict[str, Callable[[argparse.Namespace, list[str]], None]] = {
            "train": _train, "compare": _compare, "check": _check, "export": _export, "predict": _predict,
        }  # fmt: skip
        commands[chosen.command](chosen, rest + ["--debug"] * (debug and chosen.command == "train"))

    sys.exit(exit_code_of(act, debug=debug))


if __name__ == "__main__":
    main()
