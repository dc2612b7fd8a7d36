"""Tables of a comparison: columns for the page and Markdown, and the CSV file of all runs."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from peftkit.comparison.analysis import SHARES, Findings, RowFindings, format_mib
from peftkit.comparison.results import ComparisonResults, read_method

KINDS = {"process_peak": "process", "allocated_peak": "allocated", "reserved_peak": "reserved"}
SHARE_NAMES = {"start_up": "start-up", "data": "data", "train": "training", "evaluate": "evaluation"}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        title: Column header.
        meaning: Description in one sentence.
        value: Returns the sort key of a row; None without a value.
        format: Returns the text of a cell.
    """

    title: str
    meaning: str
    value: Callable[[RowFindings], float | None]
    format: Callable[[RowFindings], str]


def make_score_columns(findings: Findings) -> list[Column]:
    """Make one column per metric: mean over seeds and interval."""
    return [
        Column(
            title=metric.title,
            meaning="Mean over seeds on test, with the 95 % interval in parentheses.",
            value=partial(_get_mean, metric.name),
            format=partial(_format_score, metric.name),
        )
        for metric in findings.metrics
    ]


def _get_mean(metric: str, row: RowFindings) -> float | None:
    return row.scores[metric].mean if metric in row.scores else None


def _get_share(name: str, row: RowFindings) -> float | None:
    return row.shares.get(name)


def _format_share(name: str, row: RowFindings) -> str:
    return f"{row.shares[name]:.0%}"


def _get_peak(kind: str, row: RowFindings) -> float | None:
    return row.memory.get(kind)


def _format_peak(kind: str, row: RowFindings) -> str:
    return format_mib(row.memory[kind]) if kind in row.memory else "none"


def _format_score(metric: str, row: RowFindings) -> str:
    score = row.scores.get(metric)
    if score is None or score.mean is None:
        return "none"
    ends = "" if score.ci95 is None else f" ({score.ci95[0]:.3f} to {score.ci95[1]:.3f})"
    return f"{score.mean:.3f}{ends}"


def make_cost_columns(findings: Findings) -> list[Column]:
    """Make the columns of memory, time, speed and sizes."""
    rows = [row for row in findings.rows if row.memory]
    kinds = [kind for kind in KINDS if any(kind in row.memory for row in rows)]
    columns = [
        Column(
            title=f"peak memory, {KINDS[kind]}" if len(kinds) > 1 else "peak memory",
            meaning="Maximum over ranks and seeds, until the end of training.",
            value=partial(_get_peak, kind),
            format=partial(_format_peak, kind),
        )
        for kind in kinds
    ]
    if any("planned_peak" in row.cost for row in rows):
        columns.append(
            Column(
                title="planned peak",
                meaning="Estimate: tensors and, on a CPU, the memory of the process before loading the model.",
                value=lambda row: row.cost.get("planned_peak"),
                format=lambda row: format_mib(int(row.cost["planned_peak"])) if "planned_peak" in row.cost else "none",
            )
        )
    if any(len(row.memory_per_rank) > 1 for row in rows):
        columns.append(
            Column(
                title="peak memory per rank",
                meaning="Peak memory of each rank; maximum over seeds.",
                value=lambda row: None,
                format=lambda row: ", ".join(format_mib(rank[findings.memory_kind]) for rank in row.memory_per_rank),
            )
        )
    columns += [
        _make_cost_column(
            "train time",
            "Seconds of training without evaluation.",
            "train_seconds",
            "{:,.0f} s",
        ),
        _make_cost_column(
            "time to best",
            "Seconds of training until the best evaluation on validation.",
            "seconds_to_best",
            "{:,.0f} s",
        ),
        _make_cost_column("samples/s", "Training rows per second.", "samples_per_second", "{:,.1f}"),
        _make_cost_column("tokens/s", "Training tokens per second without padding.", "tokens_per_second", "{:,.0f}"),
    ]
    return [
        *columns,
        Column(
            title="trainable weights",
            meaning="Trainable weights and their share of all weights.",
            value=lambda row: row.trainable or None,
            format=lambda row: f"{row.trainable:,} ({row.trainable / row.total:.1%})",
        ),
        Column(
            title="saved size",
            meaning="Size on disk of the saved weights: the adapter with its head, or the whole model.",
            value=lambda row: row.trained_bytes or None,
            format=lambda row: format_mib(row.trained_bytes),
        ),
        Column(
            title="merged size",
            meaning="Size of the exported merged model in float32.",
            value=lambda row: row.merged_bytes,
            format=lambda row: "not possible" if row.merged_bytes is None else format_mib(row.merged_bytes),
        ),
    ]


def _make_cost_column(title: str, meaning: str, name: str, form: str) -> Column:
    return Column(
        title=title,
        meaning=meaning,
        value=lambda row: row.cost.get(name),
        format=lambda row: form.format(row.cost[name]) if name in row.cost else "none",
    )


