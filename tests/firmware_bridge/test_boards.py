"""Pin maps: a header's pin is a line of a chip that is found by its label."""

from __future__ import annotations

import pytest

from firmware_bridge import boards
from firmware_bridge.boards import BOARDS, find_chip, line_of
from firmware_bridge.errors import LinkError, OutOfRangeError

POWER_AND_GROUND = {1, 2, 4, 6, 9, 14, 17, 20, 25, 30, 34, 39}


@pytest.mark.parametrize("name", list(BOARDS))
def test_a_map_has_no_power_pin_and_no_line_twice(name):
    pins = BOARDS[name].pins
    assert set(pins) <= set(range(1, 41)) - POWER_AND_GROUND
    assert len(set(pins.values())) == len(pins)


@pytest.mark.parametrize(
    ("board", "pin", "expected"),
    [
        ("jetson-orin-nano", 7, ("tegra234-gpio", 144)),  # PAC.06
        ("jetson-orin-nx", 15, ("tegra234-gpio", 85)),  # PN.01
        ("jetson-agx-orin", 7, ("tegra234-gpio", 106)),  # PQ.06
        ("jetson-agx-orin", 32, ("tegra234-gpio-aon", 8)),  # PBB.00
        ("raspberry-pi-4", 12, ("pinctrl-bcm2711", 18)),
        ("raspberry-pi-5", 40, ("pinctrl-rp1", 21)),
    ],
)
def test_known_pins_are_known_lines(board, pin, expected):
    assert line_of(board, pin) == expected


def test_a_jetsons_line_is_its_ports_place():
    # The tegra234 driver counts the lines of a port in order: PQ.05 and PQ.06, PR.04 and PR.05 are neighbours.
    nano = BOARDS["jetson-orin-nano"].pins
    assert nano[31][1] - nano[29][1] == 1
    assert nano[36][1] - nano[11][1] == 1
    assert [nano[pin][1] for pin in (23, 21, 19, 24, 26)] == [133, 134, 135, 136, 137]  # PZ.03 to PZ.07


def test_what_is_no_board_or_no_gpio_is_refused_with_what_there_is():
    with pytest.raises(OutOfRangeError, match="raspberry-pi-5"):
        line_of("arduino", 7)
    with pytest.raises(OutOfRangeError, match="is no GPIO"):
        line_of("jetson-orin-nano", 6)


def test_a_chip_is_found_by_its_label_whatever_its_number(tmp_path, monkeypatch):
    labels = {"gpiochip0": "gpio-brcmstb@107d508500", "gpiochip4": "pinctrl-rp1", "gpiochip10": None}
    for name in labels:
        (tmp_path / name).touch()
    (tmp_path / "gpiochip9").symlink_to(tmp_path / "gpiochip4")

    def info(descriptor: int, request: int, buffer: bytes) -> bytes:
        import os

        assert (request, len(buffer)) == (0x8044B401, 68)
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        if labels[name] is None:
            raise PermissionError(13, "Permission denied")
        return name.encode().ljust(32, b"\0") + labels[name].encode().ljust(32, b"\0") + b"\x36\0\0\0"

    monkeypatch.setattr(boards.fcntl, "ioctl", info)
    assert find_chip("pinctrl-rp1", folder=tmp_path) == 4
    with pytest.raises(LinkError, match=r"gpiochip10 \(Permission denied\).*group gpio"):
        find_chip("tegra234-gpio", folder=tmp_path)


def test_a_machine_without_gpio_says_so(tmp_path):
    with pytest.raises(LinkError, match="only none"):
        find_chip("pinctrl-rp1", folder=tmp_path)
