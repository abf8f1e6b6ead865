"""What a focus stage needs of a motor controller, such as `xps` and `esp301` have, and of the interlock."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Range(NamedTuple):
    """The positions from `low` to `high`, both included, um."""

    low: float
    high: float


class FocusAxis(Protocol):
    """One motor of a controller, in its own unit, mm. Errors are FirmwareErrors.

    Attributes
    ----------
    identity : str
        What the controller says that it is.
    """

    identity: str

    def limits_mm(self) -> tuple[float, float]:
        """The controller's own travel limits."""

    def set_limits_mm(self, low_mm: float, high_mm: float) -> None:
        """Make the controller refuse what lies beyond, whoever asks for it."""

    def position_mm(self) -> float:
        """Measured."""

    def check_ready(self) -> None:
        """Refuse (RefusedError) if a move would not move or would not know where: motor off, not referenced."""

    def start(self, target_mm: float) -> None:
        """Begin a move, and return when the controller has accepted it."""

    def moving(self) -> bool:
        """Whether a move is under way. The error of a move that failed is raised here, once."""

    def stop(self) -> None:
        """Stop at once, past any request that waits, from any thread."""

    def home(self, timeout_s: float) -> None:
        """Search the reference through the whole travel, and wait until it is found."""

    def close(self) -> None:
        """Give the controller back. Idempotent."""


class FocusGuard(Protocol):
    """Who says whether the focus may move: the interlock."""

    def check_focus(self, here_um: float, target_um: float) -> None:
        """RefusedError: nothing is sent."""
