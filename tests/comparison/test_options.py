import subprocess
import sys

import pytest

from peftkit.comparison.options import (
    Budget,
    make_budget,
    parse_compared_values,
    parse_learning_rates,
    parse_over,
)
from peftkit.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({"trials": -1}, "at least 1"), ({"seeds": 0}, "at least 1"), ({"jobs": 0}, "at least 1")],
)
def test_a_budget_that_makes_no_sense_is_refused(arguments, expected):
    with pytest.raises(UserError, match=expected):
        Budget(**arguments)


@pytest.mark.parametrize(
    ("parse", "message"),
    [
        (lambda: parse_over(["method"]), "FIELD=VALUE"),
        (lambda: parse_over(["a=1", "a=2"]), "--over a: duplicate option"),
        (lambda: parse_over(["training.seed=1,2"]), "use --seeds"),
        (lambda: parse_compared_values("full", ["method=lora"]), "pass only one"),
        (lambda: parse_compared_values(",", []), "--methods: empty"),
        (lambda: parse_learning_rates("full"), "expected METHOD=NUMBER, got 'full'"),
        (lambda: make_budget(trials=2, seeds=None, is_quick=True), "--quick: sets one trial"),
    ],
)
def test_a_wrong_option_is_one_line(parse, message):
    with pytest.raises(UserError, match=message) as error:
        parse()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rate", ["nan", "inf", "0", "-1"])
def test_a_learning_rate_must_be_positive(rate):
    with pytest.raises(UserError, match="must be a number above 0"):
        parse_learning_rates(f"full={rate}")


def test_defaults_of_methods_and_budget():
    assert parse_compared_values(None, []) == {"method": ["full", "lora", "qlora"]}
    assert parse_compared_values(None, ["data.path=a,b"]) == {"data.path": ["a", "b"]}
    assert list(parse_compared_values("full", ["data.path=a,b"])) == ["method", "data.path"]
    assert make_budget(trials=None, seeds=None, is_quick=False) == Budget(trials=3, seeds=3)
    assert make_budget(trials=None, seeds=None, is_quick=True).is_quick


def test_checking_options_imports_nothing_heavy(real_interpreter):
    code = (
        "import sys, peftkit.comparison.options; "
        "print(sorted({'torch', 'transformers', 'peft', 'datasets', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
