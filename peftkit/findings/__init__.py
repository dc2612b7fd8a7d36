"""What a comparison found: scores over seeds, cost, differences, and which row to take."""

from peftkit.findings.advice import recommend
from peftkit.findings.notes import notes
from peftkit.findings.pairs import all_pairs
from peftkit.findings.rows import SHARES, best_seen, row_findings
from peftkit.findings.values import Findings, Pair, RowFindings, Score, mebibytes, metric_name
from peftkit.gathered import Gathered, task_of

__all__ = ["SHARES", "Findings", "Pair", "RowFindings", "Score", "best_seen", "find", "mebibytes", "metric_name"]


def find(gathered: Gathered) -> Findings:
    """Aggregate the runs, test every pair, and recommend."""
    reports = [report for row in gathered.rows for report in (*row.runs.values(), *row.trials)]
    metrics = tuple(task_of(reports[0]).main_metrics) if reports else ()
    rows = [row_findings(row, metrics) for row in gathered.rows]
    quick = bool(gathered.plan.get("quick"))
    kinds = [set(row.memory) for row in rows if row.memory]
    kind = "allocated_peak" if kinds and all("allocated_peak" in one for one in kinds) else "process_peak"
    pairs, untested = all_pairs(gathered.rows, rows, metrics)
    recommended, sentence = recommend(rows, pairs, metrics, kind, untested)
    if quick and recommended:
        sentence += " One setting and one seed each (--quick): a first look, not a finding."
    told = notes(gathered, rows, metrics, quick)
    if untested:
        told.append(untested)
    return Findings(
        name=gathered.name, metrics=metrics, quick=quick, rows=rows, pairs=pairs, recommendation=sentence,
        recommended=recommended, notes=told, memory_kind=kind,
    )  # fmt: skip
