"""What a run says when it has ended."""

from pathlib import Path

from peftkit.recipe.schema import Recipe
from peftkit.runs.report import Report
from peftkit.system.logging import logger


def say(recipe: Recipe, report: Report, folder: Path) -> None:
    """Log the audit, the main scores, memory, the round trip and where the run is."""
    split = "validation" if report.status == "trial" else "test"
    shown = ", ".join(f"{name} {report.metrics[split][name]:.4f}" for name in recipe.task.main_metrics)
    if "ece" in report.metrics[split]:
        shown += f", calibration error {report.metrics[split]['ece']:.4f}"
    logger.info("%s: audit %s; %s: %s", recipe.name, report.audit.get("verdict"), split, shown)
    if "peak" in report.plan:
        kind = "allocated_peak" if "allocated_peak" in report.memory else "process_peak"
        planned = report.plan.get("process_peak", report.plan["peak"])
        whose = "on the GPU" if kind == "allocated_peak" else "of the process, libraries included"
        logger.info(
            "peak memory %s: planned for the longest rows %.2f GiB, measured %.2f",
            whose, planned / 2**30, report.memory[kind] / 2**30,
        )  # fmt: skip
    if report.round_trip:
        back = report.round_trip
        logger.info(
            "read back by a fresh process: largest logit difference %.2g on %d held-out rows (tolerance %.2g), "
            "%.4g %% of answers the same",
            back["difference"], back["rows"], back["tolerance"], 100 * back["label_agreement"],
        )  # fmt: skip
    logger.info("run saved in %s", folder)
