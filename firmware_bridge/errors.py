"""Everything that can go wrong on the instrument's wires.

FirmwareError
  LinkError(FirmwareError)              the link failed: the position is unknown, a person is needed
    LinkTimeoutError(TimeoutError)      no answer, or not at rest, before a deadline
    ProtocolError                       an answer that cannot be the answer to the question
    ServoLostError                      a servo is open that was closed: a reboot, a power cut, the front switch
  RefusedError(FirmwareError)           the request was not carried out: nothing moved, but for a StoppedError
    OutOfRangeError(ValueError)         because a value is not a number or lies beyond a limit
    StoppedError                        because of a stop, maybe on the way: the stage holds where it came to rest
"""

from __future__ import annotations


class FirmwareError(Exception):
    """What every error of this package is."""


class LinkError(FirmwareError):
    """The link to an instrument failed, so its position is unknown."""


class LinkTimeoutError(LinkError, TimeoutError):
    """An instrument did not answer, or did not come to rest, before the deadline."""


class ProtocolError(LinkError):
    """An instrument answered something that cannot be the answer to the question."""


class ServoLostError(LinkError):
    """A servo loop is open that had been closed, so that position and contact with the sample are unknown."""


class RefusedError(FirmwareError):
    """A request was refused, by us or by the controller. Nothing moved, unless it is a StoppedError.

    Parameters
    ----------
    message : str
        What happened, what was expected, what to do.
    code : int, optional
        The controller's error number, where it was the controller that refused.
    """

    def __init__(self, message: str, *, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class OutOfRangeError(RefusedError, ValueError):
    """A value is not a finite number or lies beyond a limit. Nothing moved."""


class StoppedError(RefusedError):
    """A move was cut short by a stop. The stage holds where it came to rest."""
