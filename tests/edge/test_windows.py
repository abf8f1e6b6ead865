"""What counts as a disturbed window, and that it is measured again."""

from __future__ import annotations

import numpy as np
import pytest

from edge import windows
from edge.windows import OtherWork, quiet, undisturbed


class Reading:
    def __init__(self, other_cores: float) -> None:
        self.other_cores = other_cores


def test_a_disturbed_window_is_repeated() -> None:
    work = iter([0.0, 0.5, 0.01, 0.02])
    kept, tried = undisturbed(lambda: Reading(next(work)), 3)
    assert ([one.other_cores for one in kept], tried) == ([0.0, 0.01, 0.02], 4)


def test_after_fifteen_tries_the_least_disturbed_stand() -> None:
    work = iter(np.linspace(2, 1, 20))
    kept, tried = undisturbed(lambda: Reading(next(work)), 5)
    assert tried == 15
    assert not any(map(quiet, kept))
    assert max(one.other_cores for one in kept) < 1.5


@pytest.mark.parametrize(("ours_s", "idle"), [(4.0, True), (1.0, False)])
def test_our_own_work_is_not_others(monkeypatch: pytest.MonkeyPatch, ours_s: float, idle: bool) -> None:
    monkeypatch.setattr(windows, "_busy_s", iter([100.0, 104.0]).__next__)
    spent = iter([7.0, 7.0 + ours_s])
    monkeypatch.setattr(windows, "_process_s", lambda pid: next(spent))
    others = OtherWork([])
    assert (others.cores() == 0) is idle
