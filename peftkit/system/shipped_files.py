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
    """Return the shipped file for `recipes/NAME`; None for another path or an existing file.

    Saved recipes contain `recipes/NAME`, not the path of the installation.
    """
    path = Path(path)
    if path.parent != Path(RECIPES) or path.exists():
        return None
    shipped = find_shipped_folder(RECIPES) / path.name
    return shipped if shipped.is_file() else None
