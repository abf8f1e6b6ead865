"""Which line of which GPIO chip a pin of a board's 40-pin header is.

Sources: NVIDIA, Jetson.GPIO, gpio_pin_data.py (2023; Orin NX and Orin Nano share a carrier board and a map); Raspberry
Pi documentation, "GPIO and the 40-pin header" (a line's offset is its BCM number). The chips are found by their labels,
not by their numbers: a Pi 5's header moved from gpiochip4 to gpiochip0 with kernel 6.6.45 (raspberrypi/linux 6144).

On a Jetson each pin has a function that the device tree gives it, which since JetPack 6 a GPIO library does not change:
a pin becomes an output by `jetson-io.py` or an overlay only.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import LinkError, OutOfRangeError

# GPIO_GET_CHIPINFO_IOCTL of linux/gpio.h: struct gpiochip_info {char name[32], label[32]; __u32 lines}.
CHIP_INFO, INFO_BYTES = 0x8044B401, 68

TEGRA, TEGRA_AON = "tegra234-gpio", "tegra234-gpio-aon"


@dataclass(frozen=True)
class Board:
    """A board's header.

    Attributes
    ----------
    pins : mapping
        Number of a header pin to (label of the chip, line).
    pinmux : bool
        Whether the device tree has to make a pin an output first.
    """

    pins: Mapping[int, tuple[str, int]]
    pinmux: bool


def _pins(label: str, lines: Mapping[int, int]) -> dict[int, tuple[str, int]]:
    return {pin: (label, line) for pin, line in lines.items()}


_BCM = {
    3: 2, 5: 3, 7: 4, 8: 14, 10: 15, 11: 17, 12: 18, 13: 27, 15: 22, 16: 23, 18: 24, 19: 10, 21: 9, 22: 25, 23: 11,
    24: 8, 26: 7, 27: 0, 28: 1, 29: 5, 31: 6, 32: 12, 33: 13, 35: 19, 36: 16, 37: 26, 38: 20, 40: 21,
}  # fmt: skip
_ORIN_NX = _pins(
    TEGRA,
    {
        7: 144, 11: 112, 12: 50, 13: 122, 15: 85, 16: 126, 18: 125, 19: 135, 21: 134, 22: 123, 23: 133, 24: 136,
        26: 137, 29: 105, 31: 106, 32: 41, 33: 43, 35: 53, 36: 113, 37: 124, 38: 52, 40: 51,
    },
)  # fmt: skip
_AGX_ORIN = {
    **_pins(
        TEGRA,
        {
            7: 106, 11: 112, 12: 50, 13: 108, 15: 85, 18: 43, 19: 135, 21: 134, 22: 96, 23: 133, 24: 136, 26: 137,
            35: 53, 36: 113, 38: 52, 40: 51,
        },
    ),
    **_pins(TEGRA_AON, {16: 9, 29: 1, 31: 0, 32: 8, 33: 2, 37: 3}),
}  # fmt: skip

BOARDS = {
    "jetson-orin-nano": Board(_ORIN_NX, pinmux=True),
    "jetson-orin-nx": Board(_ORIN_NX, pinmux=True),
    "jetson-agx-orin": Board(_AGX_ORIN, pinmux=True),
    "raspberry-pi-4": Board(_pins("pinctrl-bcm2711", _BCM), pinmux=False),
    "raspberry-pi-5": Board(_pins("pinctrl-rp1", _BCM), pinmux=False),
}


def line_of(board: str, header_pin: int) -> tuple[str, int]:
    """The chip's label and the line behind a pin of the header.

    Raises
    ------
    OutOfRangeError
        No such board, or the pin is power, ground, or not a GPIO.

    >>> line_of("jetson-orin-nano", 33), line_of("raspberry-pi-5", 12)
    (('tegra234-gpio', 43), ('pinctrl-rp1', 18))
    """
    if board not in BOARDS:
        raise OutOfRangeError(f"no board {board!r}: expected one of {', '.join(BOARDS)}, or give chip and pin")
    pins = BOARDS[board].pins
    if header_pin not in pins:
        raise OutOfRangeError(
            f"pin {header_pin} of the {board}'s header is no GPIO: expected one of {', '.join(map(str, pins))}"
        )
    return pins[header_pin]


def chip_label(path: Path) -> str:
    """What a GPIO chip calls itself."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        info = fcntl.ioctl(descriptor, CHIP_INFO, bytes(INFO_BYTES))
    finally:
        os.close(descriptor)
    return info[32:64].split(b"\0")[0].decode("ascii", "replace")


def find_chip(label: str, *, folder: Path = Path("/dev")) -> int:
    """The number of the chip with a label: N of ``/dev/gpiochipN``.

    Raises
    ------
    LinkError
        There is none, or none that this user may open.
    """
    seen = []
    for path in sorted(folder.glob("gpiochip*")):
        if path.is_symlink():  # an old number kept for old programs
            continue
        try:
            found = chip_label(path)
        except OSError as exc:
            found = f"({exc.strerror})"
        if found == label:
            return int(path.name.removeprefix("gpiochip"))
        seen.append(f"{path.name} {found}")
    raise LinkError(
        f"no GPIO chip {label} here, only {', '.join(seen) or 'none'}: is it the board, is this user in the group gpio?"
    )
