"""What a comparison found: scores over seeds, cost, differences, and which row to take."""

from peftkit.comparison.analysis.aggregation import SHARES, row_findings
from peftkit.comparison.analysis.notes import notes, trivial_answer, warnings
from peftkit.comparison.analysis.recommendation import recommend
from peftkit.comparison.analysis.significance import all_pairs
from peftkit.comparison.analysis.types import Findings, RowFindings, mebibytes, metric_name
from peftkit.comparison.results import Gathered, task_of

__all__ = ["SHARES", "Findings", "RowFindings", "find", "mebibytes", "metric_name"]


def find(gathered: Gathered) -> Findings:
    """Aggregate the runs, test every pair, and recommend."""
    reports = [report for row in gathered.rows for report in (*row.runs.values(), *row.trials)]
    metrics = tuple(task_of(reports[0]).main_metrics) if reports else ()
    rows = [row_findings(row, metrics) for row in gathered.rows]
    quick = bool(gathered.plan.get("quick"))
    kinds = [set(row.memory) for row in rows if row.memory]
    kind = "allocated_peak" if kinds and all("allocated_peak" in one for one in kinds) else "process_peak"
    pairs, untested = all_pairs(gathered.rows, rows, metrics)
    trivial = trivial_answer(gathered, metrics)
    recommended, sentence = recommend(rows, pairs, metrics, kind, untested, None if trivial is None else trivial[1])
    if quick and recommended:
        sentence += " One setting and one seed each: a first look, not a finding."
    return Findings(
        name=gathered.name, metrics=metrics, quick=quick, rows=rows, pairs=pairs, recommendation=sentence,
        recommended=recommended, warnings=warnings(gathered, rows) + ([untested] if untested else []),
        notes=notes(gathered, rows, trivial), memory_kind=kind,
    )  # fmt: skip
