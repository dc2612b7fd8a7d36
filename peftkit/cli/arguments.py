"""The words of the command line, and what each is for."""

import argparse
from pathlib import Path

import peftkit
from peftkit.errors import UserError
from peftkit.export.formats.registry import list_export_formats

# Of all tasks; named here too, since `--help` loads none of them.
INPUT_FIELDS = ("text", "text_pair", "tokens", "source")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; {self.prog} --help tells more")


def parser() -> argparse.ArgumentParser:
    """The parser; it raises UserError for a word that it does not know."""
    found = _Parser(prog="peftkit", description=peftkit.__doc__, allow_abbrev=False)
    found.add_argument("--version", action="version", version=f"peftkit {peftkit.__version__}")
    found.add_argument("--debug", action="store_true", help="show the traceback of an error; anywhere in the line")
    commands = found.add_subparsers(dest="command", metavar="COMMAND", required=True)
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
    plan.add_argument("--scaling", action="store_true", help="experimental: estimated throughput on 1 to 1,024 devices")
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
        "--format", choices=[one.name for one in list_export_formats()],
        help="; ".join(f"{one.name}: {one.description}" for one in list_export_formats()),
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
    for command in (report, export, combine):
        command.add_argument(
            "--reload_data", "--reload-data", action="store_true",
            help="read a run's data again where its folder names a database or the Hub; local files need no option",
        )  # fmt: skip
    for command in (export, combine, predict):
        command.add_argument("--trust_remote_code", action="store_true", help="run code that the base model brings")
    return found
