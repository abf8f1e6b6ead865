"""The simulator on a wire: a pty, TCP, one client, and an end."""

from __future__ import annotations

import socket
import threading

import pytest

from firmware_bridge.errors import LinkError
from firmware_bridge.link import Link, open_transport
from firmware_bridge.simulator import Simulator, serve_pty, serve_tcp


@pytest.mark.parametrize("serve", [serve_pty, serve_tcp])
def test_a_client_may_go_and_another_come(serve):
    with serve(Simulator()) as server:
        for _ in range(2):
            link = Link(open_transport(server.address), name=server.address)
            assert "SIMULATED" in link.identify()
            link.interrupt()
            link.close()


@pytest.mark.parametrize("serve", [serve_pty, serve_tcp])
def test_a_server_stops_even_while_its_client_does_not_read(serve):
    simulator = Simulator()
    busy = threading.Event()
    feed = simulator.feed
    simulator.feed = lambda data: (busy.set(), feed(data) * 200_000)[1]
    server = serve(simulator)
    transport = open_transport(server.address)
    transport.write(b"HLP?\n")
    assert busy.wait(5)
    server.stop()
    server.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pzt-simulator")]
    transport.close()


def test_tcp_serves_one_client_at_a_time_and_hangs_up_on_the_second():
    with serve_tcp(Simulator()) as server:
        first = Link(open_transport(server.address), name="first")
        first.identify()
        second = open_transport(server.address)
        with pytest.raises(LinkError, match="closed the connection"):
            second.read(5.0)
        second.close()
        assert first.identify()
        first.close()


def test_tcp_listens_on_this_machine_only_unless_told():
    with serve_tcp(Simulator()) as server:
        assert server.address.startswith("tcp://127.0.0.1:")


def test_a_tcp_port_in_use_is_one_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LinkError, match=f"TCP port {port} is in use"):
            serve_tcp(Simulator(), port=port)


def test_half_a_line_of_a_client_that_left_is_not_completed_by_the_next():
    with serve_tcp(Simulator()) as server:
        first = open_transport(server.address)
        first.write(b"*IDN?\nSVO 1 1")
        first.read(5.0)
        first.close()
        second = Link(open_transport(server.address), name="second")
        second.identify()
        assert second.ask(b"ERR?\n", str) == "0"
        second.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_that_died_tells_its_owner():
    simulator = Simulator()

    def broken(data):
        raise ZeroDivisionError("broken")

    simulator.feed = broken
    server = serve_tcp(simulator)
    transport = open_transport(server.address)
    transport.write(b"*IDN?\n")
    with pytest.raises(LinkError, match="closed the connection"):
        transport.read(5.0)
    transport.close()
    with pytest.raises(LinkError, match="broken"):
        server.stop()
