"""Analysis of a comparison: scores over seeds, cost, significant differences and recommendation."""

from peftkit.comparison.analysis.aggregation import SHARES, aggregate_row
from peftkit.comparison.analysis.notes import find_majority_baseline, list_notes, list_warnings
from peftkit.comparison.analysis.recommendation import recommend
from peftkit.comparison.analysis.significance import compare_pairs
from peftkit.comparison.analysis.types import Findings, RowFindings, format_mib
from peftkit.comparison.results import ComparisonResults, read_task

__all__ = ["SHARES", "Findings", "RowFindings", "analyze", "format_mib"]


def analyze(results: ComparisonResults) -> Findings:
    """Aggregate the runs, test every pair of rows and recommend one row."""
    reports = [report for row in results.rows for report in (*row.runs.values(), *row.trials)]
    metrics = read_task(reports[0]).metrics.main_metrics if reports else ()
    rows = [aggregate_row(row, metrics) for row in results.rows]
    is_quick = bool(results.comparison.get("quick"))
    kinds = [set(row.memory) for row in rows if row.memory]
    kind = "allocated_peak" if kinds and all("allocated_peak" in one for one in kinds) else "process_peak"
    pairs, untested = compare_pairs(results.rows, rows, metrics)
    baseline = find_majority_baseline(results, metrics)
    recommended, text = recommend(
        rows, pairs, metrics, kind, untested, None if baseline is None else baseline[1], is_quick=is_quick
    )
    return Findings(
        name=results.name, metrics=metrics, quick=is_quick, rows=rows, pairs=pairs, recommendation=text,
        recommended=recommended, warnings=list_warnings(results, rows) + ([untested] if untested else []),
        notes=list_notes(results, rows, baseline), memory_kind=kind,
    )  # fmt: skip
