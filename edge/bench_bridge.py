"""`superlens bench bridge`: the stage's driver against PI's own client, on one wire, in one run.

The simulated controller is a process of its own behind a pty whose speed is a serial line's, 115 200 Bd. A step raster
of small steps is what a scan does: command, wait until at rest, measure. PIPython runs in `.venv-peers` (`make
bench-peers`) as a process of its own, once as its documentation says (`moveandwait`), once as a loop written by hand
(MOV, ONT? until on target, POS?). Ours measures x, y and z, twice by default; its peers x and y, once.

`without_settling` has a controller that says on target as soon as the set point has arrived, while the stage is still
4 ms behind. Ours believes no position further than its tolerance from the target and looks again; its peers take it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import select
import statistics
import subprocess
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from edge.errors import ConfigError, EdgeError
from firmware_bridge import gcs
from firmware_bridge.pzt import PositionUm, PztStage, open_stage
from firmware_bridge.simulator import Simulator, serve_pty

BAUD = 115_200
VELOCITY_UM_S = 1000.0
SETTLING_S = 0.005
TOLERANCE_UM, HELD_S = 0.02, 0.0013
"""On target: the simulated stage is within this window 3.7 ms after its set point arrived, and holds it so long."""
STEP_UM = 4.0
SIDE = 12
"""Tiles of the raster in x and in y."""
RUNS = 3
ROUND_TRIPS = 2000
STOPS = 100
LATE_S = 0.02
"""How long the other thread waits for its reply, when a stop is measured."""
PEERS = Path(__file__).parent.parent / ".venv-peers"
PEER = Path(__file__).with_name("peer_pipython.py")


class StoppedAt(Simulator):
    """A simulator that notes when a stop came."""

    stops_ns: tuple[int, ...] = ()

    def feed(self, data: bytes) -> bytes:
        """As the simulator's."""
        if gcs.STOP in data:
            self.stops_ns += (time.monotonic_ns(),)
        return super().feed(data)


def _serve(orders: Connection, baud: int | None, settling: bool) -> None:
    # Without settling the window is so wide that the stage never leaves it.
    tolerance_um, held_s = (TOLERANCE_UM, HELD_S) if settling else (2 * STEP_UM, 0.0)
    simulator = StoppedAt("e727", tolerance_um=tolerance_um, settling_s=held_s)
    with serve_pty(simulator, baud=baud) as server:
        orders.send(server.address)
        while (order := orders.recv()) is not None:
            if order == "stops":
                orders.send(simulator.stops_ns)
            else:
                times, delay_s = order
                simulator.faults.inject("late", only="POS?", delay_s=delay_s, times=times)


