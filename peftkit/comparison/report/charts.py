"""Charts of a comparison as Vega-Lite specifications."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from peftkit.comparison.analysis import Findings
from peftkit.comparison.results import ComparisonResults, RowResults

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
# The palette of Okabe and Ito is safe for colour blindness; shapes are a second distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#F0E442")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left", "triangle-right")
# Maximum numbers of classes for a confusion matrix with counts in the cells, and for any confusion matrix.
MAX_COUNT_CLASSES, MAX_CONFUSION_CLASSES = 12, 40
QUICK = "quick: one setting, one seed"
PICTURE_SIZE = {"width": 560, "height": 340}


def make_charts(
    findings: Findings, results: ComparisonResults, confusions: Mapping[str, Counter]
) -> dict[str, dict[str, Any]]:
    """Make all charts with data, by name."""
    names = [row.name for row in findings.rows]
    metric = findings.metrics[0] if findings.metrics else None
    found = {"memory": make_memory_chart(findings)}
    for along, title in (("tokens", "training tokens"), ("seconds", "seconds of training")):
        if metric is not None:
            found[f"validation-over-{along}"] = make_curve_chart(
                results.rows, names, along, title, f"eval_{metric.name}", f"validation {metric.title}"
            )
        found[f"loss-over-{along}"] = make_curve_chart(results.rows, names, along, title, "loss", "training loss")
    for place, (name, counts) in enumerate(confusions.items()):
        found[f"confusion-{place + 1}"] = make_confusion_chart(name, counts)
    charts = {name: picture for name, picture in found.items() if picture is not None}
    if findings.quick:
        for picture in charts.values():
            picture["title"] = {"text": picture.get("title", findings.name), "subtitle": QUICK}
    return charts


def _make_row_encoding(names: Sequence[str]) -> dict[str, Any]:
    """Make the colour and shape encoding of rows, equal in all charts."""
    colours = [COLOURS[place % len(COLOURS)] for place in range(len(names))]
    shapes = [SHAPES[place % len(SHAPES)] for place in range(len(names))]
    legend = {"orient": "bottom", "columns": 3, "title": None, "labelLimit": 260, "symbolOpacity": 1}
    return {
        "color": {"field": "row", "type": "nominal", "scale": {"domain": names, "range": colours}, "legend": legend},
        "shape": {"field": "row", "type": "nominal", "scale": {"domain": names, "range": shapes}, "legend": legend},
    }


def make_memory_chart(findings: Findings) -> dict[str, Any] | None:
    """Make the chart of test score over peak memory with intervals and the Pareto front."""
    if not findings.metrics:
        return None
    metric = findings.metrics[0]
    points: list[dict[str, Any]] = []
    for row in findings.rows:
        score = row.scores.get(metric.name)
        if score is None or score.mean is None:
            continue
        low, high = score.ci95 or (score.mean, score.mean)
        memory = row.memory[findings.memory_kind] / 2**20
        points.append({"row": row.name, "memory": memory, "score": score.mean, "low": low, "high": high})
    if not points:
        return None
    for point in points:
        point["front"] = not any(
            other["memory"] <= point["memory"] and metric.rank(other["score"]) >= metric.rank(point["score"])
            and (other["memory"], other["score"]) != (point["memory"], point["score"])
            for other in points
        )  # fmt: skip
    scope = "allocated on the GPU" if findings.memory_kind == "allocated_peak" else "of the process"
    x = {"field": "memory", "type": "quantitative", "title": f"peak memory {scope}, MiB", "scale": {"zero": False}}
    y = {
        "field": "score", "type": "quantitative", "title": f"test {metric.title}, 95 % interval",
        "scale": {"zero": False},
    }  # fmt: skip
    encoding = _make_row_encoding([row.name for row in findings.rows])
    on_front = ", ".join(point["row"] for point in points if point["front"])
    tooltip = [
        {"field": "row", "title": "row"},
        {"field": "score", "title": metric.title, "format": ".4f"},
        {"field": "low", "title": "interval from", "format": ".4f"},
        {"field": "high", "title": "interval to", "format": ".4f"},
        {"field": "memory", "title": "MiB", "format": ",.0f"},
    ]
    return {
        "$schema": SCHEMA,
        "description": f"Test {metric.title} against peak memory. On the Pareto front: {on_front}.",
        "data": {"values": points},
        **PICTURE_SIZE,
        "layer": [
            {
                "transform": [{"filter": "datum.front"}],
                "mark": {"type": "line", "interpolate": "step-after", "strokeDash": [5, 4], "color": "#888"},
                "encoding": {"x": x, "y": y, "order": {"field": "memory"}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": encoding["color"]},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
                "encoding": {"x": x, "y": y, "tooltip": tooltip, **encoding},
            },
        ],
    }


def _aggregate_curve(row: RowResults, field: str) -> list[dict[str, float]]:
    """Aggregate a logged value over seeds per step: means, minimum and maximum."""
    by_step: dict[int, list[tuple[float, float, float]]] = {}
    for report in row.runs.values():
        for logged in report.history:
            if logged.get(field) is not None and "seconds" in logged:
                seen = (logged.get("num_input_tokens_seen", 0), logged["seconds"], logged[field])
                by_step.setdefault(logged["step"], []).append(seen)
    found = []
    for step in sorted(by_step):
        tokens, seconds, values = np.array(by_step[step], dtype=float).T
        found.append(
            {
                "step": step, "tokens": float(tokens.mean()), "seconds": float(seconds.mean()),
                "value": float(values.mean()), "low": float(values.min()), "high": float(values.max()),
                "seeds": len(values),
            }
        )  # fmt: skip
    return found


def make_curve_chart(
    rows: Sequence[RowResults], names: Sequence[str], along: str, title: str, field: str, label: str
) -> dict[str, Any] | None:
    """Make a chart with one line per row, the mean over seeds, in a band from minimum to maximum."""
    curves = {row.name: _aggregate_curve(row, field) for row in rows}
    # A single point is not a curve.
    if all(len(points) < 2 for points in curves.values()):
        return None
    values = [{"row": name, **point} for name, points in curves.items() for point in points]
    x = {"field": along, "type": "quantitative", "title": title}
    y = {"field": "value", "type": "quantitative", "title": label, "scale": {"zero": False}}
    encoding = _make_row_encoding(names)
    tooltip = [
        {"field": "row", "title": "row"},
        {"field": "value", "title": label, "format": ".4f"},
        {"field": "low", "title": "minimum", "format": ".4f"},
        {"field": "high", "title": "maximum", "format": ".4f"},
        {"field": "step", "title": "step"},
        {"field": "seeds", "title": "seeds"},
    ]
    return {
        "$schema": SCHEMA,
        "description": f"{label[0].upper()}{label[1:]} over {title}: mean over seeds, band from minimum to maximum.",
        "data": {"values": values},
        **PICTURE_SIZE,
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.18},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": encoding["color"]},
            },
            {"mark": {"type": "line"}, "encoding": {"x": x, "y": y, "color": encoding["color"]}},
            {
                "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
                "encoding": {"x": x, "y": y, "tooltip": tooltip, **encoding},
            },
        ],
    }


def make_confusion_chart(name: str, counts: Counter) -> dict[str, Any] | None:
    """Make the confusion matrix of a row over all seeds, as shares of each reference class."""
    classes = sorted({kind for pair in counts for kind in pair})
    if not classes or len(classes) > MAX_CONFUSION_CLASSES:
        return None
    totals = Counter()  # type: Counter[str]
    for (reference, _), count in counts.items():
        totals[reference] += count
    values = [
        {
            "reference": reference, "prediction": prediction, "count": counts.get((reference, prediction), 0),
            "share": counts.get((reference, prediction), 0) / totals[reference] if totals[reference] else 0.0,
        }
        for reference in classes for prediction in classes
    ]  # fmt: skip
    x = {"field": "prediction", "type": "nominal", "title": "prediction", "sort": classes}
    y = {"field": "reference", "type": "nominal", "title": "reference", "sort": classes}
    cells: dict[str, Any] = {
        "mark": {"type": "rect"},
        "encoding": {
            "x": x,
            "y": y,
            "color": {
                "field": "share", "type": "quantitative", "scale": {"scheme": "blues", "domain": [0, 1]},
                "legend": {"title": "share of the reference class", "format": ".0%", "orient": "bottom"},
            },
            "tooltip": [
                {"field": "reference"}, {"field": "prediction"}, {"field": "count"},
                {"field": "share", "format": ".1%"},
            ],
        },
    }  # fmt: skip
    layers = [cells]
    if len(classes) <= MAX_COUNT_CLASSES:
        dark = {"condition": {"test": "datum.share > 0.55", "value": "white"}, "value": "black"}
        layers.append(
            {
                "mark": {"type": "text", "fontSize": 11},
                "encoding": {"x": x, "y": y, "text": {"field": "count"}, "color": dark},
            }
        )
    return {
        "$schema": SCHEMA,
        "description": f"Confusion matrix of {name} over all seeds: rows are references, columns are predictions.",
        "title": name,
        "data": {"values": values},
        "width": PICTURE_SIZE["width"],
        "height": max(160, 26 * len(classes)),
        "layer": layers,
    }
