"""What all pictures share: figures with a title and the run's name, colours, token labels, and how they are saved.

The colours can be told apart by colour-blind people: cividis (Nuñez et al. 2018, *Optimizing colormaps with
consideration for color vision deficiency*, doi:10.1371/journal.pone.0199239) for amounts, purple to orange for
signed values, and the eight of Okabe and Ito (2008, https://jfly.uni-koeln.de/color/) for kinds.
"""

from __future__ import annotations

import html
import io
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, RunError, one_line
from ..manifest import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEQUENTIAL = "cividis"
DIVERGING = "PuOr_r"
CATEGORIES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442"]
"""Yellow, which is faint on white, comes last."""

_MARGIN = 0.22  # inches at the bottom, where the run's name stands
_LONGEST_TITLE = 160  # characters
_VISIBLE = {" ": "·", "\n": "↵", "\t": "⇥"}
_FONTS_OF_OTHER_SCRIPTS = ["Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "Arial Unicode MS", "Hiragino Sans"]
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 1rem; background: #fff; }}
svg {{ display: block; margin: 0 auto; max-width: 100%; height: auto; }}
</style>
</head>
<body>
{svg}
</body>
</html>
"""


def new_figure(width_inches: float, height_inches: float, title: str, run_name: str) -> Figure:
    """An empty figure with `title` on top and the run's name in its footer; what is added is laid out between them."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    below = _MARGIN / height_inches
    layout = ConstrainedLayoutEngine(rect=(0, below, 1, 1 - below))
    figure = Figure(figsize=(width_inches, height_inches), layout=layout, facecolor="white")
    figure.suptitle(_cut(one_line(title)), fontsize=12, parse_math=False)
    figure.text(
        1 - 0.08 / width_inches,
        0.06 / height_inches,
        _cut(f"run: {one_line(run_name)}"),
        ha="right",
        va="bottom",
        fontsize=7,
        color="0.35",
        parse_math=False,
    )
    return figure


def of_sequence(prompt: int, row: int) -> str:
    """For a title: which sequence of the run it is, where it is not the first."""
    named = [f"{name} {number}" for name, number in (("prompt", prompt), ("row", row)) if number]
    return f" ({', '.join(named)})" if named else ""


def token_label(text: str, limit: int = 12) -> str:
    """A token as a label of an axis: one line of at most `limit` characters in which everything can be seen.

    A space is `·`, a line break `↵`, a tab `⇥`, what cannot be printed its escape (`\\x1b`), no text at all `∅`.
    `$` is escaped for matplotlib, which else takes what stands between two of them for a formula; the backslash is
    not drawn, and does not count.
    """
    if not text:
        return "∅"
    shown = "".join(
        _VISIBLE.get(each) or (each if each.isprintable() else each.encode("unicode_escape").decode())
        for each in text[: limit + 1]
    )
    if len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return shown.replace("$", r"\$")


def check_suffix(target: Path) -> str:
    """The end of a picture's name. Raises OptionError for one that no picture has."""
    suffix = target.suffix.lower()
    if suffix not in (".png", ".svg", ".html"):
        raise OptionError(f"{target} cannot be written: a picture is .png, .svg or .html, by the end of its name")
    return suffix


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as `.png` (150 dots an inch), `.svg`, or `.html`: a page with the SVG in it that fetches nothing.

    The same figure gives the same bytes each time. Letters are drawn as outlines, so that they look the same on
    a machine without the font. Raises OptionError for another suffix, RunError where the file cannot be written.
    """
    target = Path(path)
    suffix = check_suffix(target)
    if suffix == ".png":
        data = _drawn(figure, "png", {"Title": _title(figure), "Software": None})
    else:
        svg = _drawn(figure, "svg", {"Title": _title(figure), "Date": None, "Creator": None})
        data = svg if suffix == ".svg" else _page(_title(figure), svg.decode()).encode()
    write(target, data)


def write(target: Path, data: bytes) -> None:
    """Replace a file in one step. Raises RunError."""
    try:
        replace_file(target, data)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror}") from error


def _cut(text: str) -> str:
    half = _LONGEST_TITLE // 2
    return text if len(text) <= _LONGEST_TITLE else f"{text[:half]} … {text[-half:]}"


def _title(figure: Figure) -> str:
    return figure.get_suptitle() or "figure"


def _drawn(figure: Figure, format: str, metadata: dict[str, str | None]) -> bytes:
    import matplotlib
    from matplotlib.font_manager import fontManager

    there = set(fontManager.get_font_names())
    fonts = ["DejaVu Sans", *(name for name in _FONTS_OF_OTHER_SCRIPTS if name in there)]
    options: dict[Any, Any] = {"font.sans-serif": fonts, "svg.fonttype": "path", "svg.hashsalt": "neuroscope-fast"}
    out = io.BytesIO()
    with matplotlib.rc_context(options), warnings.catch_warnings():
        # A letter that no font here has is drawn as an empty box, which says so by itself.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(out, format=format, dpi=150, metadata=metadata)
    return out.getvalue()


def _page(title: str, svg: str) -> str:
    """A page with the SVG in it, less what only a file of its own needs."""
    inner = re.compile("<!--.*?-->|<metadata>.*?</metadata>|<title>.*?</title>", re.DOTALL)
    drawing = inner.sub("", svg[svg.index("<svg ") :])
    name = html.escape(title)
    drawing = drawing.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
    return _PAGE.format(title=name, svg=drawing.strip())
