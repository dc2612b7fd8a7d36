"""Every method on the same data: a process each, one table, one picture."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from peftkit.errors import UserError
from peftkit.files import write_text
from peftkit.log import logger
from peftkit.methods import Method, named_method, usual_learning_rate
from peftkit.parsing import read_recipe, recipe_to_dict, recipe_to_yaml
from peftkit.recipe import Recipe
from peftkit.report import FILE_NAME, Report, read_report

TABLE = "comparison.md"
PICTURE = "comparison.png"
# As papers write them; any other goes by its own name.
METRIC_NAMES = {
    "f1": "F1", "f1_macro": "macro F1", "f1_micro": "micro F1", "pearson": "Pearson's r", "spearman": "Spearman's rho",
    "rougeL": "ROUGE-L", "bleu": "BLEU",
}  # fmt: skip


def compare(
    recipe: Recipe,
    methods: Sequence[str],
    *,
    output: Path | None = None,
    learning_rates: Mapping[str, float] | None = None,
) -> tuple[Path, list[Report]]:
    """Run each method in a process of its own and write the table and the picture; returns a report a method.

    Only the method and its learning rate differ: the recipe's own method keeps the recipe's rate, another one takes
    `learning_rates` or what is usual for it. A method that fails is a report that says so. Returns the comparison's
    folder and its reports. Raises UserError.
    """
    if not methods:
        raise UserError("--methods: names none")
    recipes = method_recipes(recipe, methods, learning_rates or {})
    folder = output or _free_folder(Path("comparisons") / recipe.name)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--output {folder}: already exists; name another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("comparing %s in %s", ", ".join(recipes), folder)
    reports = []
    for number, (name, one) in enumerate(recipes.items(), start=1):
        logger.info("[%d/%d] %s", number, len(recipes), name)
        reports.append(_run_apart(one, folder / name))
        last = reports[-1]
        if last.status != "complete":
            logger.info("[%d/%d] %s: %s: %s", number, len(recipes), name, last.status, last.error)
    metrics = recipe.task.main_metrics
    write_text(folder / TABLE, table(reports, metrics))
    if any(report.status == "complete" for report in reports):
        draw(reports, folder / PICTURE, metrics[0])
    return folder, reports


def method_recipes(recipe: Recipe, words: Sequence[str], learning_rates: Mapping[str, float]) -> dict[str, Recipe]:
    """A recipe by method name, alike but for method and learning rate. A word is a method's name or a recipe file."""
    recipes: dict[str, Recipe] = {}
    for word in words:
        method, rate = _method(word, recipe)
        if method.name in recipes:
            raise UserError(f"--methods: '{method.name}' is named twice")
        training = {
            name: value for name, value in recipe.training.items() if name not in ("learning_rate", "output_dir")
        }
        training["learning_rate"] = learning_rates.get(method.name, rate)
        recipes[method.name] = replace(recipe, name=f"{recipe.name} {method.name}", method=method, training=training)
    for name in learning_rates:
        if name not in recipes:
            raise UserError(f"--learning_rates: no method '{name}' among {', '.join(recipes)}")
    return recipes


def _method(word: str, recipe: Recipe) -> tuple[Method, float]:
    if word.endswith((".py", ".yaml", ".yml")):
        other = read_recipe(word)
        return other.method, other.training.get("learning_rate", usual_learning_rate(other.method))
    method = named_method(word, recipe.method)
    usual = usual_learning_rate(method)
    return method, recipe.training.get("learning_rate", usual) if method.name == recipe.method.name else usual


def _free_folder(folder: Path) -> Path:
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _run_apart(recipe: Recipe, folder: Path) -> Report:
    """Train in a new process, so that one method's memory or crash is not another's."""
    recipe = replace(recipe, training={**recipe.training, "output_dir": str(folder)})
    folder.mkdir()
    file = folder / "recipe.yaml"
    write_text(file, recipe_to_yaml(recipe))
    done = subprocess.run([sys.executable, "-m", "peftkit.cli", "train", str(file)], env=dict(os.environ))  # noqa: S603
    if (folder / FILE_NAME).exists():
        return read_report(folder)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        memory = done.returncode == -signal.SIGKILL
        error = f"ended by {name}" + (", as the system does when memory runs out" if memory else "")
        status = "out_of_memory" if memory else "failed"
    else:
        status, error = "failed", f"ended with exit code {done.returncode} before it could report"
    report = Report(
        name=recipe.name, method=recipe.method.name, status=status, error=error, recipe=recipe_to_dict(recipe)
    )
    report.write(folder)
    return report


