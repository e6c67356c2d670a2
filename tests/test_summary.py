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
        ([[1], [2], [3], [4]], "[1 to 4]"),
        ([[1], [3], [5], [7], [9], [9]], "[1] × 1, [3] × 1, [5] × 1, 2 other shapes × 3"),
        ([[1], [2], [3], [3]], "[1 to 3]"),
        ([[1], [2], [7], [8]], "[1] × 1, [2] × 1, [7] × 1, [8] × 1"),
        ([[4, 3, 3], [4, 1, 4], [4, 1, 5], [4, 1, 6]], "[4, 3, 3] (first), [4, 1, 4 to 6] × 3"),
        ([[1, 9], [1, 2], [2, 2], [3, 2], [9, 2]], "[1, 9] × 1, [1 to 3, 2] × 3, [9, 2] × 1"),
    ],
)
def test_shapes(shapes: list[list[int]], line: str) -> None:
    assert shape_summary(shapes) == line
