import sys

import pytest

from peftkit.errors import UserError
from peftkit.system.plugins import VARIABLE, load_plugins


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    file = tmp_path / "a_plugin_of_the_tests.py"
    file.write_text("LOADED = ['once']\n")
    yield file
    sys.modules.pop(file.stem, None)


def test_a_plugin_is_imported_once_under_its_name_and_inherited(plugin):
    load_plugins([plugin])
    module = sys.modules[plugin.stem]
    load_plugins([plugin])
    assert sys.modules[plugin.stem] is module
    del sys.modules[plugin.stem]
    # A process that is started now has the variable only.
    load_plugins([])
    assert sys.modules[plugin.stem].LOADED == ["once"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.py", None, "not a Python file"),
        ("a.txt", "", "not a Python file"),
        ("json.py", "", "a module named 'json' is already loaded"),
        ("broken_plugin.py", "raise ValueError('its own')", "ValueError: its own"),
        ("ending_plugin.py", "raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_one_line(tmp_path, monkeypatch, name, text, message):
    monkeypatch.setenv(VARIABLE, "")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_plugins([tmp_path / name])
    assert name.removesuffix(".py") == "json" or name.removesuffix(".py") not in sys.modules
