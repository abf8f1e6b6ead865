"""Who is asked before the stage moves."""

from __future__ import annotations

from typing import Protocol

from .position import PositionUm


class MotionGuard(Protocol):
    """Says what may move: the instrument's interlock. It is asked before anything is sent."""

    def check_move(self, here_um: PositionUm, target_um: PositionUm) -> None:
        """RefusedError keeps the move back."""

    def check_velocity(self, velocity_um_s: float) -> None:
        """RefusedError keeps the velocity from being set, and a wave of that velocity from being started."""

    def check_servo(self) -> None:
        """RefusedError keeps the servo from being closed, and the autozero from being started."""

    def polled(self) -> None:
        """The controller has answered, just now."""

    def lost(self, why: str) -> None:
        """Position and contact are invalid: a servo was found open, or the link is lost."""

    def disarm(self, why: str) -> None:
        """Position and contact are about to become invalid, knowingly; RefusedError keeps what would do it back."""


class Unguarded:
    """No interlock: a bench, a test."""

    def check_move(self, here_um: PositionUm, target_um: PositionUm) -> None:
        """Anything may move."""

    def check_velocity(self, velocity_um_s: float) -> None:
        """As fast as the controller allows."""

    def check_servo(self) -> None:
        """At any time."""

    def polled(self) -> None:
        """Nobody waits for it."""

    def lost(self, why: str) -> None:
        """Nobody relies on it."""

    def disarm(self, why: str) -> None:
        """Nobody relies on it."""
