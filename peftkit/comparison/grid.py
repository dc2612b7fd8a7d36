"""What a comparison compares: rows that differ in what was asked for, each with the settings that are tried for it."""

import copy
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from scipy.stats import qmc

from peftkit.errors import UserError
from peftkit.recipe.method import Method, named_method, usual_learning_rate
from peftkit.recipe.parser import parse_recipe, read_recipe
from peftkit.recipe.schema import Recipe
from peftkit.system.files import redact_home

METHOD = "method"
LEARNING_RATE = "training.learning_rate"
PEFT = "method.peft"
ALPHAS = ("lora_alpha", "alpha")
# What belongs to a method, and comes with it when it is given as a recipe file.
OF_A_METHOD = ("learning_rate", "optim", "optim_args")
# What the comparison itself sets.
NOT_OVER = {"training.seed": "--seeds says how many", "training.output_dir": "--output says where", "name": "leave it"}
# Learning rates are tried between the usual one divided and multiplied by this; ranks among half, once and twice.
SPAN = 10.0
RANKS = (0.5, 1.0, 2.0)
# Of a folder's name, in bytes.
LONGEST = 120


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of a comparison.

    Attributes:
        name: What tables call it.
        recipe: With its usual learning rate, and no folder.
        values: What tells it from the other rows, by field.
    """

    name: str
    recipe: Recipe
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Its name as the name of a folder."""
        return folder_name(self.name)


def folder_name(name: str) -> str:
    """A row's name as the name of a folder, cut with a digest where it is long."""
    plain = re.sub(r"[^\w.=-]+", "-", name).strip("-.") or "row"
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return plain if len(plain.encode()) <= LONGEST else f"{plain[: LONGEST // 4]}-{digest}"


