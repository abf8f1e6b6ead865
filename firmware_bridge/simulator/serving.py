"""A simulated controller on a wire: a pseudo terminal, or TCP to one client at a time."""

from __future__ import annotations

import errno
import logging
import os
import pty
import select
import socket
import threading
import tty
from collections.abc import Callable

from firmware_bridge.errors import LinkError

from .controller import Simulator

log = logging.getLogger(__name__)


class Server:
    """A simulator on a wire, served by one thread until `stop`. `serve_pty` and `serve_tcp` make one.

    Attributes
    ----------
    simulator : Simulator
        What answers.
    address : str
        The port to open: a pty's path, or ``tcp://host:port``.
    """

    def __init__(
        self, simulator: Simulator, address: str, serve: Callable[[int], None], close: Callable[[], None]
    ) -> None:
        self.simulator, self.address = simulator, address
        self._serve, self._close = serve, close
        self._failure: BaseException | None = None
        self._awake, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, name=f"pzt-simulator {address}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._serve(self._awake)
        except BaseException as exc:
            self._failure = exc
            raise

    def check(self) -> None:
        """Raise LinkError if the serving thread has died."""
        if self._failure is not None:
            raise LinkError(f"the simulator at {self.address} died: {self._failure!r}") from self._failure

    def stop(self) -> None:
        """Hang up and end the thread within 2 s. Idempotent.

        Raises
        ------
        LinkError
            The thread died, or does not end.
        """
        if self._wake < 0:
            return
        os.close(self._wake)  # an end of file wakes every select
        self._wake = -1
        self._thread.join(timeout=2.0)
        if self._thread.is_alive():
            raise LinkError(f"the simulator at {self.address} does not stop")
        os.close(self._awake)
        self._close()
        self.check()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve_pty(simulator: Simulator) -> Server:
    """Serve a simulator on a new pseudo terminal; its path is the server's address."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)  # kept open: without it, the first client's leaving would hang the line up
    os.set_blocking(ours, False)

    def serve(awake: int) -> None:
        while awake not in select.select([ours, awake], [], [])[0]:
            reply = simulator.feed(os.read(ours, 65536))
            while reply and awake not in select.select([awake], [ours], [])[0]:
                reply = reply[os.write(ours, reply) :]

    def close() -> None:
        os.close(ours)
        os.close(theirs)

    return Server(simulator, os.ttyname(theirs), serve, close)


def serve_tcp(simulator: Simulator, host: str = "127.0.0.1", port: int = 0) -> Server:
    """Serve a simulator on TCP to one client at a time; a second one is hung up on, as an E-727 does.

    Raises
    ------
    LinkError
        The port is in use, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as exc:
        listener.close()
        if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
            raise LinkError(f"TCP port {port} is in use: stop the other program, or choose another --tcp") from exc
        raise LinkError(f"cannot listen on {host}:{port} ({exc})") from exc

    def serve(awake: int) -> None:
        client: socket.socket | None = None
        try:
            while True:
                sources: list[socket.socket | int] = [listener, awake, *([client] if client else [])]
                ready = select.select(sources, [], [])[0]
                if awake in ready:
                    return
                # The client first, to the end of what it said: it may have gone, and the newcomer be the next one.
                if client is not None and client in ready:
                    if not _serve_client(simulator, client, awake):
                        client.close()
                        client = None
                        simulator.forget_input()
                elif listener in ready:
                    newcomer, _ = listener.accept()
                    if client is not None:
                        newcomer.close()
                        continue
                    client = newcomer
                    client.setblocking(False)
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        finally:
            if client is not None:
                client.close()

    return Server(simulator, f"tcp://{host}:{listener.getsockname()[1]}", serve, listener.close)


def _serve_client(simulator: Simulator, client: socket.socket, awake: int) -> bool:
    try:
        data = client.recv(65536)
        reply = simulator.feed(data)
        while reply and awake not in select.select([awake], [client], [])[0]:
            reply = reply[client.send(reply) :]
    except OSError as exc:
        log.info("the simulator's client is gone: %s", exc)
        return False
    return bool(data)
