"""Plan the memory and time of a recipe on given hardware, without training."""

import argparse
from pathlib import Path

from peftkit.errors import UserError
from peftkit.planning.options import PlanOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments."""
    parser.usage = "peftkit plan RECIPE | --run FOLDER [--gpus N] [--gpu-memory 24GiB] [OPTIONS] [--FIELD VALUE ...]"
    parser.add_argument("recipe", nargs="?", help="a .yaml or .py file; set any field by its dotted name, as in train")
    parser.add_argument(
        "--run", type=Path, dest="run_folder", metavar="FOLDER",
        help="print estimated and measured memory of a finished run; other options do not apply",
    )  # fmt: skip
    parser.add_argument("--gpus", type=int, metavar="N", help="number of GPUs (default: one device of this machine)")
    parser.add_argument("--gpu-memory", "--gpu_memory", metavar="SIZE", help="memory of each device (default: 24GiB)")
    parser.add_argument(
        "--methods", default="full,lora,qlora", metavar="A,B", help="as in compare (default: full,lora,qlora)"
    )
    parser.add_argument("--rows", type=int, metavar="N", help="number of training rows, instead of reading the data")
    parser.add_argument("--tflops", type=float, help="sustained TFLOP/s per device (default: 40 on a GPU)")
    parser.add_argument(
        "--speed-from",
        "--speed_from",
        type=Path,
        metavar="RUN",
        help="set --tflops from a finished run of one process",
    )
    parser.add_argument(
        "--bandwidth", type=float, metavar="GB/S", help="bandwidth between the devices of a host (default: 12)"
    )
    parser.add_argument(
        "--network", type=float, metavar="GB/S", help="bandwidth between hosts, per device (default: 3)"
    )
    parser.add_argument(
        "--gpus-per-host", "--gpus_per_host", type=int, metavar="N", help="number of devices per host (default: 8)"
    )
    parser.add_argument(
        "--scaling", action="store_true",
        help="experimental: estimated throughput on 1 to 1,024 devices",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="also write the plan to this .json file")
    parser.set_defaults(takes_fields=True)


def run(arguments: argparse.Namespace) -> None:
    """Run `peftkit plan`. Raises UserError."""
    if arguments.run_folder is not None:
        if arguments.recipe is not None or arguments.fields:
            raise UserError("--run: cannot be combined with RECIPE or fields; remove them")
        from peftkit.planning.run_estimate import format_run_estimate

        print(format_run_estimate(arguments.run_folder))
        return
    if arguments.recipe is None:
        raise UserError("plan: missing RECIPE (a .yaml or .py file) or --run FOLDER; pass one of them")
    options = PlanOptions(
        gpus=arguments.gpus, gpu_memory=arguments.gpu_memory, rows=arguments.rows, tflops=arguments.tflops,
        speed_from=arguments.speed_from, bandwidth=arguments.bandwidth, network=arguments.network,
        gpus_per_host=arguments.gpus_per_host, scaling=arguments.scaling, output=arguments.output,
    )  # fmt: skip
    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]

    from peftkit.cli.recipe_arguments import read_recipe_arguments
    from peftkit.planning.command import plan_recipe

    recipe = read_recipe_arguments(arguments.recipe, arguments.fields, "peftkit plan RECIPE")
    print(plan_recipe(recipe, methods, options))
