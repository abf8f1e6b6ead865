"""Each rule of the interlock, and somebody who tries to break it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge import safety
from firmware_bridge.errors import FirmwareError, LinkError, OutOfRangeError, RefusedError
from firmware_bridge.position import Box, PositionUm
from firmware_bridge.safety import Interlock, Rules, State
from tests.sphere import ME, TRAVEL

HERE = PositionUm(50, 50, 5)


class Instrument:
    """Writes down what it is told to do; an action in `broken` raises."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.broken: set[str] = set()
        self.left_um = 0.0

    def _do(self, action: str) -> None:
        self.done.append(action)
        if action in self.broken:
            raise LinkError(f"{action} does not work")

    def retract_z(self) -> None:
        self._do("z")

    def from_away_um(self) -> float:
        if "away" in self.broken:
            raise LinkError("garbled")
        return self.left_um

    def focus_up(self) -> None:
        self.waited = True
        self._do("focus")

    def lift(self, failed, given_up) -> None:
        self.waited = False
        self._do("focus")


class Bench:
    """An interlock with a clock in hand."""

    def __init__(self, mount: str = "cantilever", *, focus: bool = True, **rules) -> None:
        self.now_s = 100.0
        self.parts = Instrument()
        self.rules = Rules(mount, TRAVEL, **rules)
        self.interlock = Interlock(
            self.rules, stage=self.parts, focus=self.parts if focus else None, clock=lambda: self.now_s
        )

    def alive(self) -> None:
        self.interlock.polled()
        self.sampled()

    def sampled(self, *, touches: bool = False) -> None:
        self.interlock.sampled(self.now_s, touches=touches)

    def to(self, state: State) -> Interlock:
        self.alive()
        if state is State.DISARMED:
            return self.interlock
        self.interlock.arm(by=ME)
        if state in (State.APPROACHING, State.ENGAGED):
            self.interlock.begin_approach(HERE)
            self.sampled()
        if state is State.ENGAGED:
            self.interlock.engage(HERE)
        if state is State.FAULT:
            self.interlock.overload("a test")
        assert self.interlock.state is state
        return self.interlock


