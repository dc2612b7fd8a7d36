"""Options of `peftkit compare`, checked before heavy imports."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from peftkit.errors import UserError

METHOD = "method"
DEFAULT_METHODS = "full,lora,qlora"
DEFAULT_RUNS = 3
# Fields that the comparison sets, with the fix for the error message.
FIXED_FIELDS = {"training.seed": "use --seeds", "training.output_dir": "use --output", "name": "remove it"}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Number of runs per row, equal for all rows.

    Attributes:
        trials: Number of settings to compare on validation; with one, the default setting is used without a trial.
        seeds: Number of runs with the best setting, each evaluated once on test.
        jobs: Number of parallel runs, on separate devices.
        processes: Number of ranks per run.
    """

    trials: int = DEFAULT_RUNS
    seeds: int = DEFAULT_RUNS
    jobs: int = 1
    processes: int = 1

    def __post_init__(self) -> None:
        for name in ("trials", "seeds", "jobs", "processes"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"--{name}: must be at least 1, got {value}")

    @property
    def is_quick(self) -> bool:
        """Whether each row has one setting and one seed."""
        return self.trials == self.seeds == 1


def make_budget(*, trials: int | None, seeds: int | None, is_quick: bool, jobs: int = 1, processes: int = 1) -> Budget:
    """Make the budget from command-line options; None is the default. Raises UserError."""
    if is_quick and (trials or 1, seeds or 1) != (1, 1):
        raise UserError("--quick: sets one trial and one seed; remove --trials and --seeds")
    default = 1 if is_quick else DEFAULT_RUNS
    return Budget(
        trials=default if trials is None else trials, seeds=default if seeds is None else seeds, jobs=jobs,
        processes=processes,
    )  # fmt: skip


def parse_over(options: Sequence[str]) -> dict[str, list[str]]:
    """Parse `FIELD=a,b` options into values by field; a list in brackets is one value. Raises UserError."""
    over: dict[str, list[str]] = {}
    for option in options:
        name, equals, text = option.partition("=")
        name = name.strip().removeprefix("--")
        try:
            # Scalars stay text, because YAML would convert 1.10 to a number and `no` to a boolean.
            texts = yaml.load(f"[{text}]", Loader=yaml.BaseLoader) if equals else []  # noqa: S506
            typed = yaml.safe_load(f"[{text}]") if equals else []
        except (yaml.YAMLError, ValueError):
            texts = typed = []
        values = [
            plain if isinstance(plain, str) else json.dumps(value, default=str)
            for plain, value in zip(texts, typed, strict=True)
        ]
        if not name or not values:
            raise UserError(f"--over: expected FIELD=VALUE,VALUE, got '{option}'")
        if name in over:
            raise UserError(f"--over {name}: duplicate option; pass all values in one option")
        if name in FIXED_FIELDS:
            raise UserError(f"--over {name}: the comparison sets this field; {FIXED_FIELDS[name]}")
        over[name] = values
    return over


def parse_compared_values(methods: str | None, over: Sequence[str]) -> dict[str, list[str]]:
    """Parse `--methods` (or the default methods) and `--over` into values by field. Raises UserError."""
    values = parse_over(over)
    if methods is None and values:
        return values
    if METHOD in values:
        raise UserError("--methods, --over method: duplicate option; pass only one of them")
    names = [name.strip() for name in (DEFAULT_METHODS if methods is None else methods).split(",") if name.strip()]
    if not names:
        raise UserError("--methods: empty; pass names separated by commas")
    return {METHOD: names, **values}


def parse_learning_rates(text: str) -> dict[str, float]:
    """Parse `METHOD=RATE,METHOD=RATE` into learning rates by method. Raises UserError."""
    rates = {}
    for part in filter(None, text.split(",")):
        name, _, rate = part.partition("=")
        try:
            rates[name] = float(rate)
        except ValueError:
            raise UserError(f"--learning_rates: expected METHOD=NUMBER, got '{part}'") from None
    check_learning_rates(rates)
    return rates


def check_learning_rates(rates: Mapping[str, float]) -> None:
    """Check that every learning rate is a positive number. Raises UserError."""
    for name, rate in rates.items():
        if not (math.isfinite(rate) and rate > 0):
            raise UserError(f"--learning_rates: {name} must be a number above 0, got {rate}")
