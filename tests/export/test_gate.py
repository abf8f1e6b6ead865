"""A file passes if it shows what FP32 shows, and its figures are what they say."""

import os

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("skimage", reason="needs the extra [export]")

from export.calibration import Sample
from export.errors import ParityError
from export.gate import check, judged, psnr_db
from export.manifest import Gate, Verification

FLAT = np.full((32, 32), 0.5, np.float32)


def off(amount: float) -> np.ndarray:  # type: ignore[type-arg]
    return FLAT + np.float32(amount)


def verification(**gate: object) -> Verification:
    figures = {"data": "frames", "images": 2, "psnr_db": {"enhanced": 50.0}} | gate
    return Verification(
        against="fp32", max_abs_error=0, psnr_db=50, ssim=1, shapes_px=((32, 32),), gate=Gate.model_validate(figures)
    )


def test_psnr_is_of_the_mean_error_so_that_equal_pictures_hide_nothing() -> None:
    found = [{"enhanced": off(0.1)}, {"enhanced": FLAT}]
    wanted = [{"enhanced": FLAT}, {"enhanced": FLAT}]
    assert psnr_db(found, wanted) == {"enhanced": 23.01}  # 20 dB for one of two
    assert psnr_db(wanted, wanted) == {"enhanced": 200.0}


def test_figures_are_those_of_the_worst_output_and_loss_is_against_the_truth() -> None:
    colour = np.zeros((32, 32, 3), np.float32)
    fp32 = [{"enhanced": off(0.1), "map": colour}]
    found = [{"enhanced": off(0.12), "map": colour + np.float32(0.1)}]
    figures = judged(
        found, fp32, [Sample(FLAT, {"enhanced": FLAT})], border_px=2, data="frames", against="fp32, by nobody"
    )
    assert figures.gate is not None
    assert figures.gate.psnr_db == {"enhanced": 33.98, "map": 20.0}
    assert figures.psnr_db == 20.0
    assert figures.max_abs_error == pytest.approx(0.1)
    assert figures.gate.loss_db == pytest.approx(20 * np.log10(0.12 / 0.1), abs=1e-3)


def test_a_border_is_left_out_of_the_loss() -> None:
    spoilt = FLAT.copy()
    spoilt[:4] = 0
    figures = judged(
        [{"enhanced": spoilt}], [{"enhanced": FLAT}], [Sample(FLAT, {"enhanced": off(0.1)})], border_px=4, data="",
        against="",
    )  # fmt: skip
    assert figures.gate is not None
    assert figures.gate.loss_db == 0


def test_without_a_truth_there_is_no_loss() -> None:
    figures = judged([{"a": FLAT}], [{"a": FLAT}], [Sample(FLAT, {})], border_px=0, data="", against="")
    assert figures.gate is not None
    assert figures.gate.loss_db is None
    check("fp16", figures)


def test_what_is_not_a_number_is_refused() -> None:
    with pytest.raises(ParityError, match=r"are not numbers .against fp32, by ORT"):
        judged([{"a": FLAT * np.nan}], [{"a": FLAT}], [Sample(FLAT, {})], border_px=0, data="", against="fp32, by ORT")


@pytest.mark.parametrize(
    ("gate", "complaint"),
    [
        ({"psnr_db": {"a": 60.0, "b": 34.9}}, "34.90 dB from FP32 in 'b', expected at least 35 dB"),
        ({"loss_db": 0.21}, "loses 0.210 dB of PSNR against the truth, expected at most 0.2 dB"),
        ({"loss_db": 3.0, "scheme": "the tail in float"}, r"2 pictures of frames \(the tail in float\): it loses 3"),
    ],
)
def test_a_file_that_fails_is_refused_with_its_figure(gate: dict[str, object], complaint: str) -> None:
    with pytest.raises(ParityError, match=complaint):
        check("int8", verification(**gate))


def test_a_file_that_passes_passes() -> None:
    check("int8", verification(psnr_db={"a": 35.0}, loss_db=0.2))


def test_a_file_that_nobody_judged_is_refused() -> None:
    with pytest.raises(ParityError, match="was not compared with FP32"):
        check("int8", verification().model_copy(update={"gate": None}))