def moved(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> PositionUm:
    return PositionUm(HERE.x + x, HERE.y + y, HERE.z + z)


# -- rule 1: limits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1000.0, -1.0])
@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_what_is_no_position_or_lies_outside_is_refused_in_every_state(state, bad, axis):
    interlock = Bench(contact=True).to(state)
    with pytest.raises(OutOfRangeError):
        interlock.check_move(HERE, HERE._replace(**{axis: bad}))


def test_a_position_that_was_read_as_nan_allows_no_move():
    interlock = Bench(contact=False).to(State.ARMED)
    with pytest.raises(OutOfRangeError, match="finite"):
        interlock.check_move(HERE._replace(z=math.nan), HERE)


# -- rule 2: steps and velocity ---------------------------------------------------------------------------------------


def test_a_step_is_bounded_and_smaller_when_the_sphere_touches():
    bench = Bench(max_step_um=20.0, engaged_step_um=5.0, engaged_z_step_um=0.1)
    interlock = bench.to(State.ARMED)
    interlock.check_move(HERE, moved(x=20))
    with pytest.raises(OutOfRangeError, match="at most 20 um"):
        interlock.check_move(HERE, moved(y=-20.1))
    interlock.begin_approach(HERE)
    interlock.engage(HERE)
    interlock.check_move(HERE, moved(x=5, z=0.1))
    for too_far in (moved(x=5.1), moved(x=1, z=0.13), moved(x=1, z=-0.13)):
        with pytest.raises(OutOfRangeError, match="while engaged"):
            interlock.check_move(HERE, too_far)


def test_where_a_move_ended_may_differ_from_where_it_was_sent_without_the_next_step_being_too_large():
    interlock = Bench(approach_step_um=0.05, hold_um=0.02).to(State.APPROACHING)
    interlock.check_move(moved(z=-0.015), moved(z=0.05))


def test_the_velocity_is_bounded_and_lower_when_the_sphere_touches():
    interlock = Bench(max_velocity_um_s=1000.0, engaged_velocity_um_s=50.0).to(State.ENGAGED)
    interlock.check_velocity(50.0)
    for velocity in (51.0, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(OutOfRangeError, match="at most 50 um/s"):
            interlock.check_velocity(velocity)


def test_near_the_sphere_nothing_is_faster_than_away_from_it():
    bench = Bench(max_velocity_um_s=20.0, engaged_velocity_um_s=100.0)
    for state in (State.ARMED, State.APPROACHING, State.ENGAGED):
        assert Bench(max_velocity_um_s=20.0, engaged_velocity_um_s=100.0).to(state).velocity_limit_um_s == 20.0
    with pytest.raises(OutOfRangeError, match="at most 20 um/s"):
        bench.to(State.ENGAGED).check_velocity(21.0)


# -- rule 3: the servo ------------------------------------------------------------------------------------------------


def test_with_a_cantilever_the_servo_needs_a_persons_word():
    bench = Bench("cantilever")
    interlock = bench.to(State.DISARMED)
    with pytest.raises(RefusedError, match="--sphere-lifted"):
        interlock.check_servo()
    assert bench.parts.done == []
    interlock.sphere_lifted(by=ME)
    interlock.check_servo()
    assert bench.parts.done == ["focus"]


def test_with_the_sphere_on_the_objective_the_focus_goes_up_before_the_servo_closes():
    bench = Bench("objective")
    bench.to(State.DISARMED).check_servo()
    assert bench.parts.done == ["focus"]
    assert bench.parts.waited, "and is there"


def test_a_fault_does_not_wait_for_the_focus():
    bench = Bench("objective")
    bench.to(State.ENGAGED).overload("3 V")
    assert not bench.parts.waited


def test_a_focus_stage_that_does_not_lift_keeps_the_servo_open():
    bench = Bench("objective")
    bench.parts.broken.add("focus")
    with pytest.raises(RefusedError, match="servo stays open"):
        bench.to(State.DISARMED).check_servo()


def test_without_a_focus_stage_the_servo_needs_a_persons_word_with_either_mount():
    for mount in ("cantilever", "objective"):
        with pytest.raises(RefusedError, match="lift"):
            Bench(mount, focus=False).to(State.DISARMED).check_servo()


@pytest.mark.parametrize("state", [State.APPROACHING, State.ENGAGED, State.FAULT])
def test_the_servo_is_not_closed_near_the_sphere_nor_in_a_fault(state):
    with pytest.raises(RefusedError):
        Bench("objective").to(state).check_servo()


@pytest.mark.parametrize("end", ["arm", "lost", "approach", "fault"])
def test_a_persons_word_that_the_sphere_is_lifted_does_not_last_for_ever(end):
    bench = Bench("cantilever")
    interlock = bench.to(State.DISARMED if end == "arm" else State.ARMED)
    interlock.sphere_lifted(by=ME)
    if end == "arm":
        interlock.arm(by=ME)
    elif end == "lost":
        interlock.lost("rebooted")
    elif end == "approach":
        interlock.begin_approach(HERE)
        interlock.retracted(moved(z=-1))
    else:
        interlock.overload("a test")
        bench.sampled()
        interlock.reset(by=ME)
    with pytest.raises(RefusedError, match="--sphere-lifted"):
        interlock.check_servo()


@pytest.mark.parametrize("state", [State.APPROACHING, State.ENGAGED])
def test_nobody_can_say_that_the_sphere_is_lifted_while_it_touches(state):
    with pytest.raises(RefusedError, match="retract first"):
        Bench().to(state).sphere_lifted(by=ME)


# -- rule 4 and 9: what is lost, and coming back ----------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.APPROACHING, State.ENGAGED])
def test_losing_the_controller_near_the_sphere_retracts_what_still_can_be(state):
    bench = Bench("objective")
    interlock = bench.to(state)
    bench.parts.broken.add("z")
    interlock.lost("the link broke")
    assert interlock.state is State.FAULT
    assert bench.parts.done == ["focus", "z"]
    assert "could not retract z" in interlock.why


def test_losing_the_controller_disarms_and_nothing_moves_until_it_is_armed_knowingly():
    bench = Bench(contact=False)
    interlock = bench.to(State.ARMED)
    interlock.lost("servo off")
    with pytest.raises(RefusedError, match="servo off"):
        interlock.check_move(HERE, moved(x=1))
    with pytest.raises(RefusedError, match="position is unknown"):
        interlock.arm(by=ME)
    interlock.polled()
    with pytest.raises(RefusedError, match="not armed"):
        interlock.check_move(HERE, moved(x=1))
    interlock.arm(by=ME)
    interlock.check_move(HERE, moved(x=1))


@pytest.mark.parametrize("lifted", [True, False])
def test_losing_the_controller_retracts_unless_the_sphere_is_lifted(lifted):
    bench = Bench("objective")
    interlock = bench.to(State.ARMED)
    if lifted:
        interlock.sphere_lifted(by=ME)
    interlock.lost("the link broke")
    assert bench.parts.done == ([] if lifted else ["focus", "z"])
    bench.parts.done.clear()
    interlock.lost("the link broke")
    assert bench.parts.done == []


def test_it_starts_disarmed_and_knows_no_position():
    interlock = Bench(contact=False).interlock
    assert interlock.state is State.DISARMED
    with pytest.raises(RefusedError):
        interlock.check_move(HERE, moved(x=1))
    with pytest.raises(RefusedError, match="position is unknown"):
        interlock.arm(by=ME)


@pytest.mark.parametrize("call", ["arm", "reset", "sphere_lifted"])
def test_only_somebody_with_a_name_arms_resets_or_lifts(call):
    interlock = Bench().to(State.FAULT if call == "reset" else State.DISARMED)
    with pytest.raises(RefusedError, match="name"):
        getattr(interlock, call)(by="  ")


# -- rule 5: the contact guard ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.APPROACHING, State.ENGAGED])
def test_a_contact_guard_that_falls_silent_near_the_sphere_is_an_overload(state):
    bench = Bench(contact_timeout_s=0.1)
    interlock = bench.to(state)
    bench.now_s += 0.11
    interlock.polled()
    with pytest.raises(RefusedError, match="contact guard is silent"):
        interlock.check_move(HERE, moved(z=0.01))
    interlock.tick()
    assert interlock.state is State.FAULT
    assert bench.parts.done == ["z", "focus"]


def test_with_a_guard_nothing_is_armed_before_the_guard_is_alive():
    bench = Bench(contact=True)
    bench.interlock.polled()
    with pytest.raises(RefusedError, match="contact guard is silent"):
        bench.interlock.arm(by=ME)


def test_with_a_guard_nothing_is_armed_that_may_have_been_left_in_contact():
    bench = Bench(contact=True)
    bench.alive()
    bench.parts.left_um = 7.0
    with pytest.raises(RefusedError, match=r"z is 7\.000 um from its end"):
        bench.interlock.arm(by=ME)
    bench.parts.broken.add("away")
    with pytest.raises(LinkError, match="garbled"):
        bench.interlock.arm(by=ME)
    bench.interlock.sphere_lifted(by=ME)
    bench.sampled(touches=True)
    with pytest.raises(RefusedError, match="at its set point"):
        bench.interlock.arm(by=ME)
    bench.sampled()
    bench.interlock.arm(by=ME)
    assert bench.interlock.state is State.ARMED


def test_what_happens_while_the_stage_says_where_it_is_keeps_it_from_being_armed():
    bench = Bench(contact=True)
    bench.alive()

    def asked() -> float:
        bench.interlock.overload("3 V")
        return 0.0

    bench.parts.from_away_um = asked
    with pytest.raises(RefusedError, match="a fault is latched"):
        bench.interlock.arm(by=ME)
    assert bench.interlock.state is State.FAULT


def test_with_a_guard_z_goes_towards_the_sphere_by_an_approach_only():
    interlock = Bench(contact=True).to(State.ARMED)
    interlock.check_move(HERE, moved(x=10, z=-1))
    with pytest.raises(RefusedError, match="approach it"):
        interlock.check_move(HERE, moved(z=1))
    interlock.sphere_lifted(by=ME)
    interlock.check_move(HERE, moved(z=1))


def test_the_rules_can_be_tightened_while_disarmed_and_never_widened():
    interlock = Bench().interlock
    with pytest.raises(AttributeError):
        interlock.rules = Rules("cantilever", TRAVEL)
    inside = Box(PositionUm(10, 10, 1), PositionUm(90, 90, 9))
    interlock.narrow(limits_um=inside, max_velocity_um_s=50.0)
    interlock.narrow(limits_um=TRAVEL, max_velocity_um_s=1e6)
    assert interlock.rules.limits_um == inside
    assert interlock.velocity_limit_um_s == 50.0


def test_an_armed_interlocks_rules_stay_as_they_are():
    interlock = Bench().to(State.ARMED)
    before = interlock.rules
    with pytest.raises(RefusedError, match="only when disarmed"):
        interlock.narrow(limits_um=TRAVEL, max_velocity_um_s=50.0)
    assert interlock.rules is before


def test_towards_the_sphere_is_where_z_sign_says():
    interlock = Bench(contact=True, z_sign=-1).to(State.ARMED)
    interlock.check_move(HERE, moved(x=1, z=1))
    with pytest.raises(RefusedError, match="approach it"):
        interlock.check_move(HERE, moved(z=-1))


def test_an_overload_is_still_an_overload_when_somebody_wants_to_reset():
    bench = Bench()
    interlock = bench.to(State.FAULT)
    with pytest.raises(RefusedError, match="still overloaded"):
        interlock.reset(by=ME)
    bench.sampled()
    interlock.reset(by=ME)
    assert interlock.state is State.DISARMED


# -- rule 6: approach, overload ---------------------------------------------------------------------------------------


def test_an_approach_takes_small_steps_of_z_alone_each_after_a_sample():
    bench = Bench(approach_step_um=0.05)
    interlock = bench.to(State.APPROACHING)
    interlock.check_move(HERE, moved(z=0.05))
    with pytest.raises(RefusedError, match="no contact sample came since"):
        interlock.check_move(HERE, moved(z=0.05))
    bench.sampled()
    with pytest.raises(OutOfRangeError, match=r"at most 0\.05 um"):
        interlock.check_move(HERE, moved(z=0.08))
    with pytest.raises(RefusedError, match="sideways"):
        interlock.check_move(HERE, moved(x=1, z=0.01))
    interlock.check_move(HERE, moved(z=0.05))


def test_a_sample_that_was_asked_for_before_a_step_says_nothing_of_what_it_did():
    bench = Bench()
    interlock = bench.to(State.ARMED)
    asked_s = bench.now_s
    bench.now_s += 0.01
    interlock.begin_approach(HERE)
    interlock.sampled(asked_s, touches=False)  # on its way since before
    with pytest.raises(RefusedError, match="no contact sample came since"):
        interlock.check_move(HERE, moved(z=0.01))
    bench.sampled()
    asked_s = bench.now_s
    bench.now_s += 0.01
    interlock.check_move(HERE, moved(z=0.01))
    interlock.sampled(asked_s, touches=False)
    with pytest.raises(RefusedError, match="no contact sample came since"):
        interlock.check_move(HERE, moved(z=0.01))


def test_an_approach_has_a_bounded_way():
    bench = Bench(approach_step_um=0.05, approach_travel_um=0.1)
    interlock = bench.to(State.APPROACHING)
    for step in (0.05, 0.1):
        interlock.check_move(moved(z=step - 0.05), moved(z=step))
        bench.sampled()
    with pytest.raises(OutOfRangeError, match=r"no contact within 0\.1 um"):
        interlock.check_move(moved(z=0.1), moved(z=0.12))


def test_an_approach_has_a_bounded_time():
    bench = Bench(approach_s=10.0)
    interlock = bench.to(State.APPROACHING)
    bench.now_s += 10.1
    bench.alive()
    with pytest.raises(RefusedError, match="no contact within 10 s"):
        interlock.check_move(HERE, moved(z=0.01))


def test_no_approach_begins_without_a_guard():
    interlock = Bench(contact=False).to(State.ARMED)
    with pytest.raises(RefusedError, match="no contact guard"):
        interlock.begin_approach(HERE)


@pytest.mark.parametrize("silent", [True, False])
def test_no_approach_begins_while_the_guard_is_silent_or_overloaded(silent):
    bench = Bench()
    interlock = bench.to(State.ARMED)
    if silent:
        bench.now_s += 0.2
        interlock.polled()
    else:
        interlock._overloaded = True  # told, and not yet latched by the thread that was told
    with pytest.raises(RefusedError, match="contact guard"):
        interlock.begin_approach(HERE)
    assert interlock.state is State.ARMED


@pytest.mark.parametrize("bad", [moved(z=math.nan), moved(x=math.inf)])
def test_a_position_that_is_none_neither_begins_nor_ends_an_approach(bad):
    interlock = Bench().to(State.ARMED)
    with pytest.raises(OutOfRangeError):
        interlock.begin_approach(bad)
    assert interlock.state is State.ARMED
    interlock.begin_approach(HERE)
    with pytest.raises(OutOfRangeError):
        interlock.engage(bad)
    assert interlock.state is State.APPROACHING


@pytest.mark.parametrize("sign", [1, -1])
def test_away_is_counted_from_where_the_sphere_was_nearest(sign):
    interlock = Bench(clear_um=1.0, z_sign=sign).to(State.APPROACHING)
    interlock.check_move(HERE, moved(z=sign * 0.05))
    with pytest.raises(RefusedError, match="retract further"):
        interlock.retracted(moved(z=-sign * 0.94))
    interlock.retracted(moved(z=-sign * 0.96))
    interlock = Bench(clear_um=1.0, z_sign=sign).to(State.APPROACHING)
    interlock.engage(moved(z=sign * 0.3))
    interlock.retracted(moved(z=-sign * 0.71))


@pytest.mark.parametrize(("mount", "order"), [("cantilever", ["z", "focus"]), ("objective", ["focus", "z"])])
@pytest.mark.parametrize("state", [State.DISARMED, State.ARMED, State.APPROACHING, State.ENGAGED])
def test_an_overload_stops_and_retracts_in_the_order_of_the_mount_from_every_state(mount, order, state):
    bench = Bench(mount)
    interlock = bench.to(state)
    interlock.overload("3 V")
    assert bench.parts.done == order
    interlock.overload("3 V")
    assert bench.parts.done == order, "a fault that is latched retracts once"


@pytest.mark.parametrize("goes_wrong", [lambda one: one.overload("3 V"), lambda one: one.lost("the servo is off")])
def test_the_bytes_of_a_retraction_do_not_wait_for_the_log(goes_wrong, monkeypatch):
    bench = Bench("cantilever")
    interlock, done_at_the_log = bench.to(State.ARMED), []
    for level in ("error", "warning"):
        monkeypatch.setattr(safety.log, level, lambda *_: done_at_the_log.append(list(bench.parts.done)))
    goes_wrong(interlock)
    assert done_at_the_log == [["z", "focus"]]


@pytest.mark.parametrize("mount", ["cantilever", "objective"])
@pytest.mark.parametrize("broken", ["z", "focus"])
def test_an_action_that_fails_does_not_keep_the_others_from_being_done(mount, broken):
    bench = Bench(mount)
    bench.parts.broken.add(broken)
    interlock = bench.to(State.ENGAGED)
    interlock.overload("3 V")
    assert sorted(bench.parts.done) == ["focus", "z"]
    assert "does not work" in interlock.why


def test_even_a_bug_in_one_action_does_not_keep_the_others_from_being_done():
    bench = Bench("cantilever")
    bench.parts.retract_z = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        bench.to(State.ENGAGED).overload("3 V")
    assert bench.parts.done == ["focus"]
    assert bench.interlock.state is State.FAULT


def test_the_retraction_itself_is_allowed_while_the_fault_is_latched():
    interlock = Bench().to(State.FAULT)
    interlock.check_move(HERE, HERE._replace(z=0))
    with pytest.raises(RefusedError, match="latched"):
        interlock.check_move(HERE, moved(x=1, z=-1))


@pytest.mark.parametrize("sign", [1, -1])
def test_with_a_guard_many_small_steps_towards_the_sphere_do_not_pass_for_standing_still(sign):
    interlock = Bench(hold_um=0.02, z_sign=sign).to(State.ARMED)
    at = HERE
    interlock.check_move(at, at := moved(z=sign * 0.019))
    interlock.check_move(moved(z=sign * 0.001), at)  # noise, while z is held: as often as there are tiles
    with pytest.raises(RefusedError, match="approach it"):
        interlock.check_move(at, moved(z=sign * 0.038))
    interlock.check_move(at, moved(x=5, z=-sign * 1.0))
    with pytest.raises(RefusedError, match="approach it"):  # away and back is nearer, too
        interlock.check_move(moved(x=5, z=-sign * 1.0), moved(x=5, z=-sign * 0.9))
    interlock.check_move(moved(x=5, z=-sign * 1.0), moved(x=6, z=-sign * 0.985))
    with pytest.raises(RefusedError, match="approach it"):
        interlock.check_move(moved(x=6, z=-sign * 0.985), moved(x=7, z=-sign * 0.97))


@pytest.mark.parametrize("state", [State.DISARMED, State.FAULT])
def test_many_small_ways_sideways_do_not_pass_for_retractions(state):
    interlock = Bench(hold_um=0.02).to(state)
    at = HERE
    for way_um in (0.019, 0.0005):
        interlock.check_move(at, at._replace(x=at.x + way_um))
        at = at._replace(x=at.x + way_um)
    with pytest.raises(RefusedError):
        interlock.check_move(at, at._replace(x=at.x + 0.019))
    interlock.check_move(at, at._replace(z=0.0))


def test_the_fault_is_latched_before_anything_is_retracted():
    bench = Bench()
    interlock = bench.to(State.ENGAGED)
    seen = []
    bench.parts.retract_z = lambda: seen.append(interlock.state)
    interlock.overload("3 V")
    assert seen == [State.FAULT]


def test_the_sphere_counts_as_retracted_only_when_it_is_away():
    interlock = Bench(clear_um=1.0).to(State.ENGAGED)
    for near in (HERE, moved(z=-0.9), moved(z=2), moved(z=math.nan)):
        with pytest.raises(RefusedError, match="retract further"):
            interlock.retracted(near)
    interlock.retracted(moved(z=-1))
    assert interlock.state is State.ARMED


# -- rule 7: stop asks nobody -----------------------------------------------------------------------------------------


def test_an_action_may_report_its_own_exchange_from_another_thread_while_a_fault_retracts():
    import threading

    bench = Bench()
    interlock = bench.to(State.ENGAGED)

    def retract_z() -> None:
        other = threading.Thread(target=interlock.polled)
        other.start()
        other.join(5)
        assert not other.is_alive()
        bench.parts.done.append("z")

    bench.parts.retract_z = retract_z
    interlock.overload("3 V")
    assert bench.parts.done == ["z", "focus"]


# -- rule 8: the watchdog ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.ARMED, State.APPROACHING, State.ENGAGED])
def test_a_controller_that_does_not_answer_for_two_seconds_is_a_fault(state):
    bench = Bench()
    interlock = bench.to(state)
    bench.now_s += 2.0
    bench.sampled()
    interlock.tick()
    assert interlock.state is state
    bench.now_s += 0.01
    bench.sampled()
    with pytest.raises(RefusedError):
        interlock.check_move(HERE, moved(x=0.03))
    interlock.tick()
    assert interlock.state is State.FAULT
    assert bench.parts.done == ["z", "focus"]


def test_the_watchdogs_time_is_the_configurations():
    bench = Bench(poll_timeout_s=0.5, contact=False)
    interlock = bench.to(State.ARMED)
    bench.now_s += 0.6
    interlock.tick()
    assert interlock.state is State.FAULT


def test_a_disarmed_instrument_is_not_watched():
    bench = Bench()
    bench.to(State.DISARMED)
    bench.now_s += 1000
    bench.interlock.tick()
    assert bench.interlock.state is State.DISARMED


def test_what_is_disarmed_knowingly_is_not_retracted_and_is_to_be_armed_anew():
    bench = Bench("objective", contact=False)
    interlock = bench.to(State.ARMED)
    interlock.disarm("an autozero")
    assert interlock.state is State.DISARMED
    assert interlock.why == "an autozero"
    assert bench.parts.done == []
    with pytest.raises(RefusedError, match="position is unknown"):
        interlock.arm(by=ME)
    bench.alive()
    interlock.arm(by=ME)


@pytest.mark.parametrize("state", [State.APPROACHING, State.ENGAGED, State.FAULT])
def test_near_the_sphere_and_in_a_fault_nothing_is_disarmed_knowingly(state):
    interlock = Bench().to(state)
    with pytest.raises(RefusedError, match="retract"):
        interlock.disarm("an autozero")
    assert interlock.state is state


# -- the focus stage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mount", ["cantilever", "objective"])
@pytest.mark.parametrize("state", list(State))
def test_the_focus_may_always_go_away_and_towards_only_where_it_cannot_touch(mount, state):
    interlock = Bench(mount).to(state)
    interlock.check_focus(10.0, 20.0)
    allowed = state is State.ARMED or (mount == "cantilever" and state in (State.APPROACHING, State.ENGAGED))
    if allowed:
        interlock.check_focus(10.0, 5.0)
    else:
        with pytest.raises(RefusedError):
            interlock.check_focus(10.0, 5.0)
    with pytest.raises(OutOfRangeError):
        interlock.check_focus(10.0, math.nan)


# -- rules that make no sense -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [{"mount": "glue"}, {"z_sign": 0}, {"max_step_um": math.nan}, {"clear_um": 0.0}, {"poll_timeout_s": -1.0}],
)
def test_rules_that_make_no_sense_are_refused(bad):
    with pytest.raises(OutOfRangeError):
        Rules(**{"mount": "cantilever", "limits_um": TRAVEL, **bad})


# -- all rules at once: whatever happens in whatever order ------------------------------------------------------------

ARROWS = {  # the drawing, as data; an event that is not named changes nothing
    ("arm", State.DISARMED): {State.ARMED},
    ("lost", State.ARMED): {State.DISARMED},
    ("begin_approach", State.ARMED): {State.APPROACHING},
    ("engage", State.APPROACHING): {State.ENGAGED},
    ("retracted", State.APPROACHING): {State.ARMED},
    ("retracted", State.ENGAGED): {State.ARMED},
    ("reset", State.FAULT): {State.DISARMED},
    **{("overload", state): {State.FAULT} for state in State},
    **{("lost", state): {State.FAULT} for state in (State.APPROACHING, State.ENGAGED)},
    **{("tick", state): {State.FAULT} for state in (State.ARMED, State.APPROACHING, State.ENGAGED)},
}
um = st.floats(-0.2, 10.2) | st.sampled_from([math.nan, math.inf, 0.0, 5.0])
positions = st.builds(PositionUm, st.floats(40, 60), st.floats(40, 60), um)
events = st.one_of(
    *(st.tuples(st.just(name)) for name in ("polled", "touches", "tick", "arm", "reset", "sphere_lifted", "alive")),
    st.tuples(st.sampled_from(["lost", "overload"]), st.just("why")),
    st.tuples(st.sampled_from(["begin_approach", "engage", "retracted"]), positions),
    st.tuples(st.just("wait"), st.sampled_from([0.05, 0.2, 3.0])),
    st.tuples(st.just("move"), positions, positions),
    st.tuples(st.just("creep"), st.floats(0.0, 0.09)),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["cantilever", "objective"]), st.booleans(), st.lists(events, max_size=40))
