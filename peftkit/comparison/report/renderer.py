"""Subprocess that renders Vega-Lite specifications to SVG and PNG, and returns the JavaScript library for a page.

A separate process: the engine of vl-convert reserves so much address space that a memory limit may end the process.
It reads specifications from standard input and writes JSON to standard output.
"""

import base64
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftkit.errors import UserError

VEGA_LITE = "6.4"


@dataclass(frozen=True, kw_only=True)
class RenderedCharts:
    """Rendered charts.

    Attributes:
        library: JavaScript that gives a page `vegaEmbed`.
        svg: By the picture's name.
        png: The same, at twice the size in pixels.
    """

    library: str
    svg: Mapping[str, str]
    png: Mapping[str, bytes]


def render_charts(specs: Mapping[str, Mapping[str, Any]]) -> RenderedCharts:
    """Render every specification. Raises UserError when the engine does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "peftkit.comparison.report.renderer"],
        input=json.dumps(specs).encode(),
        capture_output=True,
    )
    if done.returncode:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip(" #")]
        cause = lines[0].strip(" #") if lines else f"exit code {done.returncode}"
        raise UserError(
            f"the charts of the page can't be rendered ({cause}); run peftkit report without a memory limit"
        )
    found = json.loads(done.stdout)
    png = {name: base64.b64decode(content) for name, content in found["png"].items()}
    return RenderedCharts(library=found["library"], svg=found["svg"], png=png)


def main() -> None:
    """Render the specifications of standard input to standard output."""
    import vl_convert

    specs = {name: {**spec, "background": "white"} for name, spec in json.load(sys.stdin).items()}
    png = {name: vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, scale=2) for name, spec in specs.items()}
    found = {
        "library": vl_convert.javascript_bundle(vl_version=VEGA_LITE),  # type: ignore[call-arg]  # as its stub has it
        "svg": {name: vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE) for name, spec in specs.items()},
        "png": {name: base64.b64encode(content).decode() for name, content in png.items()},
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
