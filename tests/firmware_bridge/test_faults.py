"""Every fault on every wire to both controllers: detected, typed, recovered or latched, never out of step.

``pytest -s tests/firmware_bridge/test_faults.py`` prints the matrix.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from firmware_bridge import gcs, transport
from firmware_bridge.errors import (
    FirmwareError,
    LinkError,
    LinkTimeoutError,
    ProtocolError,
    RefusedError,
    ServoLostError,
)
from firmware_bridge.pzt import PositionUm, open_stage
from firmware_bridge.simulator import Simulator, serve_pty, serve_tcp
from firmware_bridge.simulator.faults import FAULTS, Fault
from tests.waiting import until

NEAR_UM, TOLERANCE_UM = 0.005, 0.02
# A busy machine may keep an answer waiting; where an answer is lost, the test waits for so long again and again.
PATIENT_S, HASTY_S = 1.0, 0.4
WIRES = {"pty": serve_pty, "tcp": serve_tcp}
SETUPS = [(profile, wire) for profile in gcs.PROFILES for wire in WIRES]
FAR, BACK = PositionUm(53.5, 48.25, 5.5), PositionUm(50.5, 50, 5)


class Row(NamedTuple):
    """A fault in the middle of a move, what becomes of the move, and what it takes to go on.

    `ends` is what the move may raise, None where it ends well; `then` is "goes on" (the next move just works), "arm"
    (only after servo_on) or "reconnect" (and before it reconnect).
    """

    fault: str
    ends: tuple[type[FirmwareError] | None, ...]
    then: str = "goes on"


WELL = (None,)
MATRIX = [
    Row("silent:only=POS?", (LinkTimeoutError,)),
    Row("silent:only=ERR?", (LinkTimeoutError,)),
    Row("silent:times=none", (LinkTimeoutError,), "arm"),
    Row("late:only=POS?,delay_s=0.8", (LinkTimeoutError,)),
    Row("late:only=ERR?,delay_s=0.8", (LinkTimeoutError,)),
    Row("late:only=POS?,delay_s=0.05", WELL),
    Row("partial:only=POS?", (LinkTimeoutError,)),
    Row("garbage:only=POS?", (ProtocolError,)),
    Row("garbage:only=#5", (ProtocolError,)),
    Row("garbage:only=ONT?,times=none", (ProtocolError,)),
    Row("echo:only=POS?", (ProtocolError,)),
    Row("echo:only=#5", (ProtocolError,)),
    # Found at once, or before the next question: it depends on how the bytes come.
    Row("twice:only=POS?", (ProtocolError, None)),
    Row("twice:only=ERR?", (ProtocolError, None)),
    Row("stale:only=POS?", WELL),
    Row("stale:only=POS?,times=2", WELL),
    Row("wrong_axis:only=POS?", (ProtocolError,)),
    Row("wrong_axis:only=ONT?", (ProtocolError,)),
    Row("wrong_mnemonic:only=POS?", WELL),
    Row("wrong_mnemonic:only=POS?,times=2", WELL),
    Row("wrong_mnemonic:only=ONT?", WELL),
    Row("digit:only=POS?", WELL),
    Row("digit:only=POS?,times=4", WELL),
    # A 0 that became a 5, a 7 or any other error: the stage is stopped, because it may be moving.
    Row("digit:only=ERR?", (RefusedError,)),
    Row("junk_before:only=POS?", (ProtocolError,)),
    Row("junk_before:only=ERR?", (ProtocolError,)),
    Row("nul:only=POS?", WELL),
    Row("crlf:only=POS?", (ProtocolError,)),
    Row("crlf:only=ERR?", (ProtocolError,)),
    Row("latched:only=MOV", (RefusedError,)),
    Row("reboot:only=ONT?", (ServoLostError,), "arm"),
    Row("reboot:only=MOV", (ServoLostError,), "arm"),
    Row("reboot:only=#5,delay_s=1.6", (LinkTimeoutError,), "arm"),
    Row("servo_off:only=ONT?", (ServoLostError,), "arm"),
    Row("servo_off:only=MOV", (ServoLostError,), "arm"),
    Row("dead", (LinkTimeoutError,), "arm"),
    Row("dead:only=#5", (LinkTimeoutError,), "arm"),
    Row("never_on_target", (LinkTimeoutError,)),
    Row("deaf:delay_s=2", (LinkTimeoutError,), "arm"),
    Row("unplug:only=MOV", (LinkError,), "reconnect"),
    Row("unplug:only=POS?", (LinkError,), "reconnect"),
]


def near(measured, truth, within_um=NEAR_UM):
    return measured == pytest.approx(truth, abs=within_um)


def stands(simulator):
    before_um = simulator.pose_um()
    time.sleep(0.02)
    return near(simulator.pose_um(), before_um, 0.001)


def first_answer(stage):
    """What the stage says as soon as it says something again; at once, unless the fault lasts for a while."""
    deadline_s = time.monotonic() + 5.0
    while True:
        try:
            return stage.position_um()
        except LinkTimeoutError:
            if time.monotonic() > deadline_s:
                raise


def happens(row: Row, profile: str, wire: str) -> str:
    """One cell of the matrix: what happened. AssertionError where that is not what is specified."""
    simulator = Simulator(profile, seed=7)
    with (
        WIRES[wire](simulator) as server,
        open_stage(server.address, reply_timeout_s=PATIENT_S, settle_timeout_s=PATIENT_S, velocity_um_s=2000) as stage,
    ):
        stage.move_to(PositionUm(50, 50, 5))
        if LinkTimeoutError in row.ends:
            stage.controller.link._timeout_s = HASTY_S
        # A stage that is said too early to be on its target may be as far from it as a returned position may be.
        within_um = TOLERANCE_UM if "only=ONT?" in row.fault else NEAR_UM
        struck = simulator.faults.struck
        simulator.faults.add(Fault.parse(row.fault))
        ended: FirmwareError | None = None
        for target_um in itertools.islice(itertools.cycle([FAR, BACK]), 20):
            try:
                assert near(stage.move_to(target_um), simulator.pose_um(), within_um), "a wrong position was returned"
            except FirmwareError as exc:
                ended = exc
            # A reply that is the same as the one in its place does not count: the stage had arrived already.
            if ended is not None or simulator.faults.struck > struck:
                break
        assert simulator.faults.struck > struck, "the fault did not strike"
        assert any(ended is None if kind is None else isinstance(ended, kind) for kind in row.ends), repr(ended)
        simulator.faults.clear()
        stage.controller.link._timeout_s = PATIENT_S
        until(lambda: stands(simulator))
        if row.then == "reconnect":
            with pytest.raises(LinkError):
                stage.position_um()
            server.replug()
            stage.reconnect()
        assert near(first_answer(stage), simulator.pose_um()), "out of step"
        if row.then != "goes on":
            assert not stage.ready, "it should not be ready"
            with pytest.raises(RefusedError, match="servo_on"):
                stage.move_to(BACK)
            stage.servo_on()
        assert near(stage.move_to(BACK), BACK)
        assert near(BACK, simulator.pose_um())
        assert stage.target_um() == pytest.approx(BACK, abs=1e-4)
    return f"{type(ended).__name__ if ended else 'recovered'}, {row.then}"


@pytest.mark.slow
def test_the_matrix_of_faults_is_green(monkeypatch):
    monkeypatch.setattr(transport, "WRITE_TIMEOUT_S", 0.15)
    cells = [(row, *setup) for row in MATRIX for setup in SETUPS]

    def cell(work):
        try:
            return True, happens(*work)
        except (AssertionError, pytest.fail.Exception, FirmwareError) as exc:
            return False, f"WRONG: {type(exc).__name__} {' '.join(str(exc).split())[:120]}"

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(cell, cells))
    by_row = [results[start : start + len(SETUPS)] for start in range(0, len(results), len(SETUPS))]
    lines = ["", f"{'fault':34}" + "".join(f"{f'{profile} {wire}':30}" for profile, wire in SETUPS)]
    lines += [
        f"{row.fault:34}" + "".join(f"{said:30}" for _, said in found)
        for row, found in zip(MATRIX, by_row, strict=True)
    ]
    print("\n".join(lines))  # noqa: T201 - the matrix is what this test shows
    assert all(good for good, _ in results), "\n".join(lines)


def test_the_matrix_names_every_fault_there_is():
    assert {Fault.parse(row.fault).name for row in MATRIX} == set(FAULTS)


@pytest.mark.parametrize(
    "fault", ["late:only=POS?,delay_s=0.8", "digit:only=POS?", "servo_off:only=ONT?", "unplug:only=MOV"]
)
def test_a_few_faults_in_every_run(fault):
    happens(next(row for row in MATRIX if row.fault == fault), "e517", "pty")


@pytest.mark.parametrize("baud", [9600, 115_200])
@pytest.mark.parametrize("profile", gcs.PROFILES)
def test_a_slow_wire_is_no_fault(profile, baud):
    simulator = Simulator(profile)
    with serve_pty(simulator, baud=baud) as server, open_stage(server.address, velocity_um_s=2000) as stage:
        assert near(stage.move_to(FAR), simulator.pose_um())
        assert stage.controller.has("CTO")  # the longest reply there is
        assert near(stage.move_to(BACK), simulator.pose_um())
