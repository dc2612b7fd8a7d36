"""peftkit train | compare | plan | report | check | export | combine | predict: words to functions, no more."""

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
        usage="peftkit compare RECIPE [--methods a,b,c] [--over FIELD=a,b] [OPTIONS] [--FIELD VALUE ...]",
    )  # fmt: skip
    compare.add_argument("recipe", help="a .yaml or .py file; any field can be set by its dotted name, as in train")
    compare.add_argument(
        "--methods", metavar="A,B",
        help="full, lora, qlora, dora, rslora, any method of peft by its name (ia3, prefix_tuning), or recipe files; "
        "full,lora,qlora when nothing else is compared",
    )  # fmt: skip
    compare.add_argument(
        "--over", action="append", default=[], metavar="FIELD=A,B",
        help="compare any field of the recipe, such as model.name_or_path=a,b; several make every combination",
    )  # fmt: skip
    compare.add_argument("--trials", type=int, metavar="N", help="settings tried for each row on validation (3)")
    compare.add_argument("--seeds", type=int, metavar="N", help="runs of each row with its best setting (3)")
    compare.add_argument("--quick", action="store_true", help="one setting, one seed: a first look")
    compare.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time, each on devices of its own")
    compare.add_argument("--processes", type=int, default=1, metavar="N", help="ranks of each run")
    compare.add_argument("--learning_rates", default="", help="other than the usual ones, such as full=3e-5,ia3=5e-3")
    compare.add_argument(
        "--output", type=Path, help="a new folder, or one where this comparison was begun; else comparisons/NAME"
    )

    plan = commands.add_parser(
        "plan", allow_abbrev=False, help="memory and time of a recipe on given hardware, before it runs",
        usage="peftkit plan RECIPE [--gpus N] [--gpu-memory 24GiB] [OPTIONS] [--FIELD VALUE ...]",
    )  # fmt: skip
    plan.add_argument("recipe", help="a .yaml or .py file; any field can be set by its dotted name, as in train")
    plan.add_argument("--gpus", type=int, metavar="N", help="devices; 1 of this machine's when not given")
    plan.add_argument("--gpu-memory", "--gpu_memory", metavar="SIZE", help="of each (24GiB)")
    plan.add_argument("--methods", default="full,lora,qlora", metavar="A,B", help="as in compare (full,lora,qlora)")
    plan.add_argument("--rows", type=int, metavar="N", help="training rows, so that the data need not be read")
    plan.add_argument(
        "--tflops", type=float, help="operations in 10^12 a second that training reaches on a device (40 on a GPU)"
    )
    plan.add_argument(
        "--speed-from", "--speed_from", type=Path, metavar="RUN", help="take them from a finished run of one process"
    )
    plan.add_argument("--bandwidth", type=float, metavar="GB/S", help="between devices of a host (12)")
    plan.add_argument("--network", type=float, metavar="GB/S", help="between hosts, a device's share (3)")
    plan.add_argument("--gpus-per-host", "--gpus_per_host", type=int, metavar="N", help="devices of a host (8)")
    plan.add_argument(
        "--scaling", action="store_true", help="weak and strong scaling of the choice on 1 to 1,024 devices, on paper"
    )
    plan.add_argument("--output", type=Path, help="write the plan to this .json file too")

    check = commands.add_parser(
        "check", allow_abbrev=False, help="look at a recipe's data before anything is trained",
        usage="peftkit check RECIPE [--output FILE.json] [--FIELD VALUE ...]",
    )  # fmt: skip
    check.add_argument("recipe", help="a .yaml or .py file; any field can be set by its dotted name, as in train")
    check.add_argument("--output", type=Path, help="write the findings to this .json file too")

    report = commands.add_parser("report", allow_abbrev=False, help="show a comparison, or runs, as a page")
    report.add_argument("folders", nargs="+", type=Path, metavar="RUNS", help="a comparison's folder, or run folders")
    report.add_argument("--format", choices=("html", "md", "csv", "json"), default="html")
    report.add_argument(
        "--output",
        type=Path,
        help="a new file; else the page goes beside the runs, the rest to the terminal",
    )
    report.add_argument(
        "--examples", type=int, default=20, metavar="N",
        help="test rows to show with their text (20); with 0 no text of the data is in the page",
    )  # fmt: skip

    export = commands.add_parser("export", allow_abbrev=False, help="make an ordinary model of a run, and prove it")
    export.add_argument("run", type=Path, help="the folder of a finished run")
    export.add_argument("out", type=Path, help="a new folder")
    export.add_argument(
        "--format", choices=("model", "adapter", "onnx"),
        help="a merged model, the adapter alone, or a merged model for ONNX Runtime (pip install 'peftkit[onnx]')",
    )  # fmt: skip
    export.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
        help="of the merged weights; auto is what the base was loaded in",
    )  # fmt: skip
    export.add_argument(
        "--merge", choices=("best", "original", "dequantized", "4bit"), default="best",
        help="what a quantized run's adapter is merged onto; best is the better of the first two on validation",
    )  # fmt: skip
    export.add_argument("--int8", action="store_true", help="ONNX with 8-bit weights, scored on validation")
    export.add_argument("--tolerance", type=float, help="largest difference of a logit that passes (1e-4)")
    export.add_argument(
        "--push_to_hub", "--push-to-hub", metavar="USER/NAME", help="send it there too, with your own login"
    )
    export.add_argument("--private", action="store_true", help="with --push_to_hub: make it a private model")

    combine = commands.add_parser("combine", allow_abbrev=False, help="make one run of several LoRA runs on one base")
    combine.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs, and then OUT")
    combine.add_argument("out", type=Path, metavar="OUT", help="a new folder, of a run")
    combine.add_argument("--weights", default="", metavar="A,B", help="of the runs in their order; else equal ones")
    combine.add_argument(
        "--combination_type", default="cat",
        help="as in peft's add_weighted_adapter: cat (exact, ranks add up), svd, linear, ties, dare_ties, ... (cat)",
    )  # fmt: skip
    combine.add_argument("--density", type=float, help="share of values that ties, dare and magnitude_prune keep")

    predict = commands.add_parser("predict", allow_abbrev=False, help="answer the rows of a file")
    predict.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER",
        help="of a run, an export or a model; several runs on one base answer in one pass",
    )  # fmt: skip
    predict.add_argument("file", help="csv, tsv, json, jsonl, parquet, arrow or txt; - is standard input")
    predict.add_argument(
        "--output", type=Path,
        help="a new .jsonl, .csv or .parquet file; else NAME-OF-FILE.predictions.jsonl here, or standard output",
    )  # fmt: skip
    predict.add_argument("--input_format", help="of a file whose ending does not tell, or of standard input (jsonl)")
    predict.add_argument("--top_k", type=int, metavar="K", help="only the K most probable labels' probabilities")
    for name in INPUT_FIELDS:
        predict.add_argument(
            f"--{name}", metavar="COLUMN", help=f"the column of the {name}, when not the one trained on"
        )
    for command in (export, combine, predict):
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
    from peftkit.compare import RUNS, Budget, compare, run_place
    from peftkit.contenders import METHOD, folder_name, parse_over
    from peftkit.distributed import spelled_out
    from peftkit.pages.write import NAMES, PICTURES, write_all
    from peftkit.parsing import parse_recipe, read_recipe

    rates = {}
    for word in filter(None, chosen.learning_rates.split(",")):
        name, _, rate = word.partition("=")
        try:
            rates[name] = float(rate)
        except ValueError:
            raise UserError(f"--learning_rates: '{word}' is not METHOD=NUMBER") from None
    over = parse_over(chosen.over)
    if chosen.methods is not None or not over:
        if METHOD in over:
            raise UserError("--methods and --over method: say one of them")
        words_of_methods = "full,lora,qlora" if chosen.methods is None else chosen.methods
        over = {METHOD: [word.strip() for word in words_of_methods.split(",") if word.strip()], **over}
        if not over[METHOD]:
            raise UserError("--methods: names none")
    recipe = parse_recipe(spelled_out(words), read_recipe(chosen.recipe), prog="peftkit compare RECIPE")
    if chosen.quick and (chosen.trials or 1, chosen.seeds or 1) != (1, 1):
        raise UserError("--quick: is one trial and one seed; leave out --trials and --seeds")
    usual = 1 if chosen.quick else 3
    budget = Budget(
        trials=usual if chosen.trials is None else chosen.trials,
        seeds=usual if chosen.seeds is None else chosen.seeds,
        jobs=chosen.jobs, processes=chosen.processes,
    )  # fmt: skip
    folder = compare(recipe, over, budget=budget, output=chosen.output, learning_rates=rates)
    findings = write_all(folder)
    print("\n" + (folder / NAMES["md"]).read_text(encoding="utf-8"))
    if (folder / NAMES["html"]).exists():
        print(f"page     {folder / NAMES['html']}")
        print(f"pictures {folder / PICTURES}")
    print(f"numbers  {folder / NAMES['csv']}, {folder / NAMES['json']}")
    print(f"runs     {folder / RUNS}")
    if findings.recommended:
        best = next(row for row in findings.rows if row.name == findings.recommended)
        where = run_place(folder, folder_name(best.name), seed=best.seeds[0])
        print(f"\nAn ordinary model of a run:  peftkit export {where} my-model")
    # Out of memory is a finding, as is a divergence; what failed otherwise is for someone to look at.
    if failed := [row.name for row in findings.rows if row.broken]:
        sys.exit(f"peftkit: {', '.join(failed)} failed; the table says why")


