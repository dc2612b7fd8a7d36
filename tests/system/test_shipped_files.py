from peftkit.data.sources import load_rows
from peftkit.recipe.parser import read_recipe
from peftkit.recipe.schema import DataConfig
from peftkit.recipe.serialization import recipe_to_dict
from peftkit.system.shipped_files import find_shipped_folder, find_shipped_recipe_file
from tests.conftest import ROOT


def test_the_folders_are_beside_the_package_in_a_checkout():
    assert find_shipped_folder("recipes") == ROOT / "recipes"
    assert find_shipped_folder("ds_configs") == ROOT / "ds_configs"


def test_a_missing_recipe_is_the_one_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_shipped_recipe_file("recipes/lora_cls.py") == ROOT / "recipes" / "lora_cls.py"
    for other in ("lora_cls.py", "./elsewhere/lora_cls.py", "recipes/nothing.py", "/recipes/lora_cls.py"):
        assert find_shipped_recipe_file(other) is None
    assert read_recipe("recipes/lora_cls.py").name == "lora_cls"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "lora_cls.py").write_text("from peftkit import Recipe\nrecipe = Recipe(name='mine')\n")
    assert read_recipe("recipes/lora_cls.py").name == "mine"


def test_data_of_the_package_stays_a_relative_path_in_saved_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe("recipes/four_sentences.yaml")
    assert recipe_to_dict(recipe)["data"]["path"] == "recipes/four_sentences.jsonl"
    assert len(load_rows(DataConfig(path=recipe.data.path))["train"]) == 4
