"""The sentence that `bench` ends with says what the figures say."""

from __future__ import annotations

import pytest
from neuroscope_fast.cost_report import ContestantCost, busy, conclusion
from neuroscope_fast.racing import Spread


def cost(low: float, middle: float, high: float, tensor: tuple[float, float, float]) -> ContestantCost:
    def spread(low: float, middle: float, high: float) -> Spread:
        return Spread(middle, low, high, 10)

    return ContestantCost(
        "disk",
        tensors=72,
        returned_ratio=spread(low, middle, high),
        ended_ratio=spread(low + 0.1, middle + 0.1, high + 0.1),
        tensor_us=spread(*tensor),
        entering_ms=spread(9.0, 10.0, 11.0),
        leaving_ms=spread(19.0, 20.0, 21.0),
    )


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        (cost(1.03, 1.04, 1.052, (3.0, 4.0, 5.0)), "makes generate 4.0 % slower until it returns (3.0 % to 5.2 %)"),
        (cost(0.85, 1.04, 1.5, (-3.0, 4.0, 9.0)), "slows generate by 4.0 %, which is within this machine's noise (-15"),
        (cost(0.85, 0.95, 0.99, (-3.0, 4.0, 9.0)), "leaves generate as fast as it is without (-15 % to -1.0 %"),
    ],
)
def test_slower_or_lost_in_noise(figures: ContestantCost, says: str) -> None:
    told = conclusion(figures, 3)
    assert told.startswith("Capturing 3 places to this disk ")
    assert says in told
    assert f", until all is durable by {14 if figures.ended_ratio.median > 1.1 else 5}" in told
    assert "30 ms are paid once a capture" in told
    lost = "what its 72 tensors cost the passes is lost in noise."
    assert told.endswith(lost if figures.tensor_us.p20 < 0 else "each of its 72 tensors costs the passes 4 µs.")


def test_without_figures() -> None:
    told = conclusion(ContestantCost("disk", refused="not timed: it is upside down"), 1)
    assert told == "Capturing 1 place to this disk has no figure: not timed: it is upside down."


def test_a_busy_machine_is_told() -> None:
    assert busy({"load_average": [0.2, 3.0, 3.0], "cores": 2}) == []
    (warning,) = busy({"load_average": [1.9, 0.0, 0.0], "cores": 2})
    assert "load 1.9 on 2 cores" in warning
