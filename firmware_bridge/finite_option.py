"""A number on the command line: click's FloatRange lets NaN through, and infinity where there is no upper bound."""

from __future__ import annotations

import math
from typing import Any

import click


class FiniteRange(click.FloatRange):
    """A finite number within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert it, or fail."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


FINITE, POSITIVE, NOT_NEGATIVE = FiniteRange(), FiniteRange(min=0.0, min_open=True), FiniteRange(min=0.0)
