"""The race of contestants: who is timed, in which order, and what is made of the seconds."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest
from neuroscope_fast.racing import CheckError, Contestant, percentile, race, ratios, spread


def contestant(name: str, ran: list[str], seconds: float = 1.0, wrong: str | None = None) -> Contestant:
    def work() -> float:
        ran.append(name)
        return seconds

    def check() -> None:
        if wrong is not None:
            raise CheckError(wrong)

    return Contestant(name, work, check)


def test_contestants_take_turns_and_the_order_turns() -> None:
    ran: list[str] = []
    rows = race([contestant(name, ran) for name in "abc"], rounds=6)
    assert "".join(ran) == "abc" + "abc" + "cba" + "bca" + "acb" + "cab" + "bac"
    assert [len(row.rounds) for row in rows] == [6, 6, 6]


def test_what_fails_its_check_never_runs() -> None:
    ran: list[str] = []
    good, bad = race([contestant("good", ran), contestant("bad", ran, wrong="it is upside down")], rounds=2)
    assert set(ran) == {"good"}
    assert (good.refused, bad.refused, bad.rounds) == (None, "not timed: it is upside down", [])
    assert ratios([good, bad], "good") == {}


def test_ratios_are_taken_within_a_round() -> None:
    slow, fast = race([contestant("slow", [], 3.0), contestant("fast", [], 2.0)], rounds=4)
    slow.rounds, fast.rounds = [3.0, 30.0, 300.0, 3000.0], [2.0, 20.0, 200.0, 2000.0]
    assert ratios([slow, fast], "fast")["slow"] == {"median": 1.5, "p20": 1.5, "p80": 1.5, "rounds": 4}


def test_collections_go_on_after_a_round_that_failed() -> None:
    def broken() -> float:
        raise ZeroDivisionError

    frozen = gc.get_freeze_count()
    with pytest.raises(ZeroDivisionError):
        race([Contestant("broken", broken, lambda: None)], rounds=1, warm_up=0)
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


@pytest.mark.parametrize("count", [1, 2, 3, 10, 57])
def test_percentiles_are_numpys(count: int) -> None:
    values = [random.Random(count).gauss(0, 1) for _ in range(count)]
    for part in (0.0, 0.2, 0.5, 0.8, 1.0):
        assert percentile(values, part) == pytest.approx(np.percentile(values, 100 * part), rel=1e-12)
    assert spread(values)["rounds"] == count
