"""What a test does where a part of the test bench is not there."""

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """A failure in CI, a skip with its reason on a user's machine."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
