import pytest

from peftkit import Recipe
from peftkit.cli.recipe_arguments import parse_run_arguments
from peftkit.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "resume"),
    [
        ([], False),
        (["--resume"], True),
        (["--resume", "--name", "x"], True),
        (["--name", "x", "--resume", "runs/x/checkpoint-4", "--debug"], "runs/x/checkpoint-4"),
        (["--resume=runs/x/checkpoint-4"], "runs/x/checkpoint-4"),
    ],
)
def test_resume_takes_an_optional_checkpoint(arguments, resume):
    parsed = parse_run_arguments(arguments, Recipe(name="x"), "train")
    assert parsed.resume == resume
    assert parsed.recipe.name == "x"


@pytest.mark.parametrize("arguments", [["--local_rank=1"], ["--local_rank", "1"], ["--local-rank=0"]])
def test_the_argument_of_the_deepspeed_launcher_is_accepted(arguments):
    assert parse_run_arguments([*arguments, "--name", "x"], Recipe(), "train").recipe.name == "x"


@pytest.mark.parametrize("arguments", [["--ds", "auto"], ["--ds=auto"], ["--training.deepspeed", "auto"]])
def test_ds_is_short_for_training_deepspeed(arguments):
    assert parse_run_arguments(arguments, Recipe(), "train").recipe.training["deepspeed"] == "auto"


def test_ds_and_its_long_form_exclude_each_other():
    with pytest.raises(UserError, match=r"--ds, --training\.deepspeed: duplicate option"):
        parse_run_arguments(["--ds", "auto", "--training.deepspeed=zero2"], Recipe(), "train")
