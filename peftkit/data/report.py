"""A recipe's data looked at before anything is trained, and what was found in words."""

import dataclasses
from pathlib import Path

from peftkit.data.quality import PERCENTILES, Checks, check_data
from peftkit.data.splits import Splits, complete_splits, find_splits, row_problems
from peftkit.errors import UserError
from peftkit.models.loading import load_tokenizer
from peftkit.models.positions import read_position_limit
from peftkit.recipe.schema import Recipe
from peftkit.system.files import write_json

MOST_PROBLEMS = 20


def check(recipe: Recipe, output: Path | None = None) -> str:
    """What was found, a line each; `output` takes it as JSON too.

    Prints the first rows that can't be used, and raises UserError with their number.
    """
    found = find_splits(recipe.data, recipe.task)
    labels = recipe.task.find_labels(found["train"])
    if problems := row_problems(recipe.data, recipe.task, found, labels):
        for problem in problems[:MOST_PROBLEMS]:
            print(problem)
        if len(problems) > MOST_PROBLEMS:
            print(f"and {len(problems) - MOST_PROBLEMS} more")
        rows = "1 row" if len(problems) == 1 else f"{len(problems)} rows"
        raise UserError(f"{rows} can't be used; the first: {problems[0]}")
    splits = complete_splits(recipe.data, recipe.task, found, labels)
    tokenizer = load_tokenizer(recipe.model, recipe.task)
    checks = check_data(splits, recipe.task, tokenizer, read_position_limit(recipe.model))
    if output is not None:
        write_json(output, {**splits.describe(), "checks": dataclasses.asdict(checks)})
    return described(splits, checks)


def described(splits: Splits, checks: Checks) -> str:
    """The findings for people, a line each, warnings last."""
    rows = ", ".join(f"{split} {len(found):,}" for split, found in splits.rows.items())
    lines = [f"rows        {rows}", *(f"            {decision}" for decision in splits.decisions)]
    if checks.classes:
        total = sum(checks.classes.values())
        shown = [f"{name} {count:,} ({count / total:.1%})" for name, count in list(checks.classes.items())[:12]]
        more = f", and {len(checks.classes) - 12} more" if len(checks.classes) > 12 else ""
        lines.append(f"classes     {', '.join(shown)}{more}")
    for name, found in checks.lengths.items():
        shares = ", ".join(f"{p} % up to {found[f'p{p}']:.0f}" for p in PERCENTILES[:-1])
        keeps = f"{found['suggested']:.0f} keeps {100 * found['suggested_keeps']:.0f} % whole"
        lines.append(
            f"tokens      {shares}, longest {found['p100']:.0f}; task.{name} {found['limit']:.0f} cuts "
            f"{found['cut_share']:.1%} of rows; {keeps}"
        )
    if checks.entities:
        lines.append(f"entities    {checks.entities['cut']} of {checks.entities['all']} are never read whole")
    copies = "; ".join(
        f"{split} {', '.join(f'{count} {kind}' for kind, count in found.items())}"
        for split, found in checks.duplicates.items()
    )
    lines.append(f"duplicates  {copies.replace('_', ' ')}")
    lines += [f"warning     {warning}" for warning in checks.warnings] or ["no warnings"]
    return "\n".join(lines)