def test_no_sequence_of_events_takes_an_arrow_that_is_not_drawn_or_moves_what_must_not(mount, contact, sequence):
    bench = Bench(mount, contact=contact)
    interlock, parts, rules = bench.interlock, bench.parts, bench.rules
    order = ["z", "focus"] if mount == "cantilever" else ["focus", "z"]
    creeping = HERE
    for name, *arguments in sequence:
        before, lifted = interlock.state, interlock._lifted
        parts.done.clear()
        try:
            if name == "wait":
                bench.now_s += arguments[0]
            elif name == "alive":
                bench.alive()
            elif name == "touches":
                bench.sampled(touches=True)
            elif name in ("arm", "reset", "sphere_lifted"):
                getattr(interlock, name)(by=ME)
            elif name in ("move", "creep"):
                here, target = (
                    arguments if name == "move" else (creeping, creeping._replace(z=creeping.z + arguments[0]))
                )
                interlock.check_move(here, target)
                creeping = target if name == "creep" else creeping
                assert rules.limits_um.contains(target)
                away = abs(target.x - here.x) <= rules.hold_um >= abs(target.y - here.y) and target.z <= here.z
                if before in (State.DISARMED, State.FAULT):
                    assert away
                if before is State.APPROACHING and not away:
                    assert target.z - here.z <= rules.approach_step_um + rules.hold_um
                    assert target.z - interlock._approach.begin_um <= rules.approach_travel_um
                if before is State.ENGAGED and not away:
                    assert abs(target.z - here.z) <= rules.engaged_z_step_um + rules.hold_um
            else:
                getattr(interlock, name)(*arguments)
        except FirmwareError:
            assert interlock.state is before
        after = interlock.state
        assert after is before or after in ARROWS.get((name, before), set()), (name, before, after)
        if name not in ("move", "creep"):
            entered = after is State.FAULT and before is not State.FAULT
            disarmed = name == "lost" and before is State.ARMED and not lifted
            assert parts.done == (order if entered or disarmed else [])
