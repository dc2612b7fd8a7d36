from dataclasses import replace

import pytest

from peftkit.planning import command, planner
from peftkit.recipe.serialization import recipe_to_yaml

traced: dict = {}


@pytest.fixture(autouse=True)
def share_traces(monkeypatch):
    """Trace each recipe once per worker: plans of the same recipe on other hardware use the same traces."""
    trace = planner.trace_method

    def trace_once(recipe, config, *arguments):
        training = {name: value for name, value in recipe.training.items() if name != "output_dir"}
        key = recipe_to_yaml(replace(recipe, training=training)), config.to_json_string(), repr(arguments)
        if key not in traced:
            traced[key] = trace(recipe, config, *arguments)
        return traced[key]

    monkeypatch.setattr(planner, "trace_method", trace_once)
    monkeypatch.setattr(command, "trace_method", trace_once)