def _report(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.files import write_text
    from peftkit.pages.write import report_text, write_report

    if chosen.format == "html":
        print(write_report(chosen.folders, output=chosen.output, examples=chosen.examples))
        return
    if chosen.output is not None and chosen.output.exists():
        raise UserError(f"--output {chosen.output}: already exists; name another file or remove it")
    text = report_text(chosen.folders, chosen.format)
    if chosen.output is None:
        print(text, end="")
    else:
        write_text(chosen.output, text)


def _check(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.check import check
    from peftkit.parsing import parse_recipe, read_recipe

    print(check(parse_recipe(words, read_recipe(chosen.recipe), prog="peftkit check RECIPE"), chosen.output))


def _plan(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.distributed import spelled_out
    from peftkit.parsing import parse_recipe, read_recipe
    from peftkit.planning import Asked, planned

    recipe = parse_recipe(spelled_out(words), read_recipe(chosen.recipe), prog="peftkit plan RECIPE")
    asked = Asked(
        gpus=chosen.gpus, gpu_memory=chosen.gpu_memory, rows=chosen.rows, tflops=chosen.tflops,
        speed_from=chosen.speed_from, bandwidth=chosen.bandwidth, network=chosen.network,
        gpus_per_host=chosen.gpus_per_host, scaling=chosen.scaling,
    )  # fmt: skip
    methods = [word.strip() for word in chosen.methods.split(",") if word.strip()]
    print(planned(recipe, methods, asked, chosen.output))


def _export(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.export import export
    from peftkit.hub import check_login, push

    if chosen.push_to_hub:
        check_login(chosen.push_to_hub)
    export(
        chosen.run, chosen.out, form=chosen.format, dtype=chosen.dtype, merge=chosen.merge, int8=chosen.int8,
        tolerance=chosen.tolerance, trust_remote_code=chosen.trust_remote_code,
    )  # fmt: skip
    if chosen.push_to_hub:
        push(chosen.out, chosen.push_to_hub, private=chosen.private)


def _combine(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.combine import combine

    try:
        weights = [float(word) for word in filter(None, chosen.weights.split(","))]
    except ValueError:
        raise UserError(f"--weights: '{chosen.weights}' is not numbers with commas between") from None
    combine(
        chosen.runs, chosen.out, weights=weights, combination_type=chosen.combination_type, density=chosen.density,
        trust_remote_code=chosen.trust_remote_code,
    )  # fmt: skip


def _predict(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.predict import predict

    columns = {name: getattr(chosen, name) for name in INPUT_FIELDS}
    predict(
        chosen.folders, None if chosen.file == "-" else Path(chosen.file), chosen.output,
        columns={name: column for name, column in columns.items() if column is not None},
        input_format=chosen.input_format, top_k=chosen.top_k, trust_remote_code=chosen.trust_remote_code,
    )  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """The command line; ends the process with 0, 1 (failed) or 2 (the user can put it right)."""
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]

    def act() -> None:
        chosen, rest = _parser().parse_known_args(words)
        if rest and chosen.command not in ("train", "compare", "check", "plan"):
            raise UserError(f"{chosen.command}: unknown argument '{rest[0]}'; --help lists them")
        from peftkit.log import set_up_logging

        set_up_logging(debug=debug)
        commands: dict[str, Callable[[argparse.Namespace, list[str]], None]] = {
            "train": _train, "compare": _compare, "plan": _plan, "report": _report, "check": _check, "export": _export,
            "combine": _combine, "predict": _predict,
        }  # fmt: skip
        commands[chosen.command](chosen, rest + ["--debug"] * (debug and chosen.command == "train"))

    sys.exit(exit_code_of(act, debug=debug))


if __name__ == "__main__":
    main()
