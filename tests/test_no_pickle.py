"""Nothing that is read can run code: the package has no decoder that would."""

from __future__ import annotations

import re
from pathlib import Path

import neuroscope_fast
import pytest

PACKAGE = Path(neuroscope_fast.__file__).parent
CHECKOUT = Path(__file__).parent.parent
SOURCES = {".py", ".pyi", ".cpp", ".hpp", ".h", ".cu"}
FORBIDDEN = re.compile(
    r"pickle|torch\.load|\bmarshal\b|\bshelve\b|\bdill\b|\bjoblib\b|yaml\.|allow_pickle|np\.load|numpy\.load"
    r"|\beval\s*\(|\bexec\s*\(|__import__\s*\("
)
ALLOWED: dict[str, re.Pattern[str]] = {
    "model.eval()": re.compile(r"\.eval\(\)"),  # the mode of a torch module
}


def forbidden(text: str) -> list[str]:
    """The lines that hold what is not allowed."""
    for pattern in ALLOWED.values():
        text = pattern.sub("", text)
    return [line for line in text.splitlines() if FORBIDDEN.search(line)]


def test_there_is_no_such_thing() -> None:
    folders = [PACKAGE, CHECKOUT / "csrc"]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in SOURCES]
    assert len(files) > 100
    found = {path.name: lines for path in files if (lines := forbidden(path.read_text()))}
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "torch.load(path)",
        "marshal.loads(b)",
        "shelve.open(x)",
        "eval(text)",
        "exec (text)",
        "import dill",
    ],
)
def test_the_search_finds_it(line: str) -> None:
    assert forbidden(line)


def test_what_is_no_decoder_is_let_through() -> None:
    assert not forbidden("model.eval()\nself._execute(x)\nretrieval(x)\nexecutor.submit(x)\nmarshalling")
