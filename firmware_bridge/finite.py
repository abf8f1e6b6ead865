"""Refuses a bound that is no bound: nothing compares with NaN, so a limit or a deadline of NaN is none."""

from __future__ import annotations

import math

from .errors import OutOfRangeError


def check_positive(**values: float | None) -> None:
    """Refuse what is not finite, or not above 0; None is left out.

    Raises
    ------
    OutOfRangeError
        Names what it is.

    >>> check_positive(timeout_s=1.0, max_step_um=None)
    >>> check_positive(timeout_s=float("nan"))
    Traceback (most recent call last):
    ...
    firmware_bridge.errors.OutOfRangeError: timeout_s = nan: expected a finite number above 0
    """
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise OutOfRangeError(f"{name} = {value}: expected a finite number above 0")
