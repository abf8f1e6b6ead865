"""The shipped neural lens in staged form on the appliance's engines: frame by frame what the merged form shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.cameras.microscope import draw_specimen, fitted, optics_of
from edge.config import Config
from edge.devices import Engine
from edge.engine import Backend, find_bundle, load_engine
from export import graph
from export.files import sha256_of
from export.manifest import load_bundle, write_manifest
from export.staged import magnifiers, staged

SIDE_PX = 256


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of the merged and of the staged form."""
    whole = find_bundle("neural-lens-mini")
    folder = tmp_path_factory.mktemp("staged") / whole.name
    shutil.copytree(whole.folder, folder)
    model = graph.read_model(folder / "model.onnx")
    (folder / "model.onnx").write_bytes(staged(model, magnifiers(model)).SerializeToString())
    changes = {"sha256": sha256_of(folder / "model.onnx"), "form": "staged"}
    write_manifest(whole.manifest().model_copy(update=changes), folder / "model.json")
    return [whole.folder, folder]


def fields() -> list[NDArray[np.uint8]]:
    """Empty slides and pollen in turn, so that each network is left out, and comes back."""
    config = fitted(Config(), find_bundle("neural-lens-mini").manifest())
    specimen = draw_specimen(config, optics_of(config.optics))()
    pollen = np.round(255 * 0.7 * (0.55 * specimen[:SIDE_PX, :SIDE_PX] + 0.45)).astype(np.uint8)
    empty = np.full((SIDE_PX, SIDE_PX), 100, np.uint8)
    return [empty, pollen, empty, pollen, pollen.T.copy(), empty]


def shown(engine: Engine) -> list[dict[str, NDArray[np.uint8]]]:
    slot = engine.allocate(1).acquire(timeout_s=0)
    made = []
    for field in fields():
        slot[:] = field
        made.append({name: output.copy() for name, output in engine.infer(slot).items()})
    engine.close()
    return made


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_it_shows_what_the_merged_form_shows(backend: Backend, folders: list[Path]) -> None:
    whole, parts = (
        shown(
            load_engine(
                load_bundle(folder),
                frame_shape_px=(SIDE_PX, SIDE_PX),
                pixel_format="mono8",
                bit_depth=8,
                backend=backend,
                hint="f32",
            )
        )
        for folder in folders
    )
    for wanted, found in zip(whole, parts, strict=True):
        for name, picture in wanted.items():
            np.testing.assert_array_equal(found[name], picture, err_msg=name)
    assert not whole[0]["magnified"].any()
    assert whole[1]["magnified"].any()
