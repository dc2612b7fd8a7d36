"""Subprocess for one run of a comparison; exits when the comparison exits.

python -m peftkit.comparison.worker RECIPE.yaml [--trial]
"""

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def _exit_with_parent() -> None:
    """Exit when standard input closes, which also happens if the comparison is killed."""

    def wait() -> None:
        if os.read(0, 1) == b"":
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Run the recipe file in the first argument, and exit with the exit code of the run."""
    _exit_with_parent()
    # Import after starting the thread, because imports take seconds and the comparison may be killed meanwhile.
    from peftkit.checkpoints.manifest import find_last_complete
    from peftkit.comparison.scheduler import PROGRESS_FILE
    from peftkit.errors import run_with_exit_code
    from peftkit.recipe.parser import read_recipe
    from peftkit.runs.writer import choose_run_folder
    from peftkit.system.files import write_text
    from peftkit.system.logging import set_up_logging
    from peftkit.system.plugins import load_plugins
    from peftkit.training.run import run

    set_up_logging()
    file = Path(sys.argv[1]).parent / PROGRESS_FILE

    def write_progress(row: Mapping[str, Any]) -> None:
        write_text(file, json.dumps(dict(row)))

    def run_recipe() -> None:
        try:
            load_plugins([])
            recipe = read_recipe(sys.argv[1])
            # Resume a killed run from the last checkpoint, if there is one.
            has_checkpoint = find_last_complete(choose_run_folder(recipe)) is not None
            run(recipe, trial="--trial" in sys.argv[2:], progress=write_progress, resume=has_checkpoint)
        finally:
            file.unlink(missing_ok=True)

    sys.exit(run_with_exit_code(run_recipe))


if __name__ == "__main__":
    main()
