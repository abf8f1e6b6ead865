"""Pulses on their way to their listeners: in order, each once, from whatever thread, whatever a listener does."""

from __future__ import annotations

import threading

from firmware_bridge.position import PositionUm
from firmware_bridge.simulator.pulses import Pulses

HERE = PositionUm(1.0, 2.0, 3.0)


def test_pulses_of_each_output_are_counted_apart_and_heard_where_they_are_wired():
    pulses, heard = Pulses(), []
    pulses.listen(2, lambda *pulse: heard.append(pulse))
    for output, t_s in ((1, 1.0), (2, 2.0), (2, 3.0)):
        pulses.fall(output, t_s, HERE)
    assert pulses.waiting()
    pulses.deliver()
    assert heard == [(0, 2_000_000_000, HERE), (1, 3_000_000_000, HERE)]
    assert not pulses.waiting()
    assert pulses.heard() == {2}


def test_a_listener_may_leave_and_make_another_pulse_while_it_listens():
    pulses, heard = Pulses(), []

    def once(index, t_ns, pose_um):
        heard.append(index)
        leave()
        pulses.fall(1, 2.0, HERE)
        pulses.deliver()

    leave = pulses.listen(1, once)
    pulses.fall(1, 1.0, HERE)
    pulses.deliver()
    assert heard == [0]
    assert pulses.heard() == set()


def test_many_threads_deliver_each_pulse_once_and_in_order():
    pulses, heard = Pulses(), []
    pulses.listen(1, lambda index, t_ns, pose_um: heard.append(index))
    making = threading.Lock()

    def make():
        for _ in range(200):
            with making:
                pulses.fall(1, 0.0, HERE)
            pulses.deliver()

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == list(range(800))
