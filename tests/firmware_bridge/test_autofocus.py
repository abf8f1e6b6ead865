"""Autofocus: the measure on images, and the search on curves that are noisy, flat, one-sided, late or guarded."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.autofocus import autofocus, sharpness
from firmware_bridge.errors import LinkError, LinkTimeoutError, OutOfRangeError, RefusedError, StoppedError
from firmware_bridge.focus import open_focus
from firmware_bridge.retraction import PztRetraction
from firmware_bridge.safety import Interlock, Rules
from firmware_bridge.simulator.esp301 import Esp301Server, SimulatedEsp301
from tests.sphere import TRAVEL

SIZE = 96
FREQUENCY = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE)[None])
Y, X = np.mgrid[:SIZE, :SIZE] - SIZE / 2


def image(defocus_um: float, *, photons: float = 400.0, vignette: float = 0.6, seed: int = 0) -> np.ndarray:
    """A texture behind a Gaussian of 2.5 px rms in focus, wider out of it, a vignette, shot noise."""
    truth = np.random.default_rng(7).random((SIZE, SIZE)) < 0.3
    sigma_px = 2.5 * math.hypot(1, defocus_um / 1.0)
    blurred = np.fft.ifft2(np.fft.fft2(truth) * np.exp(-2 * (np.pi * sigma_px * FREQUENCY) ** 2)).real
    light = (0.2 + blurred) * (1 - vignette * (X**2 + Y**2) / (SIZE**2 / 2))
    return np.random.default_rng(seed).poisson(np.clip(light, 0, None) * photons).astype(np.float32)


class Stage:
    """Keeps where it was; its measure is a curve of the position, or an image's sharpness."""

    def __init__(self, curve=None, *, focus_um: float = 3.0, backlash_um: float = 0.0, **picture) -> None:
        self.curve = curve or (
            lambda z: sharpness(image(z - focus_um, seed=len(self.visited) * 10 + self.count, **picture))
        )
        self.at_um, self.visited, self.count = 0.0, [], 0
        self.backlash_um, self.effective_um = backlash_um, 0.0
        self.now_s = 0.0

    def move_to(self, target_um: float) -> float:
        self.now_s += 0.1
        downwards = target_um < self.at_um
        self.at_um, self.effective_um = target_um, target_um + (0.0 if downwards else self.backlash_um)
        self.visited.append(target_um)
        return target_um

    def measure(self) -> float:
        self.now_s += 0.02
        self.count += 1
        return self.curve(self.effective_um)

    def find(self, **keywords):
        return autofocus(
            self.move_to,
            self.measure,
            **{"low_um": 0.0, "high_um": 10.0, "step_um": 1.0, "clock": lambda: self.now_s, **keywords},
        )


# -- the measure ------------------------------------------------------------------------------------------------------


def test_the_sharpness_falls_with_defocus_through_vignette_and_noise():
    values = [np.mean([sharpness(image(z, seed=seed)) for seed in range(5)]) for z in (0, 0.3, 0.6, 1.0, 1.5, 2.5)]
    assert all(a > b for a, b in itertools.pairwise(values))


def separation(measure) -> float:
    """How many standard deviations of the measure half a depth of field costs, under a strong vignette."""
    in_focus = [measure(image(0.0, vignette=0.8, seed=seed)) for seed in range(30)]
    beside = [measure(image(0.5, vignette=0.8, seed=seed)) for seed in range(30, 60)]
    return float((np.mean(in_focus) - np.mean(beside)) / np.std(in_focus))


def tenengrad(picture: np.ndarray) -> float:
    smooth = lambda a: a[:-2] + 2 * a[1:-1] + a[2:]  # noqa: E731
    across, down = smooth(picture[:, 2:] - picture[:, :-2]), smooth((picture[2:] - picture[:-2]).T)
    return float((np.mean(across**2) + np.mean(down**2)) / picture.mean() ** 2)


def test_the_chosen_measure_separates_half_a_depth_of_field_better_than_the_alternatives():
    best = separation(sharpness)
    assert best > 9
    assert best > 1.2 * separation(tenengrad)
    assert best > 1.5 * separation(lambda picture: float(picture.var() / picture.mean() ** 2))
    assert best > 2.0 * separation(lambda picture: sharpness(picture, lag_px=2))


def test_the_brightness_of_the_lamp_cancels():
    picture = image(0.0)
    assert sharpness(picture * 3) == pytest.approx(sharpness(picture), rel=1e-4)


