"""Text of any origin keeps its meaning in Markdown, and the document around it keeps its structure."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from neuroscope_fast.markdown import inline, paragraph

# What Markdown is made of, so that a few hundred examples find what random text would not.
SYNTAX = r"""\ ` `` ``` ~~~ ~~ * ** _ __ # ## - + 1. 2) > | : --- === = |---| [ ] ( ) ![ ]( ][ [a]: <b>
    </b> <!--    &amp; &#33; a word 7 http://x.y \* \\ $ $$ { } ! é 你 🙂"""
SPACES = [
    "\n",
    "\n\n",
    " ",
    "  ",
    "    ",
    "\t",
    "\r",
    "\r\n",
    "\x0b",
    "\x00",
    "\x1b[31m",
    "\u2028",
    "\ud800",
    "",
]
PIECES = st.sampled_from([*SYNTAX.split(), *SPACES])
TEXTS = st.lists(PIECES | st.text(max_size=3), max_size=20).map("".join)


def parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


def blocks(document: str) -> list[str]:
    return [token.type + token.tag for token in parser().parse(document)]


def shown(document: str) -> list[str]:
    """The text that a viewer shows, a string for each run of inline text."""
    texts = []
    for token in parser().parse(document):
        if token.type == "inline":
            children = token.children or []
            kinds = {child.type for child in children} - {"text", "text_special", "softbreak", "hardbreak"}
            assert not kinds, kinds
            texts.append("".join(child.content or "\n" for child in children if child.content or "break" in child.type))
    return texts


def words(text: str) -> str:
    for code in [
        *range(0x20),
        *range(0x7F, 0xA0),
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
    ]:
        if chr(code) not in "\n\r\t":
            text = text.replace(chr(code), "\ufffd")
    return " ".join(text.split())


@given(TEXTS)
@example("1. a")
@example("a\n---")
@example("a\n\n    code")
@example("a | b\n- | -")
@example("``` x\ny")
@example("[a]: http://x.y")
@example("- \n=")
def test_a_paragraph_stays_one_and_says_the_same(text: str) -> None:
    document = f"before\n\n{paragraph(text, begins_line=True)}\n\nafter\n"
    expected = ["paragraph_openp", "inline", "paragraph_closep"] * (3 if words(text) else 2)
    assert blocks(document) == expected
    assert [" ".join(line.split()) for line in shown(document)] == [
        "before",
        *filter(None, [words(text)]),
        "after",
    ]


@given(TEXTS)
def test_a_quoted_paragraph_too(text: str) -> None:
    document = f'before\n\n**Text**: "{paragraph(text, begins_line=False)}"\n\nafter\n'
    assert blocks(document) == ["paragraph_openp", "inline", "paragraph_closep"] * 3


@given(TEXTS)
def test_a_line_stays_one(text: str) -> None:
    line = inline(text)
    assert "\n" not in line
    document = f"### x {line}\n- **Layer**: {line}\n- next\n"
    assert blocks(document)[:3] == ["heading_openh3", "inline", "heading_closeh3"]
    assert blocks(document)[3:] == [
        "bullet_list_openul",
        *(["list_item_openli", "paragraph_openp", "inline", "paragraph_closep", "list_item_closeli"] * 2),
        "bullet_list_closeul",
    ]
    assert " ".join(shown(f"x {line}\n")[0].split()) == " ".join(f"x {words(text)}".split())


@pytest.mark.parametrize(
    "text",
    [
        "model.layers.2.self_attn_attention",
        "Recursion is a method where a function calls itself. For instance, a factorial.\nAssistant: ...",
        "2025-08-18T02:20:13.943133",
        "a - b + c = d > e, 3 | 4: f(x) & g(y)! #1 [0] ~ ünïcode 你好 🙂",
        'don\'t "quote" me',
    ],
)
def test_plain_text_comes_through_byte_for_byte(text: str) -> None:
    assert paragraph(text, begins_line=True) == text
    assert inline(text) == text.replace("\n", " ")


def test_long_text_is_cut() -> None:
    assert inline("x" * 5000, limit=10) == "x" * 10 + "…"
