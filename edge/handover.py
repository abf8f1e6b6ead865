"""One engine takes the place of another: the one that was made meanwhile, or the CPU's when the GPU failed.

All of it happens between two jobs.
"""

from __future__ import annotations

import logging

from edge.engine import find_bundle
from edge.engine.builder import BuildJob, BuildProgress
from edge.errors import EdgeError, EngineError
from edge.instrument import Instrument
from edge.making import stand_in
from edge.pipeline import SLOTS
from edge.problems import Notice, Problems

log = logging.getLogger(__name__)


class Succession:
    """Which engine comes next, what the page is told of it, and whether a live view that its engine broke off goes on.

    It owns the notice "engine" of the Health list.

    Attributes
    ----------
    broken_off : int or None
        How often STOP had come when the endless live view began that its engine broke off, and that is to go on.
    """

    def __init__(self, problems: Problems) -> None:
        self.broken_off: int | None = None
        self._problems = problems

    def being_made(self, progress: BuildProgress) -> None:
        """Nothing runs before the engine is made."""
        self._put(Notice("An engine is being made", _words(progress), "note"))

    def settled(self) -> None:
        """None is being made any more, and nothing is wrong with the one that runs, if one does."""
        self._put(None)

    def made_meanwhile(self, instrument: Instrument) -> None:
        """While another engine runs."""
        making = instrument.making
        if making is not None and not making.done:
            words = f"{_words(making.progress)} Then it takes over by itself."
            self._put(Notice(f"{_what_runs(instrument)} while an engine is made", words, "note"))

    def take_over(self, instrument: Instrument, *, running: bool) -> None:
        """Put the engine that was made, if it is, in the place of the one that stood in for it.

        While a job is ``running`` it waits for the job's end; that none could be made is said at once.
        """
        making = instrument.making
        if making is None or not making.done:
            return
        failure = making.failure
        if failure is not None:
            instrument.making = None
            log.error(
                "no engine could be made: %s", failure, exc_info=None if isinstance(failure, EdgeError) else failure
            )
            words = f"{failure or type(failure).__name__} Restart the program to try again."
            self._put(Notice(f"{_what_runs(instrument)}: no engine could be made", words, "warning"))
        elif not running:
            instrument.adopt(making.made())
            log.info("%s takes over", _what_runs(instrument))
            self._put(None)

    def give_up(self, instrument: Instrument, failure: EngineError, *, resume: int | None) -> None:
        """Close a TensorRT engine that failed while it ran, and let the CPU stand in for it where it may.

        Where it may not, or cannot, the instrument is broken: it is to be opened anew. ``resume`` is what
        :attr:`broken_off` is to be where the CPU stands in.
        """
        instrument.broken = True
        instrument.engine.close()
        self._put(_fallen_back(instrument, failure))
        self.broken_off = None if instrument.broken else resume

    def resumes(self, instrument: Instrument, *, stops: int, hands_off: bool) -> bool:
        """Whether a live view was broken off and goes on: not after STOP, nor where a person has to look first.

        Once it does not, it never does.
        """
        if instrument.broken or hands_off or self.broken_off != stops:
            self.broken_off = None
        return self.broken_off is not None

    def _put(self, notice: Notice | None) -> None:
        self._problems.put("engine", notice)


def _fallen_back(instrument: Instrument, failure: EngineError) -> Notice:
    name = instrument.engine.manifest.name
    if instrument.config.engine.fallback is None:
        words = f'{failure} Then start again. [engine] fallback = "openvino" lets the CPU stand in.'
        return Notice(f"{name} stopped on tensorrt", words)
    try:
        job = BuildJob(find_bundle(instrument.config.engine.model), instrument.counts)
        instrument.adopt(stand_in(job, str(failure), SLOTS))
    except EdgeError as exc:
        log.error("nothing stands in for TensorRT: %s", exc)
        return Notice(f"{name} stopped on tensorrt", f"{failure} Nor does the CPU run it: {exc}")
    log.warning("%s: %s", _what_runs(instrument), failure)
    words = f"{failure} Restart the program to try the GPU again."
    return Notice(f"{_what_runs(instrument)}: TensorRT failed", words, "warning")


def _what_runs(instrument: Instrument) -> str:
    return f"{instrument.engine.manifest.name} runs on {instrument.engine.backend} in {instrument.engine.precision}"


def _words(progress: BuildProgress) -> str:
    done = "" if progress.fraction is None else f", {100 * progress.fraction:.0f} of 100"
    return f"{progress.model} for TensorRT, {progress.precision}: {progress.phase}{done}. It takes minutes."
