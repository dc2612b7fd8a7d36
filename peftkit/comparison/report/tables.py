"""The comparison's rows as columns of numbers: one list of columns for the page, for Markdown and for the terminal."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from peftkit.comparison.analysis import SHARES, Findings, RowFindings, mebibytes
from peftkit.comparison.results import ComparisonResults, read_method

KINDS = {"process_peak": "process", "allocated_peak": "allocated", "reserved_peak": "reserved"}
SHARE_NAMES = {"start_up": "start-up", "data": "data", "train": "training", "evaluate": "evaluation"}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        title: Its head.
        meaning: What it holds, in a sentence.
        value: What a row is sorted by; None where the row has none.
        shown: What a cell says.
    """

    title: str
    meaning: str
    value: Callable[[RowFindings], float | None]
    shown: Callable[[RowFindings], str]


def score_columns(findings: Findings) -> list[Column]:
    """A column a metric: the mean over seeds and its interval."""
    return [
        Column(
            title=metric.title,
            meaning="Mean over seeds on test; in brackets the 95 % interval.",
            value=partial(_mean, metric.name),
            shown=partial(_score, metric.name),
        )
        for metric in findings.metrics
    ]


def _mean(metric: str, row: RowFindings) -> float | None:
    return row.scores[metric].mean if metric in row.scores else None


def _share(name: str, row: RowFindings) -> float | None:
    return row.shares.get(name)


def _shown_share(name: str, row: RowFindings) -> str:
    return f"{row.shares[name]:.0%}"


def _peak(kind: str, row: RowFindings) -> float | None:
    return row.memory.get(kind)


def _shown_peak(kind: str, row: RowFindings) -> str:
    return mebibytes(row.memory[kind]) if kind in row.memory else "none"


def _score(metric: str, row: RowFindings) -> str:
    score = row.scores.get(metric)
    if score is None or score.mean is None:
        return "none"
    ends = "" if score.ci95 is None else f" ({score.ci95[0]:.3f} to {score.ci95[1]:.3f})"
    return f"{score.mean:.3f}{ends}"


def cost_columns(findings: Findings) -> list[Column]:
    """Make the columns of memory, time, speed and sizes."""
    some = [row for row in findings.rows if row.memory]
    kinds = [kind for kind in KINDS if any(kind in row.memory for row in some)]
    columns = [
        Column(
            title=f"peak memory, {KINDS[kind]}" if len(kinds) > 1 else "peak memory",
            meaning="The largest over ranks and seeds, to the end of training.",
            value=partial(_peak, kind),
            shown=partial(_shown_peak, kind),
        )
        for kind in kinds
    ]
    if any("planned_peak" in row.cost for row in some):
        columns.append(
            Column(
                title="planned peak",
                meaning="What the plan says of it: tensors and, on a CPU, what the process held before the model.",
                value=lambda row: row.cost.get("planned_peak"),
                shown=lambda row: mebibytes(int(row.cost["planned_peak"])) if "planned_peak" in row.cost else "none",
            )
        )
    if any(len(row.memory_per_rank) > 1 for row in some):
        columns.append(
            Column(
                title="of each rank",
                meaning="Peak memory of each rank, the largest over seeds.",
                value=lambda row: None,
                shown=lambda row: ", ".join(mebibytes(rank[findings.memory_kind]) for rank in row.memory_per_rank),
            )
        )
    columns += [
        _cost(
            "train time",
            "Seconds of training, without its looks at validation.",
            "train_seconds",
            "{:,.0f} s",
        ),
        _cost("time to best", "Seconds of training until the best look at validation.", "seconds_to_best", "{:,.0f} s"),
        _cost("samples/s", "Rows trained on a second.", "samples_per_second", "{:,.1f}"),
        _cost("tokens/s", "Tokens trained on a second, padding not counted.", "tokens_per_second", "{:,.0f}"),
    ]
    return [
        *columns,
        Column(
            title="trainable weights",
            meaning="Weights that are trained, and their share of all.",
            value=lambda row: row.trainable or None,
            shown=lambda row: f"{row.trainable:,} ({row.trainable / row.total:.1%})",
        ),
        Column(
            title="saved size",
            meaning="Size on disk of what was trained: the adapter with its head, or the whole model.",
            value=lambda row: row.trained_bytes or None,
            shown=lambda row: mebibytes(row.trained_bytes),
        ),
        Column(
            title="merged size",
            meaning="Size of the ordinary model that an export makes of it, in float32.",
            value=lambda row: row.merged_bytes,
            shown=lambda row: "not possible" if row.merged_bytes is None else mebibytes(row.merged_bytes),
        ),
    ]


