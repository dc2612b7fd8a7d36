"""Subprocess that renders Vega-Lite specifications to SVG and PNG, and returns a JavaScript library.

A separate process, because the engine of vl-convert reserves much address space and a memory limit may kill the
process. The process reads specifications from standard input and writes JSON to standard output.
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
        library: JavaScript library that defines `vegaEmbed`.
        svg: SVG by chart name.
        png: PNG by chart name, at twice the size in pixels.
    """

    library: str
    svg: Mapping[str, str]
    png: Mapping[str, bytes]


def render_charts(specs: Mapping[str, Mapping[str, Any]]) -> RenderedCharts:
    """Render every specification. Raises UserError if the engine does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "peftkit.comparison.report.renderer"],
        input=json.dumps(specs).encode(),
        capture_output=True,
    )
    if done.returncode:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip(" #")]
        cause = lines[0].strip(" #") if lines else f"exit code {done.returncode}"
        raise UserError(
            f"report: cannot render the charts of the page ({cause}); run peftkit report without a memory limit"
        )
    found = json.loads(done.stdout)
    png = {name: base64.b64decode(content) for name, content in found["png"].items()}
    return RenderedCharts(library=found["library"], svg=found["svg"], png=png)


def main() -> None:
    """Render the specifications from standard input to standard output."""
    import vl_convert

    specs = {name: {**spec, "background": "white"} for name, spec in json.load(sys.stdin).items()}
    png = {name: vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, scale=2) for name, spec in specs.items()}
    found = {
        "library": vl_convert.javascript_bundle(vl_version=VEGA_LITE),  # type: ignore[call-arg]  # missing in the stub
        "svg": {name: vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE) for name, spec in specs.items()},
        "png": {name: base64.b64encode(content).decode() for name, content in png.items()},
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
