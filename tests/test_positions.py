"""The positions of a hook, in all their forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from neuroscope_fast.errors import HookError
from neuroscope_fast.spec import (
    HookSpec,
    parse_hooks,
    position_slice,
)

LAYER = "model.layers.3"


def spec(**fields: object) -> HookSpec:
    return HookSpec(**{"layer_name": LAYER, "component": "mlp", **fields})


def refused(hooks: object) -> str:
    with pytest.raises(HookError) as caught:
        parse_hooks(hooks)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given_form", "normal"),
    [
        ("all", "all"),
        ("last", "last"),
        (":", "all"),
        ("0:", "all"),
        ("::1", "all"),
        (slice(None), "all"),
        ("2:", "2:"),
        (" 2 : 5 : 1 ", "2:5"),
        (slice(2, None), "2:"),
        (":-1", ":-1"),
        (slice(None, -1), ":-1"),
        ("::2", "::2"),
        (slice(None, None, 2), "::2"),
        ("-4:-1", "-4:-1"),
        ("1:-1:3", "1:-1:3"),
        ([3, 0, -1], [3, 0, -1]),
        ((1, 2), [1, 2]),
        (range(3), [0, 1, 2]),
    ],
)
def test_positions(given_form: object, normal: object) -> None:
    assert parse_hooks(spec(positions=given_form))[0].positions == normal
    assert parse_hooks({"layer_name": LAYER, "component": "mlp", "positions": given_form})[0].positions == normal


@pytest.mark.parametrize(
    "wrong",
    [
        "first",
        "",
        "1",
        "1:2:3:4",
        "a:b",
        "::0",
        "::-1",
        "5:2",
        "3:3",
        "-2:-5",
        ":0",
        [],
        [1, 1],
        [True],
        [1.5],
        ["1"],
        3,
        1.5,
        None,
        {"a": 1},
        b"12",
        [2**63],
        f"{2**63}:",
        slice("a", None),
        slice(0, 4, 0),
        "\u0661:",
    ],
)
def test_wrong_positions(wrong: object) -> None:
    assert "positions" in refused(spec(positions=wrong))


slices = st.builds(
    slice,
    st.none() | st.integers(-20, 20),
    st.none() | st.integers(-20, 20),
    st.none() | st.integers(1, 5),
)


@given(slices)
def test_a_slice_means_the_same_after_normalising(chosen: slice) -> None:
    try:
        normal = parse_hooks(spec(positions=chosen))[0].positions
    except HookError:  # only for what selects nothing, however long the sequence
        assert all(not list(range(length))[chosen] for length in range(50))
        return
    assert isinstance(normal, str)
    assert parse_hooks(spec(positions=normal))[0].positions == normal
    for length in range(50):
        assert list(range(length))[position_slice(normal)] == list(range(length))[chosen]
