import math

from peft import AdaLoraConfig

from peftkit import Method, Recipe, lora
from peftkit.comparison.grid import make_rows
from peftkit.comparison.options import parse_over
from peftkit.comparison.search import apply_setting, sample_settings

BASE = Recipe(name="x", method=lora(r=4), training={"learning_rate": 7e-4, "max_steps": 5, "seed": 9})


def test_every_row_gets_as_many_settings_the_usual_first():
    rows = make_rows(BASE, {"method": ["full", "lora", "ia3"]})
    for row in rows:
        tried = sample_settings(row.recipe, row.values, 5)
        assert len(tried) == 5
        usual = row.recipe.training["learning_rate"]
        assert tried[0].learning_rate == usual
        assert all(usual / 10 <= one.learning_rate <= usual * 10 for one in tried)
        # Evenly on both sides of the usual one, in logarithms.
        assert abs(sum(math.log10(one.learning_rate / usual) for one in tried[:3])) < 0.01
    ranks = [one.r for one in sample_settings(rows[1].recipe, rows[1].values, 9)]
    assert ranks[0] == 4
    assert set(ranks) == {2, 4, 8}
    assert (
        {one.r for one in sample_settings(rows[0].recipe, rows[0].values, 3)}
        == {one.r for one in sample_settings(rows[2].recipe, rows[2].values, 3)}
        == {None}
    )


def test_what_is_compared_is_not_tuned():
    for words in ("method.peft.r=2,16", "method.peft.init_args.r=2,16", "method.peft.lora_alpha=8,16"):
        rows = make_rows(BASE, parse_over([words]))
        assert {one.r for row in rows for one in sample_settings(row.recipe, row.values, 4)} == {None}, words
    by_rate = make_rows(BASE, parse_over(["training.learning_rate=1e-3,1e-4"]))
    assert {one.learning_rate for one in sample_settings(by_rate[1].recipe, by_rate[1].values, 4)} == {1e-4}
    only = make_rows(Recipe(), parse_over(["training.learning_rate=1e-3,1e-4"]))
    assert len(sample_settings(only[0].recipe, only[0].values, 4)) == 1


def test_a_rank_keeps_its_scale():
    row = make_rows(Recipe(method=Method(peft=lora(r=4, lora_alpha=6).peft)), {})[0]
    tried = apply_setting(row.recipe, sample_settings(row.recipe, row.values, 2)[1])
    assert tried.method.peft.lora_alpha / tried.method.peft.r == 6 / 4
    assert tried.method.peft.r != 4
    assert row.recipe.method.peft.r == 4
    # Half of three ranks would need an alpha that is no whole number.
    odd = make_rows(Recipe(method=Method(peft=lora(r=3, lora_alpha=16).peft)), {})[0]
    for setting in sample_settings(odd.recipe, odd.values, 9):
        config = apply_setting(odd.recipe, setting).method.peft
        assert config.lora_alpha / config.r == 16 / 3
    assert {one.r for one in sample_settings(odd.recipe, odd.values, 9)} == {3, 6}
    own_ranks = make_rows(Recipe(method=Method(peft=AdaLoraConfig(total_step=9))), {})[0]
    assert {one.r for one in sample_settings(own_ranks.recipe, own_ranks.values, 4)} == {None}
