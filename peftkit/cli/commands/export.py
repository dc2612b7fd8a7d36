"""Export a run as a standard Transformers model and verify it."""

import argparse
from pathlib import Path

from peftkit.cli.commands.report import add_reload_data
from peftkit.export.formats.registry import list_export_formats


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    formats = list_export_formats()
    parser.add_argument(
        "--format", choices=[one.name for one in formats],
        help="; ".join(f"{one.name}: {one.description}" for one in formats),
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
        help="dtype of the merged weights; auto: dtype of the loaded base model",
    )  # fmt: skip
    parser.add_argument(
        "--merge", choices=("best", "original", "dequantized", "4bit"), default="best",
        help="base weights for merging the adapter of a quantized run; best: the better of original and "
        "dequantized on validation",
    )  # fmt: skip
    parser.add_argument("--int8", action="store_true", help="ONNX with 8-bit weights, evaluated on validation")
    parser.add_argument("--tolerance", type=float, help="maximum accepted logit difference (default: 1e-4)")
    parser.add_argument(
        "--push_to_hub", "--push-to-hub", metavar="USER/NAME", help="also upload the export, with your Hub login"
    )
    parser.add_argument("--private", action="store_true", help="with --push_to_hub: create a private model")
    add_reload_data(parser)
    add_trust_remote_code(parser)


def add_trust_remote_code(parser: argparse.ArgumentParser) -> None:
    """Define `--trust_remote_code` for commands that load the model of a run."""
    parser.add_argument("--trust_remote_code", action="store_true", help="run custom code of the base model")


def run(arguments: argparse.Namespace) -> None:
    """Run `peftkit export`. Raises UserError and NotReproducedError."""
    from peftkit.export.exporter import export

    if arguments.push_to_hub:
        from peftkit.export.hub import check_login

        check_login(arguments.push_to_hub)
    export(
        arguments.run_folder, arguments.out, format=arguments.format, dtype=arguments.dtype, merge=arguments.merge,
        int8=arguments.int8, tolerance=arguments.tolerance, trust_remote_code=arguments.trust_remote_code,
        reload_data=arguments.reload_data,
    )  # fmt: skip
    if arguments.push_to_hub:
        from peftkit.export.hub import push_folder

        push_folder(arguments.out, arguments.push_to_hub, private=arguments.private)
