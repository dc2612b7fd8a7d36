import pytest

from tests.docs.commands import find_problem, list_commands, list_fields
from tests.docs.page import ROOT

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/[!_]*/*.md"))]


@pytest.fixture(scope="module")
def known_fields():
    return list_fields()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT).with_suffix("")))
def test_commands_parse(path, known_fields):
    found = [(line, arguments, find_problem(arguments, known_fields)) for line, arguments in list_commands(path)]
    assert [
        f"{path.name}:{line}: {' '.join(arguments)}: {problem}" for line, arguments, problem in found if problem
    ] == []


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("peftkit train r.yaml --training.max_steps 4 --method.peft.r 4 --task.max_length=8", None),
        ("peftkit train r.yaml --training.max_step 4", "unknown field '--training.max_step'"),
        ("peftkit export run out --dtype int4", "invalid choice"),
        ("peftkit report run --training.max_steps 4", "unknown argument '--training.max_steps'"),
    ],
)
def test_find_problem(command, problem, known_fields):
    found = find_problem(command.split(), known_fields)
    assert found is None if problem is None else problem in found
