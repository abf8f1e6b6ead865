"""The web server under the page: waitress on its own thread, bound at once, ended cleanly.

Waitress answers every request, also an endless one, on one of its worker threads; so there must be more of them than
streams that may be open.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
from typing import Any

from flask import Flask
from waitress.server import create_server
from waitress.wasyncore import dispatcher

from edge.errors import ConfigError

log = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 5.0
MAX_BODY_BYTES = 64 * 1024  # waitress stores a body before the app can refuse it
SEND_BUFFER_BYTES = 64 * 1024  # in the kernel, per client: a large one would hold old pictures
UNTAKEN_BYTES = 4096  # in waitress, per client: with more than this not sent, the next picture waits
CLIENT_TIMEOUT_MS = 10_000  # the kernel's unit; a client that takes nothing for so long is cut off


class PageServer:
    """One listening page. :meth:`start` serves it, :meth:`close` ends it; it cannot be started again."""

    def __init__(self, app: Flask, listener: socket.socket, *, threads: int) -> None:
        self.port: int = listener.getsockname()[1]
        # Connections inherit these from the socket that accepts them.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, CLIENT_TIMEOUT_MS)
        self._server: Any = create_server(
            app,
            sockets=[listener],
            threads=threads,
            outbuf_high_watermark=UNTAKEN_BYTES,
            max_request_body_size=MAX_BODY_BYTES,
            channel_request_lookahead=1,  # without it a stream never learns that its client has left
            clear_untrusted_proxy_headers=False,  # the app refuses them, so it has to see them
            ident="superlens",
        )
        self._closed = False
        self._thread = threading.Thread(target=self._server.run, name="web", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        log.info("page on port %d", self.port)

    def close(self) -> None:
        """End all streams, free the port, join the threads. May be called twice."""
        if self._closed:
            return
        self._closed = True
        server, trigger = self._server, self._server.trigger
        if not self._thread.is_alive():
            server.task_dispatcher.shutdown(timeout=JOIN_TIMEOUT_S)
            server.close()
            return
        trigger.pull_trigger(self._hang_up)  # waitress' sockets belong to its own loop
        server.task_dispatcher.shutdown(timeout=JOIN_TIMEOUT_S)
        # The workers write to the trigger's pipe until they end, and its number may soon be another file's.
        with trigger.lock:  # the loop may be awake already: it must not close the pipe before we have written to it
            trigger.thunks.append(trigger.close)
            trigger.pull_trigger()
        self._thread.join(JOIN_TIMEOUT_S)

    def _hang_up(self) -> None:
        """Close the port and every connection; a worker that streams then ends. On the web thread."""
        dispatcher.close(self._server)
        for channel in list(self._server.active_channels.values()):
            channel.handle_close()


def serve(app: Flask, *, host: str, port: int, threads: int) -> PageServer:
    """Bind the page to an address; :meth:`PageServer.start` then serves it.

    Parameters
    ----------
    host, port
        Where to listen; port 0 takes a free one.
    threads
        Requests that can be answered at the same time; each open stream takes one.

    Raises
    ------
    ConfigError
        The port is in use, or the address is not one of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"Port {port} on {host} is already in use. Stop the other program or choose another with --port."
            ) from exc
        raise ConfigError(f"The page cannot listen on {host}, port {port}: {exc.strerror or exc}.") from exc
    return PageServer(app, listener, threads=threads)
