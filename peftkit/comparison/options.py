"""Options of `peftkit compare`, checked before anything heavy is imported."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from peftkit.errors import UserError

METHOD = "method"
DEFAULT_METHODS = "full,lora,qlora"
DEFAULT_RUNS = 3
# Fields that the comparison sets itself, and the fix.
FIXED_FIELDS = {"training.seed": "use --seeds", "training.output_dir": "use --output", "name": "remove it"}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Effort per row, the same for all rows.

    Attributes:
        trials: Settings tried on validation; with one, the default setting is used without a trial.
        seeds: Runs with the best setting, each tested once.
        jobs: Runs at a time, each with its own devices.
        processes: Ranks of each run.
    """

    trials: int = DEFAULT_RUNS
    seeds: int = DEFAULT_RUNS
    jobs: int = 1
    processes: int = 1

    def __post_init__(self) -> None:
        for name in ("trials", "seeds", "jobs", "processes"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"--{name}: must be 1 or more, got {value}")

    @property
    def is_quick(self) -> bool:
        """Whether there is one setting and one seed per row."""
        return self.trials == self.seeds == 1


def make_budget(*, trials: int | None, seeds: int | None, is_quick: bool, jobs: int = 1, processes: int = 1) -> Budget:
    """Make the budget of the command line's options; None is the default. Raises UserError."""
    if is_quick and (trials or 1, seeds or 1) != (1, 1):
        raise UserError("--quick: means one trial and one seed; remove --trials and --seeds")
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
            # Scalars stay as text: YAML would turn 1.10 into a number and `no` into a boolean.
            texts = yaml.load(f"[{text}]", Loader=yaml.BaseLoader) if equals else []  # noqa: S506
            typed = yaml.safe_load(f"[{text}]") if equals else []
        except (yaml.YAMLError, ValueError):
            texts = typed = []
        values = [
            plain if isinstance(plain, str) else json.dumps(value, default=str)
            for plain, value in zip(texts, typed, strict=True)
        ]
        if not name or not values:
            raise UserError(f"--over: '{option}' is not FIELD=VALUE,VALUE")
        if name in over:
            raise UserError(f"--over {name}: given twice; give all values in one option")
        if name in FIXED_FIELDS:
            raise UserError(f"--over {name}: the comparison sets this field; {FIXED_FIELDS[name]}")
        over[name] = values
    return over


def parse_compared_values(methods: str | None, over: Sequence[str]) -> dict[str, list[str]]:
    """Parse `--methods` and `--over` into values by field; without both, the default methods. Raises UserError."""
    values = parse_over(over)
    if methods is None and values:
        return values
    if METHOD in values:
        raise UserError("--methods and --over method: are the same option; pass only one")
    names = [name.strip() for name in (DEFAULT_METHODS if methods is None else methods).split(",") if name.strip()]
    if not names:
        raise UserError("--methods: names no method; pass names separated by commas")
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
            raise UserError(f"--learning_rates: {name} must be a number over 0, got {rate}")
