"""The virtual machine of test_machine.py, switched on: programs run in it, a USB serial port is plugged and pulled.

QEMU emulates every instruction (TCG): hardware acceleration is not there in CI, and not every /dev/kvm works. So the
machine is some thirty times slower than the host, nothing here is timed, and deadlines only end what hangs.
"""

from __future__ import annotations

import json
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.system.machine import build

BOOT_S, ANSWER_S = 600.0, 400.0
CHECKOUT = "/opt/superlens"
GUEST = (f"{CHECKOUT}/.venv/bin/python3", f"{CHECKOUT}/tests/system/machine/guest.py")

# Without these a clock that is emulated on a busy host is taken for a broken one, and the kernel waits for others.
KERNEL = (
    "root=/dev/vda rw console=ttyS0 systemd.show_status=0 net.ifnames=0 mitigations=off no_timer_check tsc=unstable "
    "clocksource=hpet"
)


def missing() -> str | None:
    """Why the machine cannot be switched on here, or None."""
    why = build.missing()
    return why if why or build.folder().is_dir() else "the machine is not built: `make machine`"


class Done(NamedTuple):
    """How a program ended."""

    code: int
    out: list[str]
    errors: list[str]


class Program:
    """A program in the machine. `Machine.start` makes one."""

    def __init__(self, machine: Machine, number: int, words: Sequence[str]) -> None:
        self._machine, self._number, self._words = machine, number, words
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._done = Done(-1, [], [])
        self._over = False

    def line(self, *, timeout_s: float = ANSWER_S) -> str:
        """Its next line."""
        while not self._over:
            if (line := self._next(timeout_s)) is not None:
                return line
        raise AssertionError(f"{self._words} ended: {self._done}")

    def until(self, pattern: str, *, timeout_s: float = ANSWER_S) -> str:
        """Its next line that holds a pattern."""
        while not re.search(pattern, line := self.line(timeout_s=timeout_s)):
            pass
        return line

    def said(self) -> Any:
        """What its next line of JSON says."""
        return json.loads(self.line())

    def say(self, line: str = "") -> None:
        """Write it a line."""
        self._machine.tell(id=self._number, say=line)

    def wait(self, *, timeout_s: float = ANSWER_S) -> Done:
        """Until it has ended; its lines that nobody asked for are in the result."""
        while not self._over:
            self._next(timeout_s)
        return self._done

    def end(self) -> None:
        """Kill it, if it still runs."""
        if not self._over:
            self._machine.tell(id=self._number, kill=int(signal.SIGKILL))
            self.wait()

    def _next(self, timeout_s: float) -> str | None:
        try:
            event = self.events.get(timeout=timeout_s)
        except queue.Empty:
            raise AssertionError(
                f"{self._words} says nothing for {timeout_s:g} s; before: {self._done}; {self._machine.console()}"
            ) from None
        if "line" in event:
            self._done.out.append(event["line"])
            return str(event["line"])
        if "error" in event:
            self._done.errors.append(event["error"])
        else:
            self._over = True
            self._done = self._done._replace(code=event["code"])
        return None


class Machine:
    """Debian under QEMU, until `close`.

    Parameters
    ----------
    folder : Path
        For a disk with the checkout, and for its console's text.
    serial : str
        host:port of what stands behind the USB serial port.
    serial_number : str
        Of that port's chip.
    """

    def __init__(self, folder: Path, *, serial: str, serial_number: str) -> None:
        host, _, port = serial.rpartition(":")
        self._console = folder / "console"
        self._usb = {"driver": "usb-serial", "id": "pzt", "chardev": "pzt", "bus": "usb.0", "serial": serial_number}
        self._programs: dict[int, Program] = {}
        self._lock = threading.Lock()
        self._agent, agent = socket.socketpair()
        self._orders, theirs = socket.socketpair()
        built = build.folder()
        build.pack_checkout(folder / "checkout.img")
        command = [
            "setpriv", "--pdeathsig", "KILL",  # whatever ends the tests ends it
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max", "-smp", "2",
            "-m", "1536", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", f"{built}/vmlinuz", "-initrd", f"{built}/initrd", "-append", KERNEL,
            "-drive", f"file={built}/root.img,if=virtio,format=raw,snapshot=on",
            "-serial", f"file:{self._console}",
            "-drive", f"file={folder}/checkout.img,if=virtio,format=raw,readonly=on",
            "-device", "virtio-serial", "-chardev", f"socket,id=agent,fd={agent.fileno()}",
            "-device", "virtserialport,chardev=agent,name=agent",
            "-chardev", f"socket,id=monitor,fd={theirs.fileno()}", "-mon", "chardev=monitor,mode=control",
            "-device", "qemu-xhci,id=usb", "-chardev", f"socket,id=pzt,host={host},port={port}",
        ]  # fmt: skip
        self._qemu = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(agent.fileno(), theirs.fileno())
        )
        agent.close()
        theirs.close()
        self._monitor = self._orders.makefile("rw", encoding="utf-8")
        self._orders.settimeout(ANSWER_S)
        hello = self._programs[0] = Program(self, 0, ["the agent"])
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            json.loads(self._monitor.readline())
            self._order("qmp_capabilities")
            hello.line(timeout_s=BOOT_S)
        except BaseException:
            sys.stderr.write(f"{self.close()}{self.console()}\n")
            raise

    def run(self, *words: str | Path, user: str | None = None) -> Done:
        """Run a program to its end."""
        return self.start(*words, user=user).wait()

    def check(self, *words: str | Path, user: str | None = None) -> str:
        """Run a program that must succeed; what it printed."""
        done = self.run(*words, user=user)
        assert done.code == 0, (words, done)
        return "\n".join(done.out)

    def start(self, *words: str | Path, user: str | None = None) -> Program:
        """Begin a program."""
        texts = list(map(str, words))
        number = len(self._programs)
        program = self._programs[number] = Program(self, number, texts)
        self.tell(id=number, run=texts, user=user)
        return program

    @contextmanager
    def running(self, *words: str | Path, user: str | None = None) -> Iterator[Program]:
        """A program that is ended at the end."""
        program = self.start(*words, user=user)
        try:
            yield program
        finally:
            program.end()

    def plug(self) -> None:
        """Put the USB serial port in."""
        self._order("device_add", **self._usb)

    def unplug(self) -> None:
        """Pull it out."""
        self._order("device_del", id=self._usb["id"])

    def console(self) -> str:
        """The last of what the machine's console shows."""
        return self._console.read_text(errors="replace")[-3000:] if self._console.exists() else ""

    def tell(self, **what: Any) -> None:
        """Write to the agent."""
        with self._lock:
            self._agent.sendall(json.dumps(what).encode() + b"\n")

    def close(self) -> str:
        """Switch it off; what QEMU had to say."""
        self._qemu.kill()
        said = self._qemu.communicate()[1].decode(errors="replace")
        self._listener.join()
        self._agent.close()
        self._monitor.close()
        self._orders.close()
        return said

    def _order(self, command: str, **arguments: Any) -> None:
        self._monitor.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._monitor.flush()
        while "return" not in (answer := json.loads(self._monitor.readline())):
            assert "error" not in answer, answer

    def _listen(self) -> None:
        said = b""
        while data := self._agent.recv(65536):
            *lines, said = (said + data).split(b"\n")
            for line in lines:
                event = json.loads(line)
                self._programs[event["id"]].events.put(event)
        for program in list(self._programs.values()):  # nobody is there any more
            program.events.put({"code": -1})
