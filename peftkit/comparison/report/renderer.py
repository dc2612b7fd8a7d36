"""Vega-Lite specifications to SVG and PNG by vl-convert, and the library that draws them in a page.

In a process of its own: the engine inside reserves more address space than a memory limit may leave, and ends the
process that asks for it. As a program it reads specifications from standard input and writes all as JSON.
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
class Drawn:
    """What was drawn.

    Attributes:
        library: JavaScript that gives a page `vegaEmbed`.
        svg: By the picture's name.
        png: The same, at twice the size in pixels.
    """

    library: str
    svg: Mapping[str, str]
    png: Mapping[str, bytes]


def draw(specs: Mapping[str, Mapping[str, Any]]) -> Drawn:
    """Draw every specification. Raises UserError when the engine does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "peftkit.comparison.report.renderer"],
        input=json.dumps(specs).encode(),
        capture_output=True,
    )
    if done.returncode:
        words = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip(" #")]
        raise UserError(
            f"the page can't be drawn here ({words[0].strip(' #') if words else f'exit code {done.returncode}'}); "
            "where memory is limited, run peftkit report without the limit"
        )
    found = json.loads(done.stdout)
    png = {name: base64.b64decode(content) for name, content in found["png"].items()}
    return Drawn(library=found["library"], svg=found["svg"], png=png)


def main() -> None:
    """Standard input to standard output."""
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