def _cost(title: str, meaning: str, name: str, form: str) -> Column:
    return Column(
        title=title,
        meaning=meaning,
        value=lambda row: row.cost.get(name),
        shown=lambda row: form.format(row.cost[name]) if name in row.cost else "none",
    )


def effort_columns(findings: Findings) -> list[Column]:
    """What the setting was, what finding it took, and what a run's time went on."""
    ranked = any(row.r is not None for row in findings.rows)
    return [
        Column(
            title="learning rate",
            meaning="The one that was run.",
            value=lambda row: row.learning_rate,
            shown=lambda row: f"{row.learning_rate:g}",
        ),
        *(
            [
                Column(
                    title="rank",
                    meaning="The one that was run.",
                    value=lambda row: row.r,
                    shown=lambda row: "none" if row.r is None else str(row.r),
                )
            ]
            if ranked
            else []
        ),
        Column(
            title="tuning",
            meaning="Seconds of all trials together.",
            value=lambda row: row.tuning_seconds or None,
            shown=lambda row: f"{row.tuning_seconds:,.0f} s" if row.tuning_seconds else "no trials",
        ),
        _cost("a run", "Seconds of one run: start-up, data, training, evaluation.", "total_seconds", "{:,.0f} s"),
        *(
            Column(
                title=SHARE_NAMES[name],
                meaning="Its share of a run's time.",
                value=partial(_share, name),
                shown=partial(_shown_share, name),
            )
            for name in SHARES
        ),
    ]


def markdown_table(rows: list[RowFindings], columns: list[Column]) -> str:
    """Rows with a score cell by cell, the others with their cause."""
    heads = ["row", *(column.title for column in columns)]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join(["---"] + ["---:"] * len(columns)) + " |"]
    for row in rows:
        if not row.scores:
            words = f"{row.status.replace('_', ' ')}: {row.cause}"
            lines.append(f"| {_cell(row.name)} | {_cell(words)} |" + " |" * (len(columns) - 1))
            continue
        lines.append("| " + " | ".join([_cell(row.name), *(_cell(column.shown(row)) for column in columns)]) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return _plain(text.replace("\\", "\\\\").replace("|", "\\|"))


def _plain(text: str) -> str:
    """One line in which nothing is markup."""
    return " ".join(text.replace("<", "&lt;").split())


def markdown(findings: Findings) -> str:
    """The whole comparison in Markdown: the answer, the tables, the differences, how it was made."""
    columns = [*score_columns(findings), *cost_columns(findings)]
    parts = [_plain(findings.recommendation), markdown_table(findings.rows, columns)]
    if partly := [row for row in findings.rows if row.scores and row.cause]:
        parts.append("\n".join(f"- {_cell(row.name)}: {_cell(row.cause or '')}" for row in partly))
    parts.append("\n".join(f"- {_plain(line)}" for line in findings.warnings))
    parts.append(markdown_table(findings.rows, effort_columns(findings)))
    parts.append("\n".join(f"- {_cell(pair.sentence)}" for pair in findings.pairs))
    parts.append("\n".join(_plain(note) for note in findings.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def csv_text(results: ComparisonResults, findings: Findings) -> str:
    """A line a run, trials included, as CSV: what it was, how it ended, its scores and its cost."""
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
            writer.writerow({name: _plain_cell(value) for name, value in line.items()})
    return text.getvalue()


def _plain_cell(value: object) -> object:
    # A spreadsheet would run a cell that begins so as a formula.
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
