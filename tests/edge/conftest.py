"""What the tests of the appliance share: a bundle that needs no training, and a clock that needs no waiting."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.bundles import make_bundle, make_lens_bundle


@pytest.fixture(scope="session")
def identity_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose output is its input."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "identity")


@pytest.fixture(scope="session")
def lens_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tests.bundles.make_lens_bundle` says."""
    return make_lens_bundle(tmp_path_factory.mktemp("bundle") / "lens")


@pytest.fixture
def new_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Make a bundle with the arguments of `tests.bundles.make_bundle`."""
    made = itertools.count()
    return lambda **options: make_bundle(tmp_path / f"bundle-{next(made)}", **options)


@pytest.fixture
def frames() -> np.ndarray:
    """Twelve different 8-bit frames, (12, 64, 96)."""
    return np.random.default_rng(7).integers(0, 256, (12, 64, 96), dtype=np.uint8)


@pytest.fixture(scope="session")
def small_specimen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image file to put under the simulated sphere: quicker than drawing the 127 um demonstration specimen."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(20, 236, (64, 64), np.uint8)
    path = tmp_path_factory.mktemp("specimen") / "blocks.tif"
    tifffile.imwrite(path, np.kron(blocks, np.ones((16, 16), np.uint8)))
    return path
