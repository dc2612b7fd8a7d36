import json

import pytest

from peftkit.comparison import estimates
from peftkit.comparison.analysis import analyze
from peftkit.comparison.estimates import read_estimates, write_estimates
from peftkit.comparison.report.tables import format_markdown
from peftkit.comparison.report.writer import format_report
from peftkit.comparison.results import load_results
from peftkit.errors import UserError
from tests.comparison.test_analysis import made_comparison, said


def test_each_row_is_estimated_once_and_shown_as_a_column(tmp_path, monkeypatch):
    made_comparison(tmp_path, {"full": ({}, {1: said(0.8, 1), 2: said(0.8, 2)}), "lora": ({}, {})}, seeds=(1, 2))
    assert "planned peak" not in format_markdown(analyze(load_results([tmp_path])))
    folders = []

    def estimate(folder):
        folders.append(folder)
        return {"peak": 1, "process_peak": 500 * 2**20}

    monkeypatch.setattr(estimates, "estimate_run", estimate)
    write_estimates(tmp_path)
    write_estimates(tmp_path)
    assert folders == [tmp_path / "runs" / "full" / "seed-1"]
    assert list(read_estimates(tmp_path)) == ["full"]
    found = analyze(load_results([tmp_path]))
    assert found.rows[0].cost["planned_peak"] == 500 * 2**20
    assert "500 MiB" in format_markdown(found)
    assert json.loads(format_report([tmp_path], "json"))["metrics"][0] == "accuracy"


def test_the_estimate_of_old_reports_is_shown(tmp_path):
    made_comparison(tmp_path, {"full": ({}, {1: said(0.8, 1)})}, seeds=(1,))
    path = tmp_path / "runs" / "full" / "seed-1" / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "plan": {"peak": 1, "process_peak": 300 * 2**20}}))
    assert "300 MiB" in format_markdown(analyze(load_results([tmp_path])))


def test_a_broken_file_is_one_line(tmp_path):
    (tmp_path / "estimates.json").write_text("{")
    with pytest.raises(UserError, match=r"estimates.json: invalid JSON .*remove the file"):
        read_estimates(tmp_path)
