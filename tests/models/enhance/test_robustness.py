"""Curves fall where conditions get worse, and turning the specimen changes nothing but the drawing."""

import os

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("skimage", reason="needs the extra [train]")

from models.enhance import robustness
from models.evaluate import Subject
from models.recipe import read_recipe


@pytest.fixture
def subject() -> Subject:
    recipe = read_recipe("enhance-rt")
    return Subject("tested", "enhance", lambda i: {"enhanced": i}, 1, 32, recipe.pixel_size_nm, ("enhanced",), recipe)


@pytest.mark.slow
def test_noise_and_defocus_cost_the_classical_method_its_gain(
    monkeypatch: pytest.MonkeyPatch, subject: Subject
) -> None:
    monkeypatch.setattr(robustness, "_SWEEPS", {"photons": (250.0, 16000.0), "defocus_um": (0.0, 0.8)})
    curves = robustness.curves(subject)
    assert len(curves) == 4
    noisy, clean = curves["epi against photons"]["series"]["wiener"]
    sharp, soft = curves["psnr_corrected_db against defocus_um"]["series"]["wiener"]
    assert clean > noisy
    assert sharp > soft
    assert curves["epi against defocus_um"]["x"] == {"name": "defocus_um", "values": [0.0, 0.8]}


def test_a_turned_specimen_is_another_specimen_of_the_same_conditions(subject: Subject) -> None:
    plain, turned = (
        next(robustness._cases(1, ("bars",), **{**robustness._STANDARD, "rotation_deg": angle})) for angle in (0, 30)
    )
    assert plain.truth.shape == turned.truth.shape == (192, 192)
    assert plain.light is not None
    assert (plain.light == turned.light).all()
    assert abs(plain.truth - turned.truth).mean() > 0.02


def test_every_family_with_structure_is_listed_with_whether_training_had_it(
    monkeypatch: pytest.MonkeyPatch, subject: Subject
) -> None:
    monkeypatch.setattr(robustness, "FAMILIES", {"dots": None, "empty": None, "bars": None})
    table = robustness.families(subject)
    assert {family: row["in training"] for family, row in table.items()} == {"dots": "yes", "bars": "no"}
    assert table["dots"]["wiener"] > table["dots"]["input"]
