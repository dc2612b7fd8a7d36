"""Report of `peftkit check`: data checks of a recipe without training."""

import dataclasses
from pathlib import Path

from peftkit.data.quality import PERCENTILES, Checks, check_data
from peftkit.data.splits import Splits, complete_splits, find_row_problems, find_splits
from peftkit.errors import UserError
from peftkit.models.loading import load_tokenizer
from peftkit.models.positions import read_position_limit
from peftkit.recipe.schema import DataConfig, Recipe
from peftkit.system.files import write_json
from peftkit.tasks import Task

MAX_PRINTED_ROWS = 20


def check(recipe: Recipe, output: Path | None = None) -> str:
    """Check the data of a recipe and return the findings as text; also write JSON to `output`.

    Prints the first invalid rows, and raises UserError with the number of invalid rows.
    """
    if output is not None and output.is_dir():
        raise UserError(f"--output {output}: expected a .json file, got a folder; use another path")
    splits = _load_checked_splits(recipe.data, recipe.task)
    tokenizer = load_tokenizer(recipe.model, recipe.task)
    checks = check_data(splits, recipe.task, tokenizer, read_position_limit(recipe.model))
    if output is not None:
        write_json(output, {**splits.describe(), "checks": dataclasses.asdict(checks)})
    return format_checks(splits, checks)


def _load_checked_splits(config: DataConfig, task: Task) -> Splits:
    """Load the splits; for invalid rows, print the first ones and raise UserError."""
    found = find_splits(config, task)
    labels = task.find_labels(found["train"])
    if problems := find_row_problems(config, task, found, labels):
        for problem in problems[:MAX_PRINTED_ROWS]:
            print(problem)
        if len(problems) > MAX_PRINTED_ROWS:
            print(f"and {len(problems) - MAX_PRINTED_ROWS} more")
        rows = "1 row" if len(problems) == 1 else f"{len(problems)} rows"
        raise UserError(f"invalid data in {rows}, first: {problems[0]}")
    return complete_splits(config, task, found, labels)


def format_checks(splits: Splits, checks: Checks) -> str:
    """Format the findings, one per line, warnings last."""
    rows = ", ".join(f"{split} {len(found):,}" for split, found in splits.rows.items())
    lines = [f"rows        {rows}", *(f"            {decision}" for decision in splits.decisions)]
    if checks.classes:
        total = sum(checks.classes.values())
        shown = [f"{name} {count:,} ({count / total:.1%})" for name, count in list(checks.classes.items())[:12]]
        more = f", and {len(checks.classes) - 12} more" if len(checks.classes) > 12 else ""
        lines.append(f"classes     {', '.join(shown)}{more}")
    for name, found in checks.lengths.items():
        shares = ", ".join(f"{p} % up to {found[f'p{p}']:.0f}" for p in PERCENTILES[:-1])
        fits = f"{found['suggested']:.0f} fits {100 * found['suggested_keeps']:.0f} % of the rows"
        lines.append(
            f"tokens      {shares}, longest {found['p100']:.0f}; task.{name} {found['limit']:.0f} truncates "
            f"{found['cut_share']:.1%} of rows; {fits}"
        )
    if checks.entities:
        lines.append(f"entities    {checks.entities['cut']} of {checks.entities['all']} truncated in every window")
    duplicates = "; ".join(
        f"{split} {', '.join(f'{count} {kind}' for kind, count in found.items())}"
        for split, found in checks.duplicates.items()
    )
    lines.append(f"duplicates  {duplicates.replace('_', ' ')}")
    lines += [f"warning     {warning}" for warning in checks.warnings] or ["no warnings"]
    return "\n".join(lines)
