"""Plug-ins: Python files of the user that register tasks, metrics, data formats and export formats."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from peftkit.errors import UserError

# Inherited by the processes that a command starts.
VARIABLE = "PEFTKIT_PLUGINS"


def load_plugins(paths: Sequence[Path]) -> None:
    """Run the plug-in files in this process and in every process that it starts. Raises UserError."""
    inherited = [Path(path) for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]
    every = list(dict.fromkeys([*inherited, *(path.expanduser().resolve() for path in paths)]))
    for path in every:
        _load_plugin(path)
    if every:
        os.environ[VARIABLE] = os.pathsep.join(map(str, every))


def _load_plugin(path: Path) -> None:
    """Import the file as a module with the file's name, so that saved recipes can name its classes."""
    loaded = sys.modules.get(path.stem)
    if loaded is not None:
        if getattr(loaded, "__file__", None) == str(path):
            return
        raise UserError(f"--plugin {path}: a module named '{path.stem}' is already loaded; rename the file")
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--plugin {path}: not a Python file; pass an existing .py file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[path.stem]
        if isinstance(error, UserError | KeyboardInterrupt):
            raise
        raise UserError(f"--plugin {path}: {type(error).__name__}: {' '.join(str(error).split())}") from error
