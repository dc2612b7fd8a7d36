"""One run of a comparison, in a process that ends with the one that started it.

python -m peftkit.comparison.worker RECIPE.yaml [--trial]
"""

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def _end_with_the_parent() -> None:
    """End at once when standard input closes: its other end is the comparison's, which a kill leaves no time to say."""

    def wait() -> None:
        if os.read(0, 1) == b"":
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Run the recipe of the first argument; ends the process with its exit code."""
    _end_with_the_parent()
    # Importing takes seconds, in which the comparison may be killed too.
    from peftkit.checkpoints.manifest import find_last_complete
    from peftkit.comparison.scheduler import PROGRESS
    from peftkit.errors import run_with_exit_code
    from peftkit.recipe.parser import read_recipe
    from peftkit.runs.writer import choose_run_folder
    from peftkit.system.files import write_text
    from peftkit.system.logging import set_up_logging
    from peftkit.system.plugins import load_plugins
    from peftkit.training.run import run

    set_up_logging()
    file = Path(sys.argv[1]).parent / PROGRESS

    def tell(row: Mapping[str, Any]) -> None:
        write_text(file, json.dumps(dict(row)))

    def act() -> None:
        try:
            load_plugins([])
            recipe = read_recipe(sys.argv[1])
            # What was killed goes on from where it stood, if its recipe asks for checkpoints.
            begun = find_last_complete(choose_run_folder(recipe)) is not None
            run(recipe, trial="--trial" in sys.argv[2:], progress=tell, resume=begun)
        finally:
            file.unlink(missing_ok=True)

    sys.exit(run_with_exit_code(act))


if __name__ == "__main__":
    main()
