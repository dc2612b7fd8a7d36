"""Files shipped with peftkit: recipes and DeepSpeed configs."""

from pathlib import Path

RECIPES = "recipes"
DEEPSPEED_CONFIGS = "ds_configs"


def find_shipped_folder(name: str) -> Path:
    """Return the folder `recipes` or `ds_configs`: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def find_shipped_recipe_file(path: str | Path) -> Path | None:
    """Return the shipped file that `recipes/NAME` names; None for another path and for an existing one.

    Such a path stays as it is in saved recipes, so that they hold no path of the installation.
    """
    path = Path(path)
    if path.parent != Path(RECIPES) or path.exists():
        return None
    shipped = find_shipped_folder(RECIPES) / path.name
    return shipped if shipped.is_file() else None
