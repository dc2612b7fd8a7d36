"""peftkit train | compare | plan | report | check | export | combine | predict: words to functions, no more."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from peftkit.cli.arguments import INPUT_FIELDS, parser
from peftkit.errors import UserError, run_with_exit_code


def _train(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit import Recipe, main
    from peftkit.recipe.parser import recipe_for_command

    if chosen.help:
        words = [*words, "--help"]
    elif chosen.recipe is None:
        raise UserError("train: which recipe? give a .yaml or a .py file; --help lists every field")
    sys.argv[0] = "peftkit train RECIPE"
    if chosen.local_rank is not None:
        words = [*words, f"--local_rank={chosen.local_rank}"]
    main(Recipe() if chosen.recipe is None else recipe_for_command(chosen.recipe, words), words)


def _compare(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.comparison.grid import METHOD, folder_name, parse_over
    from peftkit.comparison.report.writer import NAMES, PICTURES, write_all
    from peftkit.comparison.runner import RUNS, Budget, compare, run_place
    from peftkit.distributed.process_group import spelled_out
    from peftkit.recipe.parser import parse_recipe, recipe_for_command

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
    recipe = parse_recipe(spelled_out(words), recipe_for_command(chosen.recipe, words), prog="peftkit compare RECIPE")
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
    from peftkit.comparison.report.writer import report_text, write_report
    from peftkit.system.files import write_text

    if chosen.format == "html":
        print(
            write_report(chosen.folders, output=chosen.output, examples=chosen.examples, reload_data=chosen.reload_data)
        )
        return
    if chosen.output is not None and chosen.output.exists():
        raise UserError(f"--output {chosen.output}: already exists; name another file or remove it")
    text = report_text(chosen.folders, chosen.format)
    if chosen.output is None:
        print(text, end="")
    else:
        write_text(chosen.output, text)


def _check(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.data.report import check
    from peftkit.recipe.parser import parse_recipe, recipe_for_command

    print(
        check(
            parse_recipe(words, recipe_for_command(chosen.recipe, words), prog="peftkit check RECIPE"),
            chosen.output,
        )
    )


def _plan(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.distributed.process_group import spelled_out
    from peftkit.planning.command import Asked, planned
    from peftkit.recipe.parser import parse_recipe, recipe_for_command

    recipe = parse_recipe(spelled_out(words), recipe_for_command(chosen.recipe, words), prog="peftkit plan RECIPE")
    asked = Asked(
        gpus=chosen.gpus, gpu_memory=chosen.gpu_memory, rows=chosen.rows, tflops=chosen.tflops,
        speed_from=chosen.speed_from, bandwidth=chosen.bandwidth, network=chosen.network,
        gpus_per_host=chosen.gpus_per_host, scaling=chosen.scaling,
    )  # fmt: skip
    methods = [word.strip() for word in chosen.methods.split(",") if word.strip()]
    print(planned(recipe, methods, asked, chosen.output))


def _export(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.export.exporter import export
    from peftkit.export.hub import check_login, push_folder

    if chosen.push_to_hub:
        check_login(chosen.push_to_hub)
    export(
        chosen.run, chosen.out, format=chosen.format, dtype=chosen.dtype, merge=chosen.merge, int8=chosen.int8,
        tolerance=chosen.tolerance, trust_remote_code=chosen.trust_remote_code, reload_data=chosen.reload_data,
    )  # fmt: skip
    if chosen.push_to_hub:
        push_folder(chosen.out, chosen.push_to_hub, private=chosen.private)


def _combine(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.export.combine import combine

    try:
        weights = [float(word) for word in filter(None, chosen.weights.split(","))]
    except ValueError:
        raise UserError(f"--weights: '{chosen.weights}' is not numbers with commas between") from None
    combine(
        chosen.runs, chosen.out, weights=weights, combination_type=chosen.combination_type, density=chosen.density,
        trust_remote_code=chosen.trust_remote_code, reload_data=chosen.reload_data,
    )  # fmt: skip


def _predict(chosen: argparse.Namespace, words: list[str]) -> None:
    from peftkit.prediction.batch import predict

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
        chosen, rest = parser().parse_known_args(words)
        if rest and chosen.command not in ("train", "compare", "check", "plan"):
            raise UserError(f"{chosen.command}: unknown argument '{rest[0]}'; --help lists them")
        from peftkit.system.logging import set_up_logging

        set_up_logging(debug=debug)
        commands: dict[str, Callable[[argparse.Namespace, list[str]], None]] = {
            "train": _train, "compare": _compare, "plan": _plan, "report": _report, "check": _check, "export": _export,
            "combine": _combine, "predict": _predict,
        }  # fmt: skip
        commands[chosen.command](chosen, rest + ["--debug"] * (debug and chosen.command == "train"))

    sys.exit(run_with_exit_code(act, debug=debug))
