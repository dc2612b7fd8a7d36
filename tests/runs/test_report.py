import pytest

from peftkit.errors import UserError
from peftkit.runs.report import Report, read_report


def test_a_report_is_read_as_it_was_written(tmp_path):
    report = Report(name="a", method="lora", status="complete", metrics={"test": {"accuracy": 0.5}}, seed=1)
    assert report.write(tmp_path).name == "report.json"
    assert read_report(tmp_path) == report


def test_no_report_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"contains no report\.json"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text('{"other": 1}')
    with pytest.raises(UserError, match="invalid report"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("[1]")
    with pytest.raises(UserError, match="invalid report"):
        read_report(tmp_path)


def test_fields_of_another_version_are_ignored(tmp_path):
    (tmp_path / "report.json").write_text('{"name": "a", "method": "lora", "status": "complete", "later": {"x": 1}}')
    assert read_report(tmp_path) == Report(name="a", method="lora", status="complete")


def test_what_is_not_finite_is_null(tmp_path):
    report = Report(name="a", method="m", status="complete", history=[{"grad_norm": float("inf"), "loss": 0.5}])
    report.write(tmp_path)
    assert read_report(tmp_path).history == [{"grad_norm": None, "loss": 0.5}]
