"""Random faults upon random faults, in simulated time: whatever happens, no wrong position is returned."""

from __future__ import annotations

import collections
import logging
import math
import random
import re
from types import SimpleNamespace

import pytest

from firmware_bridge import gcs
from firmware_bridge.approach import approach
from firmware_bridge.contact import Sample
from firmware_bridge.controller import Controller
from firmware_bridge.errors import FirmwareError, LinkError, LinkTimeoutError, RefusedError
from firmware_bridge.guard import MotionGuard
from firmware_bridge.hold import DistanceControl, hold_distance
from firmware_bridge.link import Link
from firmware_bridge.moves import Rest, distance_um
from firmware_bridge.pzt import PositionUm, PztStage
from firmware_bridge.safety import Interlock, Rules, State
from firmware_bridge.simulator import Simulator
from firmware_bridge.simulator.cantilever import SimulatedCantilever
from firmware_bridge.simulator.faults import FAULTS
from tests.sphere import LIMITS, TRAVEL, V_PER_NM

REST = Rest(timeout_s=0.3)
SPOILS_A_REPLY = [name for name in FAULTS if name not in ("dead", "deaf", "never_on_target", "reboot", "unplug")]
COMMANDS = [None, None, "POS?", "POS?", "ONT?", "ERR?", "MOV", "#5", "*IDN?"]
ROUND_TRIP_S = 0.0005
SENSOR_NOISE_UM = 0.002  # six times its standard deviation


class World:
    """A controller and its cable, in time that passes when somebody waits."""

    def __init__(self, profile: str, seed: int, **simulator: PositionUm) -> None:
        self.now_ns = 1_000_000_000
        self.simulator = Simulator(profile, clock=lambda: self.now_ns, seed=seed, **simulator)
        self._arrived = b""
        self.plugged = True

    def clock_s(self) -> float:
        return self.now_ns / 1e9

    def sleep(self, seconds: float) -> None:
        self.now_ns += math.ceil(seconds * 1e9)

    def write(self, data: bytes) -> None:
        self.sleep(ROUND_TRIP_S)
        self._check_plug()
        if not self.simulator.faults.holds("deaf"):
            self._arrived += self.simulator.feed(data)

    def read(self, timeout_s: float) -> bytes:
        end_ns = self.now_ns + math.ceil(timeout_s * 1e9)
        while True:
            self._check_plug()
            data, self._arrived = self._arrived + self.simulator.feed(b""), b""
            event_ns = self.simulator.next_event_ns()
            if data or event_ns is None or event_ns >= end_ns:
                if not data:
                    self.now_ns = end_ns
                return data
            self.now_ns = max(event_ns, self.now_ns + 1)

    def close(self) -> None:
        pass

    def _check_plug(self) -> None:
        if self.simulator.take_unplug() is not None:
            self.plugged = False
        if not self.plugged:
            raise LinkError("the cable is pulled")

    def open_stage(self, guard: MotionGuard | None = None) -> PztStage:
        link = Link(self, name="campaign", timeout_s=1.0, clock=self.clock_s)
        link.identify()
        controller = Controller(link, self.simulator.profile, reopen=lambda: link.reopen(lambda: self))
        stage = PztStage(controller, rest=REST, guard=guard, clock=self.clock_s, sleep=self.sleep)
        stage.servo_on()
        return stage

    def go_wrong(self, chance: random.Random) -> None:
        faults = self.simulator.faults
        for _ in range(chance.choice([1, 1, 2, 3])):
            name = chance.choice(SPOILS_A_REPLY if chance.random() < 0.9 else list(FAULTS))
            faults.inject(
                name,
                times=chance.choice([1, 1, 2, 3, 5]),
                only=chance.choice(COMMANDS),
                after=chance.choice([0, 0, 1, 2, 4]),
                # of late replies: some within the time-out, some long after it
                delay_s=chance.choice([0.01, 0.06, 0.9, 1.02, 1.06, 1.5, 2.5]),
            )

    def recover(self, stage: PztStage) -> None:
        """All is well again; then the stage has to be so too, with at most one answer that comes too late."""
        self.simulator.faults.clear()
        if not self.plugged:
            self.plugged = True
            stage.reconnect()
        try:
            here_um = stage.position_um()
        except (
            LinkTimeoutError,
            RefusedError,
        ):  # a controller that is still starting, or a reply that is still on its way
            self.sleep(10.0)
            here_um = stage.position_um()
        assert distance_um(here_um, self.simulator.pose_um()) < REST.noise_um, "out of step"
        if not stage.ready:
            stage.servo_on()