@contextmanager
def _controller(*, baud: int | None, settling: bool) -> Iterator[tuple[str, Connection]]:
    """A simulated controller in a process of its own: its port, and what it takes orders from."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, baud, settling), daemon=True)
    process.start()
    try:
        if not ours.poll(30.0):
            raise EdgeError("The simulated controller does not start within 30 s.")
        yield ours.recv(), ours
    finally:
        ours.send(None)
        process.join(10.0)


def raster() -> list[tuple[float, float]]:
    """Tiles of a meander around the middle of the travel, um."""
    rows = range(SIDE)
    at = [50.0 + STEP_UM * (n - SIDE / 2) for n in rows]
    return [(at[column if row % 2 == 0 else -1 - column], at[row]) for row in rows for column in rows]


def bench_bridge(*, runs: int = RUNS, peers: Path = PEERS) -> dict[str, Any]:
    """Tiles per second and CPU of ours and of the peers, round trips and stops.

    Raises
    ------
    ConfigError
        The peers are not installed.
    EdgeError
        A peer failed.
    """
    python = peers / "bin" / "python"
    if not python.exists():
        raise ConfigError(f"There is no PIPython to compare with in {peers}. Run `make bench-peers`.")
    settled = [_rasters(python, settling=True) for _ in range(runs)]
    at_once = [_rasters(python, settling=False) for _ in range(runs)]
    with _controller(baud=None, settling=True) as (port, _):
        roundtrip_s = _round_trips(port)
        raw_s = _raw_round_trips(port)
    with _controller(baud=BAUD, settling=True) as (port, orders):
        stop_s, stop_while_waiting_s = _stops(port, orders)
    return {
        "baud": BAUD,
        "velocity_um_s": VELOCITY_UM_S,
        "settling_s": SETTLING_S,
        "step_um": STEP_UM,
        "tiles": SIDE * SIDE,
        "runs": runs,
        **_medians(settled),
        "without_settling": _medians(at_once),
        "roundtrip_s": _percentiles(roundtrip_s),
        "roundtrip_raw_s": _percentiles(raw_s),
        "stop_s": _percentiles(stop_s),
        "stop_while_waiting_s": _percentiles(stop_while_waiting_s),
    }


def _rasters(python: Path, *, settling: bool) -> dict[str, dict[str, float]]:
    """One run of all four: name -> tiles_per_s and cpu_fraction."""
    found = {}
    with _controller(baud=BAUD, settling=settling) as (port, _):
        for name, readings in (("superlens", 2), ("superlens_single_read", 1)):
            with open_stage(port, readings=readings, velocity_um_s=VELOCITY_UM_S, enable_servo=True) as stage:
                found[name] = _ours(stage)
        for way in ("moveandwait", "loop"):
            found[f"pipython_{way}"] = _theirs(python, port, way)
    return found


def _ours(stage: PztStage) -> dict[str, float]:
    z_um = stage.target_um().z
    (x_um, y_um), *tiles = raster()
    stage.move_to(PositionUm(x_um, y_um, z_um))
    begun_s, used_s = time.perf_counter(), time.process_time()
    for x_um, y_um in tiles:
        stage.move_to(PositionUm(x_um, y_um, z_um))
    took_s = time.perf_counter() - begun_s
    return {"tiles_per_s": len(tiles) / took_s, "cpu_fraction": (time.process_time() - used_s) / took_s}


def _theirs(python: Path, port: str, way: str) -> dict[str, float]:
    work = json.dumps({"port": port, "baud": BAUD, "way": way, "velocity_um_s": VELOCITY_UM_S, "tiles": raster()})
    done = subprocess.run([python, PEER], input=work, capture_output=True, text=True, timeout=120.0, check=False)
    if done.returncode:
        raise EdgeError(f"PIPython failed in {python.parent.parent}: {done.stderr.strip()[-400:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _medians(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        figure: {name: statistics.median(run[name][figure] for run in runs) for name in runs[0]}
        for figure in ("tiles_per_s", "cpu_fraction")
    }


def _percentiles(times_s: list[float]) -> dict[str, float]:
    ordered = sorted(times_s)
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[len(ordered) * 99 // 100]}


def _timed(action: Callable[[], object], times: int) -> list[float]:
    found = []
    for _ in range(times):
        begun_ns = time.perf_counter_ns()
        action()
        found.append((time.perf_counter_ns() - begun_ns) / 1e9)
    return found


def _round_trips(port: str) -> list[float]:
    with open_stage(port, enable_servo=False) as stage:
        return _timed(stage.position_um, ROUND_TRIPS)


def _raw_round_trips(port: str) -> list[float]:
    """The same question, as the system's calls alone would ask it."""
    line = os.open(port, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line)

    def ask() -> None:
        os.write(line, b"POS? 1 2 3\n")
        reply = b""
        while reply.count(b"\n") < 3:
            select.select([line], [], [])
            reply += os.read(line, 4096)

    try:
        return _timed(ask, ROUND_TRIPS)
    finally:
        os.close(line)


def _stops(port: str, orders: Connection) -> tuple[list[float], list[float]]:
    """From the call to the byte's arrival, with nothing else going on, and while another thread waits for a reply."""
    with open_stage(port, enable_servo=False, reply_timeout_s=1 + LATE_S) as stage:

        def stop() -> int:
            begun_ns = time.monotonic_ns()
            stage.controller.stop()
            return begun_ns

        idle_ns = []
        for _ in range(STOPS):
            idle_ns.append(stop())
            stage.error()
        orders.send((STOPS, LATE_S))
        busy_ns = []
        for _ in range(STOPS):
            waiting = threading.Thread(target=stage.position_um, name="waits for a reply")
            waiting.start()
            time.sleep(LATE_S / 2)  # its question is at the controller by now, the reply is not here yet
            busy_ns.append(stop())
            waiting.join()
            stage.error()
        orders.send("stops")
        came_ns = orders.recv()
    if len(came_ns) != 2 * STOPS:
        raise EdgeError(f"{2 * STOPS} stops were sent, {len(came_ns)} came.")
    took_s = [(came - sent) / 1e9 for came, sent in zip(came_ns, [*idle_ns, *busy_ns], strict=True)]
    return took_s[:STOPS], took_s[STOPS:]
