"""What a simulated controller's cable may be: a pseudo terminal or a TCP port, each with a plug to pull."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pty
import socket
import tempfile
import tty
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from firmware_bridge.errors import LinkError

log = logging.getLogger(__name__)


class Wire(Protocol):
    """Bytes from and to one client. All but `address` is for the serving thread alone."""

    address: str

    @property
    def client(self) -> int | None:
        """What to wait for before sending; None while nobody is there."""

    def sources(self, *, reading: bool) -> list[int]:
        """What to wait for; with `reading` False, no data of a client."""

    def receive(self, ready: Sequence[int], most: int) -> bytes | None:
        """Data that came; None if the client is another one from now on."""

    def send(self, data: bytes) -> int:
        """Send what the line takes now; says how many bytes."""

    def plug(self) -> None:
        """Be at the address."""

    def unplug(self) -> None:
        """Hang up, and be at no address. Idempotent."""

    def close(self) -> None:
        """Leave nothing behind."""


class PtyWire:
    """A pseudo terminal behind a symbolic link, as udev's names are."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="superlens-pzt-")
        self.address = str(Path(self._folder.name) / "tty")
        self._ours = self._theirs = -1
        self.plug()

    @property
    def client(self) -> int | None:
        """What to wait for before sending; None while unplugged."""
        return self._ours if self._ours >= 0 else None

    def sources(self, *, reading: bool) -> list[int]:
        """What to wait for; with `reading` False, no data of a client."""
        return [self.client] if reading and self.client is not None else []

    def receive(self, ready: Sequence[int], most: int) -> bytes | None:
        """Data that came. A pty does not tell its clients apart."""
        return os.read(ready[0], most) if ready else b""

    def send(self, data: bytes) -> int:
        """Send what the line takes now; says how many bytes."""
        try:
            return os.write(self._ours, data) if self._ours >= 0 else len(data)
        except BlockingIOError:
            return 0

    def plug(self) -> None:
        """Be at the address."""
        self._ours, self._theirs = pty.openpty()
        tty.setraw(self._theirs)  # kept open: without it, the first client's leaving would hang the line up
        os.set_blocking(self._ours, False)
        Path(self.address).symlink_to(os.ttyname(self._theirs))

    def unplug(self) -> None:
        """Hang up, and be at no address. Idempotent."""
        if self._ours >= 0:
            Path(self.address).unlink(missing_ok=True)
            os.close(self._ours)
            os.close(self._theirs)
            self._ours = -1

    def close(self) -> None:
        """Leave nothing behind."""
        self.unplug()
        self._folder.cleanup()


class TcpWire:
    """A TCP port that serves one client at a time."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._listener: socket.socket | None = None
        self._client: socket.socket | None = None
        self.plug()
        self.address = f"tcp://{host}:{self._port}"

    @property
    def client(self) -> int | None:
        """What to wait for before sending; None while nobody is there."""
        return self._client.fileno() if self._client else None

    def sources(self, *, reading: bool) -> list[int]:
        """What to wait for; with `reading` False, no data of a client."""
        return [one.fileno() for one in (self._listener, self._client if reading else None) if one]

    def receive(self, ready: Sequence[int], most: int) -> bytes | None:
        """Data that came; None if the client is another one from now on."""
        # The client first, to the end of what it said: it may have gone, and the newcomer be the next one.
        if self._client is not None and self._client.fileno() in ready:
            try:
                data = self._client.recv(most)
            except OSError as exc:
                log.info("the simulator's client is gone: %s", exc)
                data = b""
            if data:
                return data
            self._hang_up()
            return None
        if self._listener is not None and self._listener.fileno() in ready:
            newcomer, _ = self._listener.accept()
            if self._client is not None:
                newcomer.close()
                return b""
            self._client = newcomer
            newcomer.setblocking(False)
            newcomer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return None
        return b""

    def send(self, data: bytes) -> int:
        """Send what the line takes now; says how many bytes."""
        try:
            return self._client.send(data) if self._client else len(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            log.info("the simulator's client is gone: %s", exc)
            self._hang_up()
            return len(data)

    def plug(self) -> None:
        """Be at the address."""
        listener = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._port))
            listener.listen()
        except (OSError, OverflowError) as exc:
            listener.close()
            if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
                raise LinkError(
                    f"TCP port {self._port} is in use: stop the other program, or choose another --tcp"
                ) from exc
            raise LinkError(f"cannot listen on {self._host}:{self._port} ({exc})") from exc
        self._listener = listener
        self._port = listener.getsockname()[1]

    def unplug(self) -> None:
        """Hang up, and be at no address. Idempotent."""
        if self._listener is not None:  # first: nobody comes in behind the one who is hung up on
            self._listener.close()
            self._listener = None
        self._hang_up()

    def close(self) -> None:
        """Leave nothing behind."""
        self.unplug()

    def _hang_up(self) -> None:
        if self._client is not None:
            with contextlib.suppress(OSError):  # it may have gone by itself
                self._client.shutdown(socket.SHUT_RDWR)
            self._client.close()
            self._client = None
