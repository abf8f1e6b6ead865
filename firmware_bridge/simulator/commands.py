"""`superlens-pzt simulate`: be a controller on a pty or a TCP port, with faults from its options and from stdin."""

from __future__ import annotations

import os
import select
import signal
import sys

import click

from firmware_bridge import gcs
from firmware_bridge.errors import OutOfRangeError

from .controller import Simulator
from .faults import FAULTS, Fault
from .serving import Server, serve_pty, serve_tcp


@click.command(
    epilog="\b\nFaults, each NAME or NAME:times=1,only=POS?,delay_s=0.3,after=0 (times=none: for good):\n"
    + "\n".join(f"  {name:16} {what}" for name, what in FAULTS.items())
)
@click.option("--profile", type=click.Choice(list(gcs.PROFILES)), default="e727", show_default=True)
@click.option("--tcp", type=click.IntRange(0, 65535), help="Listen on this TCP port; 0 chooses one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--pty", "on_pty", is_flag=True, help="Serve a pseudo terminal instead.")
@click.option("--baud", type=click.IntRange(min=1), help="Speed of the line; by default it takes no time.")
@click.option("--fault", "specs", metavar="SPEC", multiple=True, help="Go wrong like this; may be given several times.")
def simulate(profile: str, tcp: int | None, host: str, on_pty: bool, baud: int | None, specs: tuple[str, ...]) -> None:
    """Be a controller with a P-733.3CL stage, until Ctrl-C.

    Each line on standard input is a fault for now, or one of: clear, unplug, replug.
    """
    if on_pty == (tcp is not None):
        raise click.UsageError("give either --tcp PORT or --pty")
    faults = [Fault.parse(spec) for spec in specs]
    simulator = Simulator(profile)
    for fault in faults:
        simulator.faults.add(fault)
    server = serve_pty(simulator, baud=baud) if tcp is None else serve_tcp(simulator, host, tcp, baud=baud)
    stopped, stop = os.pipe()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os.write(stop, b"!"))
    with server:
        click.echo(f"SIMULATED {simulator.profile.model} at {server.address}; Ctrl-C stops it")
        sys.stdout.flush()
        _obey(server, stopped)


def _obey(server: Server, stopped: int) -> None:
    typed, sources = b"", [stopped, *([sys.stdin.fileno()] if sys.stdin else [])]  # None: it was closed
    while stopped not in (ready := select.select(sources, [], [], 1.0)[0]):
        server.check()
        if ready:
            data = os.read(sources[1], 4096)
            if not data:
                sources.pop()
            *lines, typed = (typed + data).split(b"\n")
            for line in lines:
                _order(server, line.decode(errors="replace").strip())


def _order(server: Server, line: str) -> None:
    orders = {
        "": lambda: None,
        "clear": server.simulator.faults.clear,
        "unplug": server.unplug,
        "replug": server.replug,
    }
    try:
        if line in orders:
            orders[line]()
        else:
            server.simulator.faults.add(Fault.parse(line))
    except OutOfRangeError as exc:
        click.echo(f"Error: {exc}", err=True)