def test_integer_images_do_not_overflow():
    picture = np.zeros((32, 32), np.uint8)
    picture[:, 16:] = 255
    assert sharpness(picture) == pytest.approx(sharpness(picture.astype(float)))


@pytest.mark.parametrize(
    "bad", [np.ones(16), np.ones((4, 16)), np.zeros((16, 16)), np.full((16, 16), np.nan), np.ones((8, 8, 3))]
)
def test_what_is_no_picture_is_refused(bad):
    with pytest.raises(OutOfRangeError):
        sharpness(bad)


# -- the search -------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.floats(2.0, 8.0), st.floats(0.8, 2.0), st.floats(0.0, 0.02), st.integers(0, 10**6))
def test_the_focus_is_found_through_noise_and_never_outside_its_bounds(focus_um, width_um, noise, seed):
    random = np.random.default_rng(seed)
    stage = Stage(lambda z: 1.0 + math.exp(-((z - focus_um) ** 2) / (2 * width_um**2)) + random.normal(0, noise))
    found = stage.find()
    assert found.position_um == pytest.approx(focus_um, abs=0.15 * width_um + 3 * noise)
    assert min(stage.visited) >= 0.0
    assert max(stage.visited) <= 10.0
    assert stage.at_um == found.position_um


@pytest.mark.parametrize("focus_um", [2.5, 5.0, 7.3])
def test_the_focus_is_found_on_noisy_images_under_a_vignette(focus_um):
    assert Stage(focus_um=focus_um).find(step_um=0.5).position_um == pytest.approx(focus_um, abs=0.15)


@pytest.mark.parametrize("width_um", [0.1, 0.15, 0.3])
def test_a_curve_narrower_than_the_fine_steps_is_found_where_it_is(width_um):
    stage = Stage(lambda z: math.exp(-(((z - 5.02) / width_um) ** 2)))
    assert stage.find().position_um == pytest.approx(5.02, abs=0.1)


def test_the_sweep_reaches_from_bound_to_bound_in_steps_that_are_no_larger_than_wanted():
    stage = Stage(lambda z: -z)
    with pytest.raises(RefusedError):
        stage.find(step_um=0.7)
    sweep = stage.visited[:-1]  # then it goes back up
    assert (sweep[0], sweep[-1]) == (10.0, 0.0)
    assert max(a - b for a, b in itertools.pairwise(sweep)) <= 0.7 + 1e-9


def test_the_guard_is_asked_before_each_move_and_each_image():
    stage = Stage(lambda z: math.exp(-((z - 5.0) ** 2)))
    asked = []
    stage.find(check=lambda: asked.append(1))
    assert len(asked) == len(stage.visited) + stage.count


def test_it_comes_from_above_and_goes_no_nearer_than_it_must():
    stage = Stage(lambda z: math.exp(-((z - 8.0) ** 2)))
    stage.find(step_um=0.5)
    assert min(stage.visited) > 5.0


def test_backlash_is_taken_up_by_coming_from_one_side():
    stage = Stage(lambda z: math.exp(-((z - 4.0) ** 2) / 2), backlash_um=0.3)
    assert stage.find(backlash_um=0.5).position_um == pytest.approx(4.0, abs=0.05)
    for before, after in zip(stage.visited, stage.visited[1:], strict=False):
        assert after < before or after > before + 0.5


@pytest.mark.parametrize(
    "curve", [lambda z: z, lambda z: -z, lambda z: 1.0, lambda z: (z - 5) ** 2, lambda z: math.exp(-((z - 12) ** 2))]
)
def test_a_curve_without_an_inner_maximum_is_refused_and_the_focus_goes_back_up(curve):
    stage = Stage(curve)
    with pytest.raises(RefusedError, match=r"sharpest at the end|nothing to focus on"):
        stage.find()
    assert stage.at_um == 10.0


def test_noise_alone_is_no_focus():
    for seed in range(20):
        random = np.random.default_rng(seed)
        with pytest.raises(RefusedError):
            Stage(lambda z, random=random: 1.0 + random.normal(0, 0.05)).find()


def test_a_focus_that_drifts_away_meanwhile_is_refused():
    stage = Stage(lambda z: math.exp(-((z - 5.0 - 4 * (stage.count > 50)) ** 2)))
    with pytest.raises(RefusedError):
        stage.find(step_um=0.5)


def test_it_ends_in_time():
    stage = Stage(lambda z: math.exp(-((z - 5.0) ** 2)))
    with pytest.raises(LinkTimeoutError, match="within 1 s"):
        stage.find(timeout_s=1.0)
    assert stage.now_s < 1.3


