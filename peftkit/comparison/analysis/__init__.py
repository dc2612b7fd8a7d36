"""What a comparison found: scores over seeds, cost, differences, and which row to take."""

from peftkit.comparison.analysis.aggregation import SHARES, row_findings
from peftkit.comparison.analysis.notes import notes, trivial_answer, warnings
from peftkit.comparison.analysis.recommendation import recommend
from peftkit.comparison.analysis.significance import all_pairs
from peftkit.comparison.analysis.types import Findings, RowFindings, mebibytes
from peftkit.comparison.results import ComparisonResults, read_task

__all__ = ["SHARES", "Findings", "RowFindings", "find", "mebibytes"]


def find(results: ComparisonResults) -> Findings:
    """Aggregate the runs, test every pair, and recommend."""
    reports = [report for row in results.rows for report in (*row.runs.values(), *row.trials)]
    metrics = read_task(reports[0]).metrics.main_metrics if reports else ()
    rows = [row_findings(row, metrics) for row in results.rows]
    quick = bool(results.plan.get("quick"))
    kinds = [set(row.memory) for row in rows if row.memory]
    kind = "allocated_peak" if kinds and all("allocated_peak" in one for one in kinds) else "process_peak"
    pairs, untested = all_pairs(results.rows, rows, metrics)
    trivial = trivial_answer(results, metrics)
    recommended, sentence = recommend(rows, pairs, metrics, kind, untested, None if trivial is None else trivial[1])
    if quick and recommended:
        sentence += " One setting and one seed each: a first look, not a finding."
    return Findings(
        name=results.name, metrics=metrics, quick=quick, rows=rows, pairs=pairs, recommendation=sentence,
        recommended=recommended, warnings=warnings(results, rows) + ([untested] if untested else []),
        notes=notes(results, rows, trivial), memory_kind=kind,
    )  # fmt: skip