def campaign(profile: str, *, sequences: int, seed: int) -> collections.Counter[str]:
    chance = random.Random(seed)
    world = World(profile, seed)
    stage = world.open_stage()
    ends: collections.Counter[str] = collections.Counter()
    for number in range(sequences):
        world.go_wrong(chance)
        for _ in range(2):
            target_um = PositionUm(chance.uniform(1, 99), chance.uniform(1, 99), chance.uniform(0.5, 9.5))
            try:
                measured_um = stage.move_to(target_um)
            except FirmwareError as exc:
                ends[type(exc).__name__] += 1
                continue
            ends["position"] += 1
            off_um = distance_um(measured_um, world.simulator.pose_um())
            assert off_um < REST.noise_um + SENSOR_NOISE_UM, f"sequence {number}: {measured_um} is wrong by {off_um} um"
            assert distance_um(measured_um, target_um) <= REST.tolerance_um
        world.recover(stage)
    return ends


@pytest.mark.parametrize("profile", gcs.PROFILES)
def test_no_wrong_position_whatever_goes_wrong(profile):
    logging.disable(logging.CRITICAL)
    try:
        ends = campaign(profile, sequences=150, seed=3)
    finally:
        logging.disable(logging.NOTSET)
    assert ends["position"] > 50
    assert len(ends) >= 5, ends  # all kinds of ends were met


@pytest.mark.slow
def test_no_wrong_position_in_ten_thousand_sequences_of_faults():
    logging.disable(logging.CRITICAL)
    try:
        ends = sum((campaign(profile, sequences=5000, seed=11) for profile in gcs.PROFILES), collections.Counter())
    finally:
        logging.disable(logging.NOTSET)
    print(dict(ends))  # noqa: T201 - how it went
    assert ends["position"] > 5000


class ContactWorld(World):
    """A sphere above the stage, and somebody who looks at how far each command goes while it is near."""

    thresholds = LIMITS

    def __init__(self, profile: str, seed: int) -> None:
        super().__init__(profile, seed, start_um=PositionUm(50, 50, 6.9))
        self.interlock = Interlock(
            Rules("cantilever", TRAVEL, contact_timeout_s=30.0, poll_timeout_s=30.0),
            stage=SimpleNamespace(retract_z=lambda: self.stage.retreat(0.0), from_away_um=lambda: 0.0),
            clock=self.clock_s,
        )
        self.sensor = SimulatedCantilever(
            self.simulator.pose_um, v_per_nm=V_PER_NM, tilt=(0.0, 0.0), noise_v=0.0, clock=self.clock_s
        )
        self.sideways_um = self.towards_um = 0.0
        self.interlock.sphere_lifted(by="a tester")
        self.stage = self.open_stage(self.interlock)
        self.wait()
        self.interlock.arm(by="a tester")

    def wait(self, count: int = 1, *, timeout_s: float = 1.0) -> list[Sample]:
        samples = []
        for index in range(count):
            asked_s = self.clock_s()
            self.sleep(0.005)
            samples.append(Sample(self.sensor.read_v(), asked_s, index))
            self.interlock.sampled(asked_s, touches=samples[-1].value_v >= LIMITS.set_point_v)
        return samples

    def write(self, data: bytes) -> None:
        near = self.interlock.state in (State.APPROACHING, State.ENGAGED)
        if near and (command := re.match(rb"MOV (.*)\n", data)):
            words = command[1].decode().split()
            here_um = dict(zip(self.simulator.profile.axes, self.simulator.pose_um(), strict=True))
            for axis, at_um in zip(words[::2], map(float, words[1::2]), strict=True):
                way_um = at_um - here_um[axis]
                if axis == self.simulator.profile.axes[2]:
                    self.towards_um = max(self.towards_um, way_um)
                else:
                    self.sideways_um = max(self.sideways_um, abs(way_um))
        super().write(data)


@pytest.mark.parametrize("profile", gcs.PROFILES)
def test_near_the_sphere_no_spoilt_reply_makes_a_step_too_long(profile):
    chance, held, failed = random.Random(5), 0, 0
    control = DistanceControl(LIMITS.set_point_v, v_per_um=1e3 * V_PER_NM, low_um=4.0, high_um=9.0)
    logging.disable(logging.CRITICAL)
    try:
        for seed in range(10):
            world = ContactWorld(profile, seed)
            approach(world.stage, world, world.interlock, step_um=0.02)
            for number in range(60):
                if world.interlock.state is not State.ENGAGED:
                    break
                for _ in range(chance.choice([1, 2])):
                    world.simulator.faults.inject(
                        chance.choice(
                            ["digit", "digit", "digit", "stale", "wrong_axis", "wrong_mnemonic", "twice", "silent"]
                        ),
                        only=chance.choice(["POS?", "POS?", "POS?", "ONT?", "ERR?", "MOV"]),
                        after=chance.choice([0, 0, 0, 1, 2]),
                    )
                try:
                    hold_distance(
                        world.stage,
                        world,
                        control,
                        PositionUm(50 + number % 2, 50, 0),
                        tolerance_v=0.04,
                        lateral_step_um=0.5,
                        clock=world.clock_s,
                    )
                    held += 1
                except FirmwareError:
                    failed += 1
                world.simulator.faults.clear()
            assert world.sideways_um < 0.5 + REST.tolerance_um
            assert world.towards_um < 0.1
    finally:
        logging.disable(logging.NOTSET)
    assert min(held, failed) > 100