def parse_over(words: Sequence[str]) -> dict[str, list[str]]:
    """`FIELD=a,b` words to values by field; a list in brackets is one value. Raises UserError."""
    found: dict[str, list[str]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().removeprefix("--")
        try:
            # A bare word stays as it was written: YAML would make a number of 1.10 and a truth value of no.
            words_of = yaml.load(f"[{text}]", Loader=yaml.BaseLoader) if equals else []  # noqa: S506
            meant = yaml.safe_load(f"[{text}]") if equals else []
        except (yaml.YAMLError, ValueError):
            words_of = meant = []
        values = [
            plain if isinstance(plain, str) else json.dumps(value, default=str)
            for plain, value in zip(words_of, meant, strict=True)
        ]
        if not name or not values:
            raise UserError(f"--over: '{word}' is not FIELD=VALUE,VALUE")
        if name in found:
            raise UserError(f"--over {name}: is given twice")
        if name in NOT_OVER:
            raise UserError(f"--over {name}: the comparison sets it itself; {NOT_OVER[name]}")
        found[name] = values
    return found


def contenders(
    recipe: Recipe, over: Mapping[str, Sequence[str]], learning_rates: Mapping[str, float] | None = None
) -> list[Contender]:
    """A row for each combination of the values in `over`, alike in all else but a method's own learning rate.

    A value of `method` is a method's name or a recipe file, of which the method, its learning rate and its optimizer
    are taken. Raises UserError.
    """
    rates = dict(learning_rates or {})
    for name, rate in rates.items():
        if not (math.isfinite(rate) and rate > 0):
            raise UserError(f"--learning_rates: {name}={rate}: must be a number over 0")
    others = [name for name in over if name != METHOD]
    rows: list[Contender] = []
    for word in over.get(METHOD, [recipe.method.name]):
        based, name = _with_method(recipe, word, rates)
        for values in itertools.product(*(over[other] for other in others)):
            chosen = dict(zip(others, values, strict=True))
            shown = [name] if METHOD in over or not others else []
            shown += [_shown(field, value, over[field]) for field, value in chosen.items()]
            row = based
            if chosen:
                try:
                    row = parse_recipe([f"--{field}={value}" for field, value in chosen.items()], based)
                except UserError as error:
                    raise UserError(f"--over, row '{', '.join(shown)}': {error}") from error
            told = {METHOD: name, **chosen} if METHOD in over else chosen
            told = {field: redact_home(value) for field, value in told.items()}
            rows.append(Contender(name=", ".join(shown), recipe=row, values=told))
    for one, other in itertools.combinations(rows, 2):
        if one.folder.lower() == other.folder.lower():
            raise UserError(f"--over: '{one.name}' and '{other.name}' would have the same name; is one given twice?")
    if unknown := set(rates) - {row.recipe.method.name for row in rows}:
        names = ", ".join(dict.fromkeys(row.recipe.method.name for row in rows))
        raise UserError(f"--learning_rates: no method '{sorted(unknown)[0]}' among {names}")
    return rows


def _with_method(recipe: Recipe, word: str, rates: Mapping[str, float]) -> tuple[Recipe, str]:
    """The recipe with another method, its learning rate and, from a recipe file, its optimizer."""
    training = dict(recipe.training)
    training.pop("output_dir", None)
    if word.endswith((".py", ".yaml", ".yml")):
        other = read_recipe(word)
        method = other.method
        for name in OF_A_METHOD:
            training.pop(name, None)
            if name in other.training:
                training[name] = other.training[name]
    else:
        method = named_method(word, recipe.method)
        if method.name != recipe.method.name:
            training.pop("learning_rate", None)
    if method.name in rates:
        training["learning_rate"] = rates[method.name]
    training.setdefault("learning_rate", usual_learning_rate(method))
    return replace(recipe, method=method, training=training), method.name


def _shown(name: str, value: str, beside: Sequence[str]) -> str:
    """A value as a row's name has it: of a path its end, where that tells it from those beside it."""
    last = _end_of(name)
    if last in ("name_or_path", "path", "deepspeed"):
        ends = [_end(other) for other in beside]
        return _end(value) if len(set(ends)) == len(ends) else redact_home(value)
    return f"{last}={value}"


def _end(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".json")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is tuned.

    Attributes:
        learning_rate: Of the optimizer.
        r: The adapter's rank; None where the method has none, or it is what is compared.
    """

    learning_rate: float
    r: int | None = None

    def __str__(self) -> str:
        return f"learning_rate {self.learning_rate:g}" + ("" if self.r is None else f", r {self.r}")


def settings(contender: Contender, trials: int) -> list[Setting]:
    """So many settings to try, the usual one first.

    The others spread evenly in two dimensions, the logarithm of the learning rate and the rank: the first points of a
    Halton sequence (Halton 1960), the low-discrepancy kind of random search (Bergstra and Bengio 2012, section 5).
    Every row gets as many, save where what is compared leaves fewer: what is compared itself is not tuned.
    """
    rate = float(contender.recipe.training["learning_rate"])
    ranks = _ranks(contender)
    points = qmc.Halton(d=2, scramble=False).random(trials + 1)[1:]
    found = []
    for along, which in points:
        factor = 1.0 if LEARNING_RATE in contender.values else SPAN ** (2 * along - 1)
        # The sequence's thirds are a rounding error short of the whole.
        r = ranks[int(which * len(RANKS) + 1e-9)] if ranks else None
        found.append(Setting(learning_rate=float(f"{rate * factor:.3g}"), r=r))
    found[0] = Setting(learning_rate=rate, r=ranks[RANKS.index(1.0)] if ranks else None)
    return list(dict.fromkeys(found))


def _ranks(contender: Contender) -> list[int]:
    """The ranks to try, by their place in RANKS; none where the method has no rank, or it is compared.

    One for which the scale alpha / r could not stay as it is gives way to the row's own.
    """
    config = contender.recipe.method.peft
    rank = getattr(config, "r", None)
    compared = any(name == PEFT or _end_of(name) in ("r", *ALPHAS) for name in contender.values)
    # AdaLoRA has its own ranks, and none of this name.
    if compared or not isinstance(rank, int) or rank < 1 or hasattr(config, "init_r"):
        return []
    tried = [max(1, round(rank * factor)) for factor in RANKS]
    return [one if all((getattr(config, name, 0) or 0) * one % rank == 0 for name in ALPHAS) else rank for one in tried]


def _end_of(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def with_setting(recipe: Recipe, setting: Setting) -> Recipe:
    """The recipe with this learning rate and rank; `lora_alpha` follows the rank, so that the scale stays."""
    training = {**recipe.training, "learning_rate": setting.learning_rate}
    return replace(recipe, method=_with_rank(recipe.method, setting.r), training=training)


def _with_rank(method: Method, r: int | None) -> Method:
    config: Any = copy.deepcopy(method.peft)
    if r is None or config.r == r:
        return method
    for alpha in ALPHAS:
        if value := getattr(config, alpha, None):
            setattr(config, alpha, value * r // config.r)
    config.r = r
    return replace(method, peft=config)
