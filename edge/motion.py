"""All that moves, under its interlock: opened as the configuration says, armed by whom it may be, told in words."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from edge.config import Config, ContactConfig, FocusConfig
from edge.errors import BusyError, ConfigError
from edge.problems import Notice, Problems
from edge.status import InterlockStatus
from firmware_bridge.adc import open_reader
from firmware_bridge.contact import ContactReader, Sample
from firmware_bridge.errors import LinkError, OutOfRangeError, RefusedError
from firmware_bridge.focus import FocusStage, open_focus, open_simulated
from firmware_bridge.guarded import Guarded, open_guarded
from firmware_bridge.position import ANYWHERE
from firmware_bridge.pzt import Box, PositionUm, PztStage, open_stage
from firmware_bridge.safety import Interlock, Rules, State

SPHERE_ABOVE_UM = 2.0
"""How far the simulated sphere is from the sample as the stage is opened."""


class Motion:
    """Stage, focus and contact of one instrument, and the interlock that is asked before anything moves.

    Attributes
    ----------
    stage, interlock
        For those who move, and those who ask.
    simulated
        Which of the parts are simulated, by name.
    """

    def __init__(self, config: Config, guarded: Guarded) -> None:
        self.stage, self.interlock = guarded.stage, guarded.interlock
        self._guarded = guarded
        self._sample: Sample | None = None
        parts = {
            "stage": guarded.stage.simulated,
            "focus": guarded.focus is not None and guarded.focus.simulated,
            "contact": config.contact.driver == "simulated",
        }
        self.simulated = tuple(name for name, simulated in parts.items() if simulated)
        self._armed_by: str | None = None
        if config.stage.enable_servo:
            self._armed_by = "[stage] enable_servo of the configuration"
        elif config.stage.enable_servo is None and guarded.stage.simulated:
            self._armed_by = "the simulated stage"

    def arm(self) -> None:
        """Close the servo and allow moves, where the stage is simulated or the configuration's enable_servo says so.

        Anywhere else it stays disarmed, and a fault that is latched stays latched: that is for a person.

        Raises
        ------
        FirmwareError
            The servo cannot be closed, or the contact guard is silent.
        """
        if self._armed_by is None or self.interlock.state is not State.DISARMED:
            return
        try:
            if not self.stage.ready:
                self.interlock.sphere_lifted(by=self._armed_by)
                self.stage.servo_on()
            self.stage.position_um()  # the interlock arms only who has just answered
            self.interlock.arm(by=self._armed_by)
        except RefusedError:
            if not self.latched:  # else it is on the page, with what to do
                raise

    def check_armed(self) -> None:
        """Refuse what would move, before anything is begun for it.

        Raises
        ------
        BusyError
            A fault is latched.
        ConfigError
            The stage is not armed, and what to do.
        """
        self.check_reset()
        if self.interlock.state is State.DISARMED:
            raise ConfigError(
                "The stage is not armed, so nothing moves. Lift the sphere, set [stage] enable_servo = true in the "
                "configuration, and start superlens again."
            )

    def check_reset(self) -> None:
        """Refuse what begins while a fault is latched.

        Raises
        ------
        BusyError
            One is.
        """
        if self.latched:
            raise BusyError(f"A fault is latched ({self.interlock.why}). Look at sphere and sample, then reset it.")

    def stop(self) -> None:
        """Stop stage and focus at once, neither waiting for the other; the interlock stays where it is. Any thread.

        Raises
        ------
        FirmwareError
            A stop could not be sent; the other was, all the same.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="focus stop") as beside:
            focus = self._guarded.focus
            stopped = beside.submit(focus.stop) if focus is not None else None
            try:
                self.stage.stop()
            finally:
                if stopped is not None:
                    stopped.result()

    def tick(self) -> None:
        """Let the interlock look at its clock: a heartbeat that does watches the threads that do too.

        Raises
        ------
        LinkError
            The thread that watches the stage has died.
        """
        self.interlock.tick()
        self._guarded.watch.check()

    @property
    def latched(self) -> bool:
        """Whether a fault is latched: nothing moves until a person resets it."""
        return self.interlock.state is State.FAULT

    def reset(self, *, by: str) -> None:
        """Unlatch the fault. Nothing moves, and nothing may until it is armed again.

        Raises
        ------
        BusyError
            None is latched, or the contact is still overloaded.
        """
        try:
            self.interlock.reset(by=by)
        except RefusedError as exc:
            raise BusyError(f"Not reset: {exc}.") from exc

    def tell(self, problems: Problems) -> Literal["lost", "latched"] | None:
        """Put what the interlock found wrong into the list; what it is, where a job has to end for it.

        A latched fault stays until a person resets it, a loss until the instrument is opened anew.
        """
        state, why = self.interlock.state, self.interlock.why or "the interlock does not say why"
        why = why[0].upper() + why[1:]
        lost = state is State.DISARMED and self.interlock.why is not None
        if lost and "stage" not in problems:
            problems.put("stage", Notice("The stage is disarmed", f"{why}. Lift the sphere, then start again."))
        servo = (
            ""
            if self.stage.ready
            else " Lift the sphere: the servo is open, and may let the stage jump when it closes."
        )
        words = (
            f"{why}. The stage was told to stop and to retract, and nothing moves any more.{servo} Look at sphere and "
            "sample, then reset."
        )
        latched = state is State.FAULT
        problems.put("interlock", Notice("The interlock stopped the stage", words) if latched else None)
        return "lost" if lost else "latched" if latched else None

    def status(self) -> InterlockStatus:
        """Where the interlock stands, and the newest contact sample with its age."""
        monitor = self._guarded.monitor
        if monitor is not None:
            with contextlib.suppress(LinkError):  # none that is fresh: the last one is told with its age
                self._sample = monitor.latest()
        sample = self._sample
        return InterlockStatus(
            state=self.interlock.state.value,
            why=self.interlock.why,
            contact_v=None if sample is None else sample.value_v,
            set_point_v=None if monitor is None else monitor.thresholds.set_point_v,
            contact_age_s=None if sample is None else time.monotonic() - sample.t_s,
        )


