"""The simulator on a wire: a pty, TCP, one client, and an end."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from firmware_bridge.errors import LinkError, OutOfRangeError
from firmware_bridge.link import Link
from firmware_bridge.simulator import Simulator, serve_pty, serve_tcp
from firmware_bridge.simulator.serving import Line
from firmware_bridge.transport import open_transport


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


@pytest.mark.parametrize("serve", [serve_pty, serve_tcp])
def test_an_unplugged_line_hangs_up_and_comes_back_at_the_same_address(serve):
    simulator = Simulator()
    with serve(simulator) as server:
        link = Link(open_transport(server.address), name="first")
        link.identify()
        server.unplug()
        server.unplug()
        with pytest.raises(LinkError):
            link.identify()
        link.close()
        with pytest.raises(LinkError):
            open_transport(server.address)
        simulator.feed(b"SVO 1 1\n")  # the controller has kept its power
        server.replug()
        again = Link(open_transport(server.address), name="again")
        again.identify()
        assert again.ask(b"SVO? 1\n", str) == "1=1"
        again.close()


@pytest.mark.parametrize("serve", [serve_pty, serve_tcp])
def test_a_plug_that_a_fault_pulled_is_back_after_its_time(serve):
    simulator = Simulator()
    with serve(simulator) as server:
        link = Link(open_transport(server.address), name="first")
        link.identify()
        simulator.faults.inject("unplug", delay_s=0.05)
        with pytest.raises(LinkError):
            link.identify()
        link.close()
        deadline_s = time.monotonic() + 5.0
        while True:
            try:
                again = Link(open_transport(server.address), name="again")
                break
            except LinkError:
                assert time.monotonic() < deadline_s
        assert "SIMULATED" in again.identify()
        again.close()


@pytest.mark.parametrize("serve", [serve_pty, serve_tcp])
def test_a_line_of_a_baud_rate_takes_ten_bits_a_byte_in_both_directions(serve):
    with serve(Simulator("e727"), baud=9600) as server:
        link = Link(open_transport(server.address), name=server.address)
        size = len(link.identify()) + 1
        begin_s = time.monotonic()
        link.identify()
        took_s = time.monotonic() - begin_s
        link.close()
    wire_s = (len("*IDN?\n") + size) * 10 / 9600
    assert took_s >= wire_s
    assert took_s < wire_s + 1.0  # the link's own drain, and a busy machine


def test_bytes_leave_a_line_one_after_the_other():
    line = Line(1000)  # 10 ms a byte
    line.push(0, b"ab\ncd", cut=b"\n")
    line.push(5_000_000, b"e\n", cut=b"\n")
    assert line.next_ns() == 30_000_000
    assert line.pop(29_999_999) == b""
    assert line.pop(30_000_000) == b"ab\n"
    assert line.pop(69_999_999) == b"cd"
    assert line.pop(70_000_000) == b"e\n"
    assert line.next_ns() is None
    assert line.waiting_bytes == 0


def test_a_late_reply_comes_by_itself():
    simulator = Simulator()
    with serve_pty(simulator) as server:
        transport = open_transport(server.address)
        simulator.faults.inject("late", delay_s=0.1)
        begin_s = time.monotonic()
        transport.write(b"ERR?\n")
        assert transport.read(5.0) == b"0\n"
        assert time.monotonic() - begin_s >= 0.1
        transport.close()


def test_a_deaf_controller_lets_the_hosts_writes_pile_up():
    simulator = Simulator()
    with serve_tcp(simulator) as server:
        transport = open_transport(server.address)
        transport.write(b"ERR?\n")
        assert transport.read(5.0) == b"0\n"
        simulator.faults.inject("deaf")
        transport.write(b"ERR?\n")
        assert transport.read(0.1) == b""
        simulator.faults.clear()
        server.replug()  # wakes the server; the plug was in
        assert transport.read(5.0) == b"0\n"
        transport.close()


def test_a_served_line_burns_no_processor_while_nobody_talks():
    with serve_pty(Simulator(), baud=115200):
        begin_s = time.process_time()
        threading.Event().wait(1.0)
        assert time.process_time() - begin_s < 0.3  # a busy loop burns 1 s, and threads of other tests a little


@pytest.mark.parametrize("baud", [0, -9600])
def test_a_baud_rate_that_is_none_is_refused(baud):
    with pytest.raises(OutOfRangeError, match="Bd"):
        serve_pty(Simulator(), baud=baud)
