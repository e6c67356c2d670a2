"""What all pictures share: labels, colours, and files that are the same each time and fetch nothing."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from neuroscope_fast.errors import OptionError, RunError
from neuroscope_fast.plots import style

HOSTILE = '</title><script>alert(1)</script> --> & "$x$" \x1b[2J'


def figure(title: str = "What was found", run_name: str = "runs/one", label: str = "the") -> Figure:
    made = style.new_figure(4, 3, title, run_name)
    axes = made.add_subplot()
    axes.imshow(np.arange(6.0).reshape(2, 3), cmap=style.SEQUENTIAL)
    axes.set_xticks([0, 1, 2], [label, "b", "c"])
    return made


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("the", "the"),
        (" the", "·the"),
        ("a\nb\tc", "a↵b⇥c"),
        ("\r", r"\r"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\u202eabc", r"\u202eabc"),
        ("\ud800", r"\ud800"),
        ("", "∅"),
        ("a" * 12, "a" * 12),
        ("a" * 13, "a" * 11 + "…"),
        ("日本語", "日本語"),
        ("<b>", "<b>"),
    ],
)
def test_a_label_shows_everything_on_one_short_line(text: str, label: str) -> None:
    assert style.token_label(text) == label


def test_a_label_is_never_a_formula() -> None:
    made = figure(label=style.token_label("$x$ \\alpha$y"))
    made.draw_without_rendering()
    label = made.axes[0].get_xticklabels()[0]
    drawn, is_math = label._preprocess_math(label.get_text())
    assert (drawn, is_math) == ("$x$·\\alpha$y", False)


def test_a_limit_counts_what_is_drawn() -> None:
    assert style.token_label("$$$$", limit=4) == r"\$\$\$\$"
    assert style.token_label("$$$$$", limit=4) == r"\$\$\$…"


def test_the_kinds_can_be_told_apart_without_colour_vision() -> None:
    """Simulated as in Viénot, Brettel and Mollon 1999: linear RGB projected for protanopia and deuteranopia."""
    protan = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    deutan = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    linear = np.array([to_rgb(colour) for colour in style.CATEGORIES]) ** 2.2
    for seen in (protan, deutan):
        colours = np.clip(linear @ seen.T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
        assert apart[~np.eye(len(colours), dtype=bool)].min() > 0.1


def test_the_colour_maps_exist_and_the_sequential_one_grows_lighter_all_along() -> None:
    assert style.DIVERGING in colormaps
    lightness = colormaps[style.SEQUENTIAL](np.linspace(0, 1, 64))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()


def test_a_figure_names_its_run_and_is_titled_as_text() -> None:
    made = style.new_figure(4, 3, "a $b$ title\nof two lines", "runs/$x$")
    assert made.get_suptitle() == "a $b$ title of two lines"
    assert [text.get_text() for text in made.texts] == ["a $b$ title of two lines", "run: runs/$x$"]
    assert not any(text.get_parse_math() for text in made.texts)


def test_what_is_added_does_not_cover_the_name_of_the_run() -> None:
    made = figure()
    made.axes[0].set_xlabel("key position (token)")
    made.draw_without_rendering()
    footer = made.texts[-1].get_window_extent()
    assert made.axes[0].get_tightbbox().y0 > footer.y1
    assert made.axes[0].get_tightbbox().y1 < made.texts[0].get_window_extent().y0


def test_a_png_has_150_dots_an_inch(tmp_path: Path) -> None:
    style.save(figure(), tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (600, 450)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html", ".SVG"])
def test_the_same_figure_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        style.save(figure(), (tmp_path / name).with_suffix(suffix))
    first, second = ((tmp_path / name).with_suffix(suffix).read_bytes() for name in ("a", "b"))
    assert first == second


def test_svg_is_well_formed_and_titled(tmp_path: Path) -> None:
    style.save(figure(HOSTILE, label=style.token_label(HOSTILE, 60)), tmp_path / "a.svg")
    root = ET.parse(tmp_path / "a.svg").getroot()
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert title.text == '</title><script>alert(1)</script> --> & "$x$" \\x1b[2J'
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))


def test_html_is_one_page_that_fetches_nothing_and_takes_no_title_for_markup(tmp_path: Path) -> None:
    style.save(figure(HOSTILE, HOSTILE, style.token_label(HOSTILE, 60)), tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "default-src 'none'" in page
    assert "<title>&lt;/title&gt;&lt;script&gt;alert(1)" in page
    assert 'role="img" aria-label="&lt;/title&gt;' in page
    assert "<script" not in page
    assert "<!--" not in page
    assert page.count("<!doctype") + page.count("<!DOCTYPE") == 1
    for link in re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', page):
        assert re.match(r"#|data:image/png;base64,", "".join(link)), link
    assert set(re.findall(r"https?://[^\s\"']+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_a_letter_without_a_font_is_no_warning(tmp_path: Path) -> None:
    style.save(figure(label="\U00012000"), tmp_path / "a.png")  # pytest makes an error of a warning


def test_what_cannot_be_saved_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"a\.pdf cannot be written: a picture is \.png, \.svg or \.html"):
        style.save(figure(), tmp_path / "a.pdf")
    with pytest.raises(RunError, match=r"cannot write .*a\.png: No such file or directory"):
        style.save(figure(), tmp_path / "missing" / "a.png")


def test_importing_the_style_does_not_load_matplotlib() -> None:
    script = "import sys, neuroscope_fast.plots.style; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
