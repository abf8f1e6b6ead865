"""The place of the one job: what begins, and what STOP keeps from beginning."""

from __future__ import annotations

import threading

from edge.jobs import Job
from edge.runner import Runner
from edge.status import RunState


def begin(runner: Runner, work, *, stops: int, quitting: threading.Event | None = None, first=lambda: None):
    job = Job(RunState.LIVE, lambda job: None)
    return job, runner.begin(job, work, stops=stops, quitting=quitting or threading.Event(), first=first)


def test_a_job_runs_in_a_thread_of_its_name_after_what_comes_first() -> None:
    runner, seen = Runner(), []
    job, begun = begin(
        runner,
        lambda: seen.append(threading.current_thread().name),
        stops=runner.stops,
        first=lambda: seen.append("first"),
    )
    runner.join(10)
    assert (begun, seen) == (True, ["first", "job"])
    assert (runner.job, runner.running) == (job, False)


def test_what_was_asked_for_before_a_stop_does_not_begin_and_leaves_no_trace() -> None:
    runner, seen = Runner(), []
    stops = runner.stops
    runner.stop()
    _, begun = begin(runner, lambda: seen.append("work"), stops=stops, first=lambda: seen.append("first"))
    assert (begun, seen, runner.job) == (False, [], None)
    assert begin(runner, lambda: None, stops=runner.stops)[1]
    runner.join(10)


def test_nothing_begins_while_the_program_quits() -> None:
    runner, quitting = Runner(), threading.Event()
    quitting.set()
    assert not begin(runner, lambda: None, stops=runner.stops, quitting=quitting)[1]
    assert not runner.running


def test_a_stop_ends_the_job_and_does_not_wait_for_it() -> None:
    runner, go_on = Runner(), threading.Event()
    job, _ = begin(runner, lambda: go_on.wait(10), stops=runner.stops)
    runner.stop()
    assert job.stop.is_set()
    assert runner.running
    go_on.set()
    runner.join(10)
    assert not runner.running


def test_who_sees_that_stop_came_sees_the_job_ended_and_does_not_wait_for_it() -> None:
    """Else a live view that is being stopped could be begun again, with the count that the stop left behind."""
    runner, go_on = Runner(), threading.Event()
    job, _ = begin(runner, lambda: go_on.wait(10), stops=runner.stops)
    here, further = threading.Barrier(2, timeout=10), threading.Barrier(2, timeout=10)

    def pause() -> None:
        here.wait()
        further.wait()

    class SlowlySet(threading.Event):
        def set(self) -> None:
            if not self.is_set():
                pause()
            super().set()

    job.stop, job.interrupt = SlowlySet(), pause
    stopping = threading.Thread(target=runner.stop)
    stopping.start()
    seen = []
    for _ in range(2):  # while the job is told, and while what it waits for is interrupted
        here.wait()
        seen.append((runner.stops, job.stop.is_set()))
        further.wait()
    stopping.join(10)
    go_on.set()
    runner.join(10)
    assert seen == [(0, False), (1, True)]


def test_a_job_may_ask_to_wait_for_its_own_end_and_does_not() -> None:
    runner, asked = Runner(), []

    def work() -> None:
        runner.join(10)
        asked.append(True)

    begin(runner, work, stops=runner.stops)
    runner.join(10)
    assert asked == [True]
