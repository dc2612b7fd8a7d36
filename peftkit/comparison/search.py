"""Hyperparameter settings: learning rate and adapter rank, sampled per row and applied to the recipe."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from peftkit.recipe.method import Method
from peftkit.recipe.schema import Recipe

LEARNING_RATE = "training.learning_rate"
PEFT = "method.peft"
ALPHAS = ("lora_alpha", "alpha")
# Learning rates are sampled from the default divided by this factor to the default multiplied by this factor.
LEARNING_RATE_SPAN = 10.0
RANK_FACTORS = (0.5, 1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Values of the tuned hyperparameters.

    Attributes:
        learning_rate: Learning rate of the optimizer.
        r: Rank of the adapter; None if the method has no rank or the rank is compared.
    """

    learning_rate: float
    r: int | None = None

    def __str__(self) -> str:
        return f"learning_rate {self.learning_rate:g}" + ("" if self.r is None else f", r {self.r}")


def sample_settings(recipe: Recipe, compared: Mapping[str, str], count: int) -> list[Setting]:
    """Sample `count` settings for the recipe of a row, starting with the default setting.

    Further settings cover the logarithm of the learning rate and the rank evenly. They are the first points of a Halton
    sequence (Halton 1960), a low-discrepancy random search (Bergstra and Bengio 2012, section 5). Fields in `compared`
    are not tuned, so fewer settings may remain.
    """
    # This import takes 0.5 s.
    from scipy.stats import qmc

    rate = float(recipe.training["learning_rate"])
    ranks = _list_ranks(recipe.method, compared)
    points = qmc.Halton(d=2, scramble=False).random(count + 1)[1:]
    settings = []
    for rate_point, rank_point in points:
        factor = 1.0 if LEARNING_RATE in compared else LEARNING_RATE_SPAN ** (2 * rate_point - 1)
        # Add a small number, because rounding makes the thirds of the sequence slightly too small.
        r = ranks[int(rank_point * len(RANK_FACTORS) + 1e-9)] if ranks else None
        settings.append(Setting(learning_rate=float(f"{rate * factor:.3g}"), r=r))
    settings[0] = Setting(learning_rate=rate, r=ranks[RANK_FACTORS.index(1.0)] if ranks else None)
    return list(dict.fromkeys(settings))


def apply_setting(recipe: Recipe, setting: Setting) -> Recipe:
    """Set learning rate and rank in a recipe; scale `lora_alpha` with the rank."""
    training = {**recipe.training, "learning_rate": setting.learning_rate}
    return replace(recipe, method=_set_rank(recipe.method, setting.r), training=training)


def _list_ranks(method: Method, compared: Mapping[str, str]) -> list[int]:
    """List the ranks to sample, one per factor; empty if the method has no rank or the rank is compared.

    The method's rank replaces a rank for which alpha is not an integer.
    """
    config = method.peft
    rank = getattr(config, "r", None)
    is_compared = any(name == PEFT or name.rsplit(".", 1)[-1] in ("r", *ALPHAS) for name in compared)
    # AdaLoRA uses `init_r` and `target_r` and ignores `r`.
    if is_compared or not isinstance(rank, int) or rank < 1 or hasattr(config, "init_r"):
        return []
    ranks = [max(1, round(rank * factor)) for factor in RANK_FACTORS]
    return [r if all((getattr(config, name, 0) or 0) * r % rank == 0 for name in ALPHAS) else rank for r in ranks]


def _set_rank(method: Method, r: int | None) -> Method:
    config: Any = copy.deepcopy(method.peft)
    if r is None or config.r == r:
        return method
    for name in ALPHAS:
        if alpha := getattr(config, name, None):
            setattr(config, name, alpha * r // config.r)
    config.r = r
    return replace(method, peft=config)
