import pytest

from peftkit.errors import UserError
from peftkit.export.hub import check_login, push_folder


def test_without_a_login_nothing_is_begun(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"--push_to_hub me/it: not logged in to the Hub"):
        check_login("me/it")


def test_what_is_not_sent_stays(tmp_path):
    (tmp_path / "README.md").write_text("it")
    with pytest.raises(UserError, match=rf"me/it: upload failed .*; retry, the export is complete in {tmp_path}"):
        push_folder(tmp_path, "me/it")
    assert (tmp_path / "README.md").read_text() == "it"