def make_effort_columns(findings: Findings) -> list[Column]:
    """Make the columns of the setting, the tuning time and the parts of the time of a run."""
    has_rank = any(row.r is not None for row in findings.rows)
    return [
        Column(
            title="learning rate",
            meaning="Value used in the runs.",
            value=lambda row: row.learning_rate,
            format=lambda row: f"{row.learning_rate:g}",
        ),
        *(
            [
                Column(
                    title="rank",
                    meaning="Value used in the runs.",
                    value=lambda row: row.r,
                    format=lambda row: "none" if row.r is None else str(row.r),
                )
            ]
            if has_rank
            else []
        ),
        Column(
            title="tuning",
            meaning="Seconds of all trials.",
            value=lambda row: row.tuning_seconds or None,
            format=lambda row: f"{row.tuning_seconds:,.0f} s" if row.tuning_seconds else "no trials",
        ),
        _make_cost_column(
            "run time", "Seconds of one run: start-up, data, training, evaluation.", "total_seconds", "{:,.0f} s"
        ),
        *(
            Column(
                title=SHARE_NAMES[name],
                meaning="Share of the run time.",
                value=partial(_get_share, name),
                format=partial(_format_share, name),
            )
            for name in SHARES
        ),
    ]


def format_table(rows: list[RowFindings], columns: list[Column]) -> str:
    """Format a Markdown table; a row without scores has the error instead."""
    heads = ["row", *(column.title for column in columns)]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join(["---"] + ["---:"] * len(columns)) + " |"]
    for row in rows:
        if not row.scores:
            text = f"{row.status.replace('_', ' ')}: {row.cause}"
            lines.append(f"| {_escape_cell(row.name)} | {_escape_cell(text)} |" + " |" * (len(columns) - 1))
            continue
        lines.append(
            "| "
            + " | ".join([_escape_cell(row.name), *(_escape_cell(column.format(row)) for column in columns)])
            + " |"
        )
    return "\n".join(lines)


def _escape_cell(text: str) -> str:
    return _escape_text(text.replace("\\", "\\\\").replace("|", "\\|"))


def _escape_text(text: str) -> str:
    """Convert text to one line without markup."""
    return " ".join(text.replace("<", "&lt;").split())


def format_markdown(findings: Findings) -> str:
    """Format the comparison as Markdown: recommendation, tables, differences and notes."""
    columns = [*make_score_columns(findings), *make_cost_columns(findings)]
    parts = [_escape_text(findings.recommendation), format_table(findings.rows, columns)]
    if partly := [row for row in findings.rows if row.scores and row.cause]:
        parts.append("\n".join(f"- {_escape_cell(row.name)}: {_escape_cell(row.cause or '')}" for row in partly))
    parts.append("\n".join(f"- {_escape_text(line)}" for line in findings.warnings))
    parts.append(format_table(findings.rows, make_effort_columns(findings)))
    parts.append("\n".join(f"- {_escape_cell(pair.sentence)}" for pair in findings.pairs))
    parts.append("\n".join(_escape_text(note) for note in findings.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def format_csv(results: ComparisonResults, findings: Findings) -> str:
    """Format all runs and trials as CSV, one line each, with setting, status, scores and cost."""
    scores = [f"{split}_{metric.name}" for split in ("validation", "test") for metric in findings.metrics]
    fields = [
        "row", "kind", "quick", "seed", "status", "error", "learning_rate", "r", *scores, *KINDS, *SHARES, "total",
        "samples_per_second", "tokens_per_second", "tokens", "trainable", "total_weights",
        "trained_bytes", "merged_bytes",
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, restval="", lineterminator="\n")
    writer.writeheader()
    for row in results.rows:
        for kind, report in [("trial", one) for one in row.trials] + [("run", one) for one in row.runs.values()]:
            found = {f"{split}_{name}": value for split, all_ in report.metrics.items() for name, value in all_.items()}
            line = {
                **{name: found[name] for name in scores if name in found},
                **report.memory,
                **report.times,
                **{f"{name}_bytes": value for name, value in report.sizes.items()},
                "row": row.name,
                "kind": kind,
                "quick": "yes" if findings.quick else "no",
                "seed": report.seed,
                "status": report.status,
                "error": report.error,
                "learning_rate": report.recipe["training"].get("learning_rate"),
                "r": getattr(read_method(report).peft, "r", None),
                "tokens": report.tokens or "",
                "trainable": report.parameters.get("trainable"),
                "total_weights": report.parameters.get("total"),
            }
            writer.writerow({name: _escape_formula(value) for name, value in line.items()})
    return text.getvalue()


def _escape_formula(value: object) -> object:
    # Spreadsheets evaluate cells with these first characters as formulas.
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
