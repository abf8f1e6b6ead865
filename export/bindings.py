"""What using TensorRT's Python bindings takes, in the builder and in the engine: a logger, and no answer left unread.

TensorRT is imported when it is needed: only a Jetson has it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from export.errors import PlanError

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)

OLDEST, NEWEST = (10, 3), (11, 4)
"""The releases whose Python interface this code was checked against."""

_T = TypeVar("_T")


def make_logger() -> Any:
    """A TensorRT logger that forwards to `logging` and keeps the last errors for the message that needs them."""
    import tensorrt as trt

    class ForwardingLogger(trt.ILogger):  # type: ignore[misc]  # Any where TensorRT is not installed
        """Called by any of TensorRT's threads."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=5)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(msg)
                log.error("TensorRT: %s", msg)
            elif severity == trt.ILogger.WARNING:
                log.warning("TensorRT: %s", msg)
            else:
                log.debug("TensorRT: %s", msg)

    return ForwardingLogger()


def why(logger: Any) -> str:
    """TensorRT's last errors, as the end of a sentence; told once, or they would explain what fails later, too."""
    said = "; ".join(logger.errors) or "it gave no reason"
    logger.errors.clear()
    if "out of memory" in said.lower() or "outofmemory" in said.lower():
        said += ". The GPU's memory is full: close other programs, or take a smaller model or smaller frames"
    return said


def checked(value: _T | None, what: str, logger: Any) -> _T:
    """``value``, unless it is None or False: TensorRT returns these where others raise, and an ignored one is zeros.

    Raises
    ------
    PlanError
        "TensorRT ``what``", and what it logged.
    """
    if value is None or value is False:
        raise PlanError(f"TensorRT {what}: {why(logger)}")
    logger.errors.clear()  # it went well in the end
    return value


def started(make: Callable[[], _T], logger: Any) -> _T:
    """What ``make`` constructs; the bindings raise a TypeError where the library gives them nothing."""
    try:
        return make()
    except (TypeError, RuntimeError) as exc:
        raise PlanError(f"TensorRT does not start: {why(logger) if logger.errors else exc}") from exc


def check_release() -> str:
    """The release of the TensorRT that is installed.

    Raises
    ------
    PlanError
        None is, or it is older than 10.3. A newer one than this was checked against is a warning.
    """
    try:
        import tensorrt as trt
    except ImportError as exc:
        raise PlanError(
            f"TensorRT cannot be imported ({exc}). It comes with JetPack: use the system's Python, or a virtual "
            "environment made with --system-site-packages."
        ) from exc
    version = str(trt.__version__)
    release = tuple(int(part) for part in version.split(".")[:2])
    if release < OLDEST:
        raise PlanError(f"TensorRT {version} is too old: 10.3 to 11.4 are supported (JetPack 6 and newer).")
    if release > NEWEST:
        log.warning("TensorRT %s is newer than 11.4, the newest this was checked against", version)
    return version
