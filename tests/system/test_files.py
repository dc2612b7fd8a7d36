import json
from pathlib import Path

import pytest

from peftkit.errors import UserError
from peftkit.system.files import atomic_directory, redact_home, write_json, write_text


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "one\n")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a" / "b.txt", "\ud800")
    assert (tmp_path / "a" / "b.txt").read_text() == "one\n"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1.5}
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"x": float("nan")})


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def half():
        with atomic_directory(tmp_path / "out") as folder:
            (folder / "half").write_text("x")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half()
    assert list(tmp_path.iterdir()) == []
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "whole").write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "whole"]


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    (tmp_path / "content").write_text("x")
    with pytest.raises(UserError, match="already exists"), atomic_directory(tmp_path):
        pass
    assert (tmp_path / "content").exists()


def test_the_home_folder_is_not_written_down(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert redact_home(Path("/home/someone/models/x")) == "~/models/x"
    assert redact_home("/home/someone-else/x") == "/home/someone-else/x"
    assert redact_home("org/model") == "org/model"
