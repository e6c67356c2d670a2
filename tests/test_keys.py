"""Tensor keys say where a tensor comes from, and can be read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from neuroscope_fast.keys import KeyParts, parse_tensor_key, tensor_key

HOOK_IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1)
COUNTS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        (KeyParts("h", 0, 0, 0, False, False), "h/000000"),
        (KeyParts("h", 0, 0, 1234567, False, False), "h/1234567"),
        (KeyParts("h", 2, 0, 1, True, False), "h/p2/000001/input"),
        (KeyParts("h", 0, 3, 1, False, True), "h/c3/000001/scale"),
        (KeyParts("h", 0, 0, 1, False, False, True), "h/000001/indices"),
        (KeyParts("p1", 2, 3, 1, True, True), "p1/p2/c3/000001/input/scale"),
    ],
)
def test_examples(parts: KeyParts, key: str) -> None:
    assert parse_tensor_key(key) == parts


@given(st.builds(KeyParts, HOOK_IDS, COUNTS, COUNTS, COUNTS, st.booleans(), st.booleans(), st.booleans()))
def test_every_key_reads_back(parts: KeyParts) -> None:
    assert parse_tensor_key(tensor_key(**parts._asdict())) == parts


@pytest.mark.parametrize(
    "key",
    [
        "",
        "h",
        "h/",
        "h/x",
        "h/p1",
        "h/000000/scale/input",
        "h/0/scale/indices",
        "h/0/indices/indices",
        "h/c1/p1/0",
        "h/0/0",
        "h/²",
        "h/٣",
    ],
)
def test_no_keys(key: str) -> None:
    assert parse_tensor_key(key) is None


@given(st.text())
def test_any_text_is_survived(text: str) -> None:
    parse_tensor_key(text)