def table(reports: Sequence[Report], metrics: Sequence[str]) -> str:
    """The comparison in Markdown: a row a method, failures included; test `metrics` first."""
    header = [
        "method", *(METRIC_NAMES.get(name, name) for name in metrics), "peak memory", "trainable weights",
        "samples/s", "tokens/s", "train time", "saved",
    ]  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] + ["---:"] * (len(header) - 1)) + " |"]
    for report in reports:
        if report.status != "complete":
            words = f"{report.status.replace('_', ' ')}: {report.error}".replace("|", "\\|")
            lines.append(f"| {report.method} | {words} |" + " |" * (len(header) - 2))
            continue
        share = report.parameters["trainable"] / report.parameters["total"]
        cells = [
            report.method,
            *(_with_interval(report, name) for name in metrics),
            " / ".join(_mebibytes(size) for size in report.memory.values()),
            f"{report.parameters['trainable']:,} ({share:.1%})",
            f"{report.times['samples_per_second']:.1f}",
            f"{report.times['tokens_per_second']:.0f}",
            f"{report.times['train']:.0f} s",
            _mebibytes(report.sizes["trained"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + _notes(reports)


def _notes(reports: Sequence[Report]) -> str:
    complete = [report for report in reports if report.status == "complete"]
    if not complete:
        return "No method finished.\n"
    first = complete[0]
    rows = first.data["rows"]
    memory = "the process" + (", allocated on the GPU, reserved on the GPU" if len(first.memory) > 1 else "")
    where = ", ".join(first.environment["gpus"]) or f"{first.environment['cores']} cores of {first.environment['cpu']}"
    text = (
        f"{rows['train']} training and {rows['test']} test rows, {first.audit['end_step']} steps, seed {first.seed}, "
        f"{first.environment['processes']} process(es) on {where}. Peak memory: {memory}, to the end of training. "
        "In brackets the 95 % interval: bootstrap over the test rows; another training seed moves the score too.\n"
    )
    alike = {(report.data["fingerprint"], report.audit["end_step"]) for report in complete}
    return text if len(alike) == 1 else text + "Warning: the rows differ in data or in number of steps.\n"


def _with_interval(report: Report, metric: str) -> str:
    found = report.metrics["test"]
    if found[metric] is None:
        return "none"
    low, high = found.get(f"{metric}_ci95", (None, None))
    return f"{found[metric]:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")


def _mebibytes(size: int) -> str:
    mebibytes = size / 2**20
    return f"{mebibytes:,.0f} MiB" if mebibytes >= 10 else f"{mebibytes:.1f} MiB"


def draw(reports: Sequence[Report], path: Path, metric: str) -> None:
    """A test metric against peak memory, a point a method with its 95 % interval, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    complete = [report for report in reports if report.status == "complete"]
    kind = "allocated_peak" if all("allocated_peak" in report.memory for report in complete) else "process_peak"
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for report in complete:
        score = report.metrics["test"][metric]
        if score is None:
            continue
        low, high = (score if end is None else end for end in report.metrics["test"][f"{metric}_ci95"])
        memory = report.memory[kind] / 2**20
        spread = [[max(0.0, score - low)], [max(0.0, high - score)]]
        axes.errorbar([memory], [score], yerr=spread, marker="o", capsize=4, label=report.method)
        axes.annotate(report.method, (memory, score), xytext=(6, 6), textcoords="offset points")
    axes.margins(x=0.2)
    axes.set_xlabel("peak memory, MiB" + (" allocated on the GPU" if kind == "allocated_peak" else " of the process"))
    axes.set_ylabel(f"test {METRIC_NAMES.get(metric, metric)}, 95 % interval over rows")
    axes.grid(alpha=0.3)
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=150, format="png")
    plt.close(figure)
    partial.rename(path)