@pytest.mark.parametrize("after", [1, 10, 40])
def test_the_contact_guard_ends_it_where_it_is(after):
    stage = Stage(lambda z: math.exp(-((z - 5.0) ** 2)))
    asked = []

    def check() -> None:
        asked.append(stage.at_um)
        if len(asked) > after:
            raise StoppedError("contact")

    with pytest.raises(StoppedError, match="contact"):
        stage.find(check=check)
    assert stage.at_um == asked[-1]


def test_a_person_who_stops_the_focus_stops_the_search_where_it_is():
    stage = Stage(lambda z: 1.0)
    move_to = stage.move_to

    def stopped(target_um: float) -> float:
        if len(stage.visited) == 3:
            raise StoppedError("stop")
        return move_to(target_um)

    stage.move_to = stopped
    with pytest.raises(StoppedError):
        stage.find()
    assert len(stage.visited) == 3


def test_a_stage_that_fails_is_heard_of():
    stage = Stage(lambda z: 1.0)

    def broken(target_um: float) -> float:
        raise LinkError("gone")

    stage.move_to = broken
    with pytest.raises(LinkError, match="gone"):
        stage.find()


def test_more_positions_than_anybody_waits_for_are_refused():
    moved = []
    with pytest.raises(OutOfRangeError, match="10000 steps"):
        autofocus(moved.append, lambda: 1.0, low_um=0.0, high_um=10.0, step_um=1e-9)
    assert moved == []


def test_a_sharpness_that_is_no_number_is_refused():
    stage = Stage(lambda z: math.nan)
    with pytest.raises(OutOfRangeError, match="finite"):
        stage.find()


@pytest.mark.parametrize(
    "bad",
    [
        {"low_um": 10.0},
        {"low_um": math.nan},
        {"high_um": math.inf},
        {"step_um": 0.0},
        {"step_um": 3.0},
        {"repeats": 1},
        {"backlash_um": -1.0},
    ],
)
def test_bounds_that_make_no_sense_are_refused_before_anything_moves(bad):
    stage = Stage(lambda z: 1.0)
    with pytest.raises(OutOfRangeError):
        stage.find(**bad)
    assert stage.visited == []


# -- on a focus stage, under the interlock ----------------------------------------------------------------------------


@pytest.fixture
def instrument():
    """A simulated ESP301 behind its wire, guarded by an interlock whose sphere sits on the objective."""
    esp301 = SimulatedEsp301(start_mm=1.0)
    esp301.motor.speed_mm_s = 50.0
    with Esp301Server(esp301) as server:
        retraction = PztRetraction()
        interlock = Interlock(Rules("objective", TRAVEL, contact=False), stage=retraction)
        with open_focus("esp301", server.address, "1", limits_um=(900.0, 2000.0), guard=interlock) as stage:
            interlock.polled()
            interlock.arm(by="a tester")
            yield esp301, stage, interlock
            interlock.close()


def test_the_focus_is_found_by_a_real_driver(instrument):
    esp301, stage, interlock = instrument
    found = autofocus(
        stage.move_to,
        lambda: math.exp(-((1e3 * esp301.position_mm - 984.0) ** 2) / 200),
        low_um=950.0,
        high_um=1000.0,
        step_um=5.0,
        check=interlock.check_armed,
    )
    assert found.position_um == pytest.approx(984.0, abs=0.5)


def test_a_stop_between_two_moves_ends_the_search(instrument):
    _, stage, interlock = instrument
    visited: list[float] = []

    def measure() -> float:
        visited.append(stage.position_um())
        if len(visited) == 4:
            stage.stop()
        return 1.0

    with stage.series(), pytest.raises(StoppedError):
        autofocus(stage.move_to, measure, low_um=950.0, high_um=1000.0, step_um=5.0, check=interlock.check_armed)
    assert stage.position_um() == pytest.approx(visited[3], abs=0.01)


def test_an_overload_during_the_search_ends_it_and_no_step_goes_nearer(instrument):
    esp301, stage, interlock = instrument

    def measure() -> float:
        if stage.position_um() < 980:
            interlock.overload("3 V")
        return 1.0

    with pytest.raises(RefusedError, match="3 V"):
        autofocus(stage.move_to, measure, low_um=950.0, high_um=1000.0, step_um=5.0, check=interlock.check_armed)
    assert esp301.position_mm == pytest.approx(0.975)
    with pytest.raises(RefusedError, match="latched"):
        stage.move_to(970.0)
    stage.focus_up()
