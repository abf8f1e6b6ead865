"""Who comes after an engine, and whether the view that it broke off goes on. With the whole daemon: test_making."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edge.errors import EngineError
from edge.handover import Succession
from edge.problems import Problems


def engine(backend: str) -> SimpleNamespace:
    return SimpleNamespace(backend=backend, precision="f32", manifest=SimpleNamespace(name="gain"), close=lambda: None)


@pytest.fixture
def instrument() -> Any:
    """One that runs on the CPU, and may fall back on nothing."""
    config = SimpleNamespace(engine=SimpleNamespace(fallback=None))
    found = SimpleNamespace(engine=engine("openvino"), broken=False, making=None, config=config)

    def adopt(made: Any) -> None:
        found.engine, found.making = made, None

    found.adopt = adopt
    return found


def test_a_view_that_was_broken_off_goes_on_until_something_speaks_against_it_and_then_never(instrument: Any) -> None:
    succession = Succession(Problems())
    assert not succession.resumes(instrument, stops=0, hands_off=False)
    for against in ({"stops": 4, "hands_off": False}, {"stops": 3, "hands_off": True}):
        succession.broken_off = 3
        assert succession.resumes(instrument, stops=3, hands_off=False)
        assert not succession.resumes(instrument, **against)
        assert not succession.resumes(instrument, stops=3, hands_off=False)


def test_nothing_goes_on_on_an_engine_that_nobody_stands_in_for(instrument: Any) -> None:
    problems = Problems()
    succession = Succession(problems)
    succession.give_up(instrument, EngineError("The GPU is lost."), resume=3)
    assert instrument.broken
    assert succession.broken_off is None
    assert [problem.what_to_do.partition(" Then")[0] for problem in problems.all()] == ["The GPU is lost."]


def test_an_engine_that_was_made_waits_for_the_end_of_the_job_but_a_failure_is_said_at_once(instrument: Any) -> None:
    problems = Problems()
    succession = Succession(problems)
    made = engine("tensorrt")
    instrument.making = SimpleNamespace(done=True, failure=None, made=lambda: made)
    succession.take_over(instrument, running=True)
    assert instrument.engine is not made
    succession.take_over(instrument, running=False)
    assert instrument.engine is made
    assert problems.all() == ()
    instrument.making = SimpleNamespace(done=True, failure=EngineError("The disk is full."))
    succession.take_over(instrument, running=True)
    assert instrument.making is None
    assert problems.all()[0].title == "gain runs on tensorrt in f32: no engine could be made"
