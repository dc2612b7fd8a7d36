import json

import pytest

from peftkit.cli.main import main
from tests.data.test_quality import rows


@pytest.fixture
def recipe(tmp_path):
    def make(train, test):
        for split, found in (("train", train), ("test", test)):
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        path = tmp_path / "r.yaml"
        path.write_text(f"data: {{path: '{tmp_path}'}}\ntask: SequenceClassification\n")
        return str(path)

    return make


def test_the_command_reports_and_writes(recipe, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "check",
                recipe(rows(0, 60), rows(100, 9)),
                "--output",
                str(tmp_path / "out.json"),
                "--task.max_length",
                "64",
            ]
        )
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "rows        train 51, validation 9, test 9" in said
    assert "classes     " in said
    assert json.loads((tmp_path / "out.json").read_text())["checks"]["lengths"]["max_length"]["limit"] == 64


def test_the_command_lists_what_is_fatal(recipe, tmp_path, capsys):
    bad = [{"text": None, "label": "a"}, {"text": "x", "label": "never seen"}]
    with pytest.raises(SystemExit) as ended:
        main(["check", recipe(rows(0, 60), [*rows(100, 9), *bad])])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert (
        f"{tmp_path}/test.jsonl, row 10 (from 0), column 'label': label 'never seen' does not occur in train"
        in captured.out
    )
    assert captured.err.startswith("peftkit: invalid data in 2 rows, first: ")
    assert len(captured.err.splitlines()) == 1
