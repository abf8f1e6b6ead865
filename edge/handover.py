"""One engine takes the place of another: the one that was made meanwhile, or the CPU's when the GPU failed.

All of it happens between two jobs. Each function returns the notice that the page shows of it, or None for none.
"""

from __future__ import annotations

import logging

from edge.engine.builder import BuildProgress
from edge.errors import EdgeError, EngineError
from edge.instrument import Instrument
from edge.problems import Notice

log = logging.getLogger(__name__)


def being_made(progress: BuildProgress) -> Notice:
    """Nothing runs before the engine is made."""
    return Notice("An engine is being made", _words(progress), "note")


def made_meanwhile(instrument: Instrument) -> Notice | None:
    """Another engine runs while one is made."""
    if instrument.making is None or instrument.making.done:
        return None
    words = f"{_words(instrument.making.progress)} Then it takes over by itself."
    return Notice(f"{what_runs(instrument)} while an engine is made", words, "note")


def take_over(instrument: Instrument) -> Notice | None:
    """Put the engine that was made in the place of the one that stood in for it. Only while no job runs, and once it is
    done.
    """
    making = instrument.making
    if making is None or not making.done:
        return None
    failure = making.failure
    if failure is None:
        instrument.adopt(making.made())
        log.info("%s takes over", what_runs(instrument))
        return None
    instrument.making = None
    log.error("no engine could be made: %s", failure, exc_info=None if isinstance(failure, EdgeError) else failure)
    words = f"{failure or type(failure).__name__} Restart the program to try again."
    return Notice(f"{what_runs(instrument)}: no engine could be made", words, "warning")


def give_up(instrument: Instrument, failure: EngineError) -> Notice:
    """Close a TensorRT engine that failed while it ran, and let the CPU stand in for it where it may.

    Where it may not, or cannot, the instrument is broken: it is to be opened anew.
    """
    name = instrument.engine.manifest.name
    instrument.broken = True
    instrument.engine.close()
    if instrument.config.engine.fallback is None:
        words = f'{failure} Then start again. [engine] fallback = "openvino" lets the CPU stand in.'
        return Notice(f"{name} stopped on tensorrt", words)
    try:
        instrument.stand_in(str(failure))
    except EdgeError as exc:
        log.error("nothing stands in for TensorRT: %s", exc)
        return Notice(f"{name} stopped on tensorrt", f"{failure} Nor does the CPU run it: {exc}")
    log.warning("%s: %s", what_runs(instrument), failure)
    words = f"{failure} Restart the program to try the GPU again."
    return Notice(f"{what_runs(instrument)}: TensorRT failed", words, "warning")


def what_runs(instrument: Instrument) -> str:
    """The model, and what it runs on."""
    return f"{instrument.engine.manifest.name} runs on {instrument.engine.backend} in {instrument.engine.precision}"


def _words(progress: BuildProgress) -> str:
    done = "" if progress.fraction is None else f", {100 * progress.fraction:.0f} of 100"
    return f"{progress.model} for TensorRT, {progress.precision}: {progress.phase}{done}. It takes minutes."
