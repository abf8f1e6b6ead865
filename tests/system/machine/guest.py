"""What runs inside the machine of test_machine.py, on Debian's own Python.

``agent`` answers the host over a virtio port. The others are programs that a test needs beside the product's own:
``watch`` counts the edges of a GPIO line as the kernel sees them, and can be the camera that answers them;
``handshake`` fires that line; ``poll`` asks a stage until it is gone, and opens it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

PORT = "/dev/virtio-ports/agent"
GROUPS = ("dialout", "video", "render")  # of the unit
TRACING = Path("/sys/kernel/tracing")
GPIO_SIM = Path("/sys/kernel/config/gpio-sim/test")
OVER = "the end"


def say(**what: Any) -> None:
    """A line for the test."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


# -- the agent ---------------------------------------------------------------------------------------------------------


class Agent:
    """Runs programs side by side. One JSON object a line each way.

    From the host: {id, run: [words], user}, {id, say: line}, {id, kill: number}. To the host: {id, line}, {id, error}
    as the program prints, and {id, code} at its end.
    """

    def __init__(self) -> None:
        self._port = open(PORT, "r+b", buffering=0)
        self._lock = threading.Lock()
        self._programs: dict[int, subprocess.Popen[str]] = {}

    def serve(self) -> None:
        """Until the machine is switched off."""
        self._tell(id=0, line="here")
        asked = b""
        while data := self._port.read(65536):
            *lines, asked = (asked + data).split(b"\n")
            for line in lines:
                self._do(json.loads(line))

    def _tell(self, **what: Any) -> None:
        data = json.dumps(what).encode() + b"\n"
        with self._lock:
            while data:
                data = data[self._port.write(data) :]

    def _do(self, request: dict[str, Any]) -> None:
        number = request["id"]
        if "run" in request:
            threading.Thread(target=self._run, args=(number, request["run"], request["user"]), daemon=True).start()
        elif "say" in request:
            stdin = self._programs[number].stdin
            assert stdin is not None
            stdin.write(request["say"] + "\n")
            stdin.flush()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._programs[number].pid, request["kill"])

    def _run(self, number: int, words: list[str], user: str | None) -> None:
        pipe = subprocess.PIPE
        try:
            program = subprocess.Popen(
                words,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                text=True,
                errors="replace",
                user=user,
                group=user,
                extra_groups=GROUPS if user else None,
                start_new_session=True,
                cwd="/",
            )
        except (OSError, LookupError) as exc:
            self._tell(id=number, error=repr(exc))
            self._tell(id=number, code=-1)
            return
        self._programs[number] = program
        readers = [
            threading.Thread(target=self._pass_on, args=(number, kind, stream))
            for kind, stream in (("line", program.stdout), ("error", program.stderr))
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        self._tell(id=number, code=program.wait())

    def _pass_on(self, number: int, kind: str, stream: Any) -> None:
        for line in stream:
            self._tell(id=number, **{kind: line.rstrip("\n")})


# -- GPIO --------------------------------------------------------------------------------------------------------------


class Line:
    """A line of the simulated GPIO chip, from outside of the chip.

    Parameters
    ----------
    offset : int
        Of the line.
    """

    def __init__(self, offset: int) -> None:
        device = (GPIO_SIM / "dev_name").read_text().strip()
        chip = (GPIO_SIM / "bank0/chip_name").read_text().strip()
        self._place = Path(f"/sys/devices/platform/{device}/{chip}/sim_gpio{offset}")
        self.number = (
            int(next(Path(f"/sys/devices/platform/{device}").glob("gpio/gpiochip*/base")).read_text()) + offset
        )

    def pull(self, up: bool) -> None:
        """Drive it, as a camera's output does."""
        (self._place / "pull").write_text("pull-up" if up else "pull-down")


def make_chip(label: str, lines: int) -> None:
    """A GPIO chip that calls itself `label`."""
    bank = GPIO_SIM / "bank0"
    bank.mkdir(parents=True)
    (bank / "label").write_text(label)
    (bank / "num_lines").write_text(str(lines))
    (GPIO_SIM / "live").write_text("1")
    say(chip=(bank / "chip_name").read_text().strip())


def watch(offset: int, answer: int | None = None) -> None:
    """Count rising edges of an output in the kernel's trace, until a line on stdin.

    Its tracepoint gpio_value tells each value that a line is set to. With `answer`, a camera's exposure-active output
    on that line follows each edge, until a line "frame" on stdin.
    """
    number, camera = Line(offset).number, None if answer is None else Line(answer)
    (TRACING / "trace_clock").write_text("counter")  # what happens later is read later, on whatever processor
    (TRACING / "trace").write_text("")
    (TRACING / "events/gpio/gpio_value/enable").write_text("1")
    level = edges = 0
    with (TRACING / "trace_pipe").open() as trace:
        threading.Thread(target=_listen, args=(camera,), daemon=True).start()
        say(watching=number)
        for line in trace:
            if line.rstrip().endswith(f"tracing_mark_write: {OVER}"):
                break
            event = line.partition("gpio_value: ")[2].split()
            if event[:2] == [str(number), "set"]:
                before, level = level, int(event[2])
                edges += level > before
                if camera is not None and level > before:
                    camera.pull(True)
    (TRACING / "events/gpio/gpio_value/enable").write_text("0")
    say(edges=edges, level=level)


def _listen(camera: Line | None) -> None:
    while sys.stdin.readline() == "frame\n" and camera is not None:
        camera.pull(False)
        say(frame=True)
    (TRACING / "trace_marker").write_text(OVER)


def handshake(board: str, pin: int, exposure_pin: int, timeout_s: float) -> None:
    """Fire a camera that says when it exposes, at each line "fire" on stdin."""
    from firmware_bridge.errors import FirmwareError
    from firmware_bridge.trigger import open_trigger

    line = open_trigger(board=board, pin=pin, exposure_pin=exposure_pin, exposure_timeout_s=timeout_s)
    say(open=True)
    while sys.stdin.readline() == "fire\n":
        error = ""
        try:
            line.fire()
        except FirmwareError as exc:
            error = f"{type(exc).__name__}: {exc}"
        say(fired=line.fired, exposed=sum(pulse.exposed_ns is not None for pulse in line.pulses), error=error)
    line.close()


# -- the stage ---------------------------------------------------------------------------------------------------------


def poll(port: str) -> None:
    """Arm the stage and ask where it is until it is gone; after a line on stdin, open it again."""
    from firmware_bridge.errors import LinkError, RefusedError
    from firmware_bridge.position import PositionUm
    from firmware_bridge.pzt import open_stage

    with open_stage(port, reply_timeout_s=30, settle_timeout_s=30, enable_servo=True) as stage:
        stage.move_to(PositionUm(10.0, 20.0, 5.0), timeout_s=60)
        say(identity=stage.identity, ready=stage.ready, polling=True)
        try:
            while True:
                stage.position_um()
        except LinkError as exc:
            say(lost=type(exc).__name__, why=str(exc), ready=stage.ready)
        sys.stdin.readline()
        stage.reconnect()
        say(identity=stage.identity, ready=stage.ready)
        try:
            stage.move_to(PositionUm(30.0, 20.0, 5.0), timeout_s=60)
        except RefusedError as exc:
            say(refused=str(exc), at=list(stage.position_um()))
        stage.servo_on()
        say(ready=stage.ready, at=list(stage.move_to(PositionUm(30.0, 20.0, 5.0), timeout_s=60)))


def main(program: str, *words: str) -> None:
    """Run one of them."""
    numbers = [int(word) if word.isdecimal() else word for word in words]
    programs: dict[str, Callable[..., None]] = {
        "agent": lambda: Agent().serve(),
        "chip": make_chip,
        "pull": lambda offset, up: Line(offset).pull(bool(up)),
        "watch": watch,
        "handshake": handshake,
        "poll": poll,
    }
    programs[program](*numbers)


if __name__ == "__main__":
    main(*sys.argv[1:])
