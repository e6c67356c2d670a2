"""The one line that stands for many shapes."""

import pytest
from neuroscope_fast.summary import shape_summary


@pytest.mark.parametrize(
    ("shapes", "line"),
    [
        ([], "none"),
        ([[]], "[]"),
        ([[1, 7, 64]] * 3, "[1, 7, 64]"),
        ([[1, 7, 64]] + [[1, 1, 64]] * 29, "[1, 7, 64] (first), [1, 1, 64] × 29"),
        ([[1, 1, 64]] * 29 + [[1, 7, 64]], "[1, 1, 64] × 29, [1, 7, 64] × 1"),
        ([[7], [1], [1], [5], [1]], "[7] × 1, [1] × 3, [5] × 1"),
        ([[1], [2], [3], [4]], "[1] × 1, [2] × 1, [3] × 1, [4] × 1"),
        ([[1], [2], [3], [4], [5], [5]], "[1] × 1, [2] × 1, [3] × 1, 2 other shapes × 3"),
    ],
)
def test_shapes(shapes: list[list[int]], line: str) -> None:
    assert shape_summary(shapes) == line