@contextlib.contextmanager
def open_motion(config: Config) -> Iterator[Motion]:
    """Open stage, focus and contact of a configuration under one interlock. Disarmed: nothing moves.

    Raises
    ------
    ConfigError
        The parts do not fit each other.
    FirmwareError
        A part does not answer or refuses; whatever was opened before it is closed again.
    """
    contact, focus, z_sign = config.contact, config.focus, config.stage.z_sign
    rules = Rules(config.sphere.mount, ANYWHERE, z_sign=z_sign, **config.interlock.model_dump())
    with open_guarded(
        rules,
        lambda interlock: _open_stage(config, interlock),
        open_focus=None if focus.driver == "none" else lambda interlock: _open_focus(focus, interlock),
        open_reader=None if contact.driver == "none" else lambda stage: _open_reader(contact, stage, z_sign),
        thresholds=contact.thresholds,
        period_s=contact.period_s,
    ) as guarded:
        yield Motion(config, guarded)


def _open_stage(config: Config, interlock: Interlock) -> PztStage:
    stage = config.stage
    limits_um = None
    if stage.limits_low_um is not None and stage.limits_high_um is not None:
        limits_um = Box(PositionUm(*stage.limits_low_um), PositionUm(*stage.limits_high_um))
    try:
        return open_stage(
            stage.port,
            baud=stage.baud,
            limits_um=limits_um,
            velocity_um_s=stage.velocity_um_s,
            settle_timeout_s=stage.settle_timeout_s,
            z_sign=stage.z_sign,
            guard=interlock,
            enable_servo=False,  # that is for `Motion.arm`, with the interlock bound to the stage
        )
    except OutOfRangeError as exc:
        raise ConfigError(
            f"[stage] limits_low_um, limits_high_um or velocity_um_s do not fit the stage: {exc}."
        ) from exc


def _open_focus(focus: FocusConfig, interlock: Interlock) -> contextlib.AbstractContextManager[FocusStage]:
    limits_um, lift_um = focus.limits_um, focus.lift_um
    if focus.driver == "simulated":
        return open_simulated("xps", limits_um=limits_um, lift_um=lift_um, guard=interlock)
    if focus.port is None or focus.axis is None:
        raise ConfigError(f'[focus] driver = "{focus.driver}" needs port and axis.')
    return open_focus(
        focus.driver,
        focus.port,
        focus.axis,
        baud=focus.baud,
        limits_um=limits_um,
        lift_um=lift_um,
        guard=interlock,
    )


def _open_reader(contact: ContactConfig, stage: PztStage, z_sign: Literal[1, -1]) -> ContactReader:
    if contact.driver != "simulated":
        return open_reader(contact.driver, bus=contact.bus, channel=contact.channel, address=contact.address)
    from firmware_bridge.simulator.cantilever import SimulatedCantilever

    if stage.simulator is None:
        raise ConfigError('[contact] driver = "simulated" works with a simulated stage only.')
    touch_z_um = stage.position_um().z + SPHERE_ABOVE_UM * z_sign
    return SimulatedCantilever(stage.simulator.pose_um, touch_z_um=touch_z_um, z_sign=z_sign)
