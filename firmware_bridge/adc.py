"""The contact signal's ADCs: ADS1115 on I2C, MCP3008 on SPI, and gpiozero's MCP3008 on a Raspberry Pi.

Each reading is one conversion that was started for it: a converter that stopped converting cannot go on telling its
last value. Inputs are 0 to 3.3 V; more than a diode drop beyond the supply destroys either chip.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .contact import HIGHEST_V, LOWEST_V, ContactReader
from .errors import LinkError, LinkTimeoutError, OutOfRangeError, ProtocolError, RefusedError

# Offset and gain errors of the chips, and noise about 0 V, are no reason to stop.
MARGIN_V = 0.05


def _in_range(value_v: float, where: str) -> float:
    if not LOWEST_V - MARGIN_V <= value_v <= HIGHEST_V + MARGIN_V:
        raise OutOfRangeError(
            f"{where} reads {value_v:.3f} V, expected {LOWEST_V:g} to {HIGHEST_V:g} V: check the divider at its input"
        )
    return value_v


def _missing(chip: str, exc: ImportError) -> RefusedError:
    return RefusedError(f"the {chip} needs {exc.name}: run .venv/bin/pip install -e '.[jetson]' in the checkout")


class I2cBus(Protocol):
    """What we need of smbus2's SMBus."""

    def write_i2c_block_data(self, address: int, register: int, data: Sequence[int]) -> None:
        """Write bytes to a register."""

    def read_i2c_block_data(self, address: int, register: int, length: int) -> Sequence[int]:
        """Read bytes of a register."""

    def close(self) -> None:
        """Give the bus back."""


class ADS1115:
    """Texas Instruments ADS1115, 16 bits, single-shot conversions at 860 samples/s (data sheet SBAS444, section 9.6).

    Parameters
    ----------
    bus : I2cBus
        Owned from now on. `open` makes one.
    channel : int
        AIN0 to AIN3, against GND.
    address : int
        0x48 to 0x4B, by the ADDR pin.
    """

    CONVERSION, CONFIG = 0x00, 0x01
    START = 1 << 15  # written: start a conversion; read: no conversion is running
    SINGLE_ENDED = 0b100 << 12  # plus the channel
    GAIN = 0b001 << 9  # +-4.096 V full scale: 125 uV a step
    SINGLE_SHOT = 1 << 8
    RATE = 0b111 << 5  # 860 samples/s
    NO_COMPARATOR = 0b11
    FULL_SCALE_V = 4.096
    CONVERSION_S = 1 / 860

    def __init__(
        self,
        bus: I2cBus,
        *,
        channel: int = 0,
        address: int = 0x48,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._check(channel, address)
        self._bus, self._address, self._clock, self._sleep = bus, address, clock, sleep
        self._name = f"ADS1115 {address:#x} AIN{channel}"
        self._config = self.SINGLE_ENDED | channel << 12 | self.GAIN | self.SINGLE_SHOT | self.RATE | self.NO_COMPARATOR
        self._closed = False

    @staticmethod
    def _check(channel: int, address: int) -> None:
        if channel not in range(4) or address not in range(0x48, 0x4C):
            raise OutOfRangeError(f"ADS1115 channel {channel}, address {address:#x}: expected 0 to 3, and 0x48 to 0x4b")

    @classmethod
    def open(cls, *, bus: int = 1, channel: int = 0, address: int = 0x48) -> ADS1115:
        """Open ``/dev/i2c-<bus>``, and read once to see that somebody answers.

        Raises
        ------
        OutOfRangeError
            No such channel or address; nothing was opened.
        RefusedError
            smbus2 is not installed.
        LinkError
            No such bus, or nobody there.
        """
        cls._check(channel, address)
        try:
            from smbus2 import SMBus
        except ImportError as exc:
            raise _missing("ADS1115", exc) from exc
        try:
            reader = cls(SMBus(bus), channel=channel, address=address)
        except OSError as exc:
            raise LinkError(
                f"/dev/i2c-{bus} cannot be opened ({exc}): enable it, and add this user to the group i2c"
            ) from exc
        try:
            with contextlib.suppress(OutOfRangeError):  # somebody answers; what is wired to the input comes later
                reader.read_v()
        except LinkError:
            reader.close()
            raise
        return reader

    def read_v(self) -> float:
        """Convert once; about 1.5 ms. See `contact.ContactReader`."""
        if self._closed:
            raise LinkError(f"the {self._name} is closed: open it again")
        self._start()
        deadline_s = self._clock() + 5 * self.CONVERSION_S + 0.01
        self._sleep(self.CONVERSION_S)
        while not (status := self._read(self.CONFIG)) & self.START:
            if self._clock() > deadline_s:
                raise LinkTimeoutError(f"the {self._name} does not end its conversion")
        if status & ~self.START != self._config:
            raise ProtocolError(
                f"the {self._name} has configuration {status:#06x}, expected {self.START | self._config:#06x}: "
                "did it lose power, does another program use it?"
            )
        counts = self._read(self.CONVERSION)
        if counts >= 0x8000:  # two's complement
            counts -= 0x10000
        return _in_range(counts * self.FULL_SCALE_V / 0x8000, self._name)

    def _start(self) -> None:
        value = self.START | self._config
        try:
            self._bus.write_i2c_block_data(self._address, self.CONFIG, [value >> 8, value & 0xFF])
        except OSError as exc:
            raise self._silent(exc) from exc

    def _read(self, register: int) -> int:
        try:
            data = self._bus.read_i2c_block_data(self._address, register, 2)
        except OSError as exc:
            raise self._silent(exc) from exc
        if len(data) != 2:
            raise ProtocolError(f"the {self._name} sent {len(data)} bytes, expected 2")
        return int(data[0]) << 8 | int(data[1])

    def _silent(self, exc: OSError) -> LinkError:
        return LinkError(f"the {self._name} does not answer ({exc}): check its power, cable and address")

    def close(self) -> None:
        """Give the bus back. Idempotent."""
        if not self._closed:
            self._closed = True
            self._bus.close()


class SpiBus(Protocol):
    """What we need of spidev's SpiDev."""

    def xfer2(self, data: Sequence[int]) -> Sequence[int]:
        """Exchange bytes in one frame."""

    def close(self) -> None:
        """Give the bus back."""


class MCP3008:
    """Microchip MCP3008, 10 bits, supplied and referenced by 3.3 V (data sheet DS21295, section 6.1).

    A MISO line that is stuck at 0 reads as 0 V: configure `broken_v` to notice.

    Parameters
    ----------
    bus : SpiBus
        Owned from now on. `open` makes one.
    channel : int
        CH0 to CH7, single-ended.
    reference_v : float
        Voltage at the VREF pin.
    """

    START, SINGLE_ENDED, NULL_BIT = 0x01, 0x80, 0x04
    FULL_SCALE = 1023
    CLOCK_HZ = 1_000_000  # the data sheet allows 1.35 MHz at 2.7 V, 3.6 MHz at 5 V

    def __init__(self, bus: SpiBus, *, channel: int = 0, reference_v: float = HIGHEST_V) -> None:
        self.check(channel, reference_v)
        self._bus, self._channel, self._reference_v = bus, channel, reference_v
        self._name = f"MCP3008 CH{channel}"
        self._closed = False

    @staticmethod
    def check(channel: int, reference_v: float) -> None:
        """Refuse (OutOfRangeError) what the chip does not have."""
        if channel not in range(8) or not 0 < reference_v <= HIGHEST_V:
            raise OutOfRangeError(
                f"MCP3008 channel {channel}, reference {reference_v} V: expected 0 to 7, and at most {HIGHEST_V} V"
            )

    @classmethod
    def open(cls, *, bus: int = 0, device: int = 0, channel: int = 0, reference_v: float = HIGHEST_V) -> MCP3008:
        """Open ``/dev/spidev<bus>.<device>``.

        Raises
        ------
        OutOfRangeError
            No such channel, or too high a reference; nothing was opened.
        RefusedError
            spidev is not installed.
        LinkError
            No such bus.
        """
        cls.check(channel, reference_v)
        try:
            from spidev import SpiDev
        except ImportError as exc:
            raise _missing("MCP3008", exc) from exc
        spi = SpiDev()
        try:
            spi.open(bus, device)
            spi.max_speed_hz, spi.mode = cls.CLOCK_HZ, 0
        except OSError as exc:
            spi.close()
            raise LinkError(
                f"/dev/spidev{bus}.{device} cannot be opened ({exc}): enable SPI, and add this user to the group spi"
            ) from exc
        return cls(spi, channel=channel, reference_v=reference_v)

    def read_v(self) -> float:
        """Convert once; about 30 us. See `contact.ContactReader`."""
        if self._closed:
            raise LinkError(f"the {self._name} is closed: open it again")
        try:
            reply = self._bus.xfer2([self.START, self.SINGLE_ENDED | self._channel << 4, 0])
        except OSError as exc:
            raise LinkError(f"the {self._name} does not answer ({exc})") from exc
        if len(reply) != 3 or reply[1] & self.NULL_BIT:
            raise ProtocolError(
                f"the {self._name} sent {bytes(reply).hex(' ')}, expected three bytes with a null bit before the "
                "value: check MISO and the chip select"
            )
        counts = (reply[1] & 0x03) << 8 | reply[2]
        if counts == self.FULL_SCALE:
            raise OutOfRangeError(
                f"the {self._name} is at full scale, {self._reference_v:g} V or more: check the divider at its input"
            )
        return _in_range(counts * self._reference_v / (self.FULL_SCALE + 1), self._name)

    def close(self) -> None:
        """Give the bus back. Idempotent."""
        if not self._closed:
            self._closed = True
            self._bus.close()


class Mcp3008OnPi:
    """The same chip through gpiozero, on a Raspberry Pi only: it knows that board's SPI pins and no other's.

    Parameters
    ----------
    device : gpiozero.MCP3008
        Owned from now on. `open` makes one.
    reference_v : float
        Voltage at the VREF pin.
    errors : tuple of exception types
        What the device raises.
    """

    def __init__(
        self, device: Any, *, reference_v: float = HIGHEST_V, errors: tuple[type[Exception], ...] = (OSError,)
    ) -> None:
        self._device, self._reference_v, self._errors = device, reference_v, errors

    @classmethod
    def open(cls, *, channel: int = 0, device: int = 0, reference_v: float = HIGHEST_V) -> Mcp3008OnPi:
        """Open the chip at SPI 0, chip select `device`.

        Raises
        ------
        OutOfRangeError
            No such channel, or too high a reference; nothing was opened.
        RefusedError
            gpiozero is not installed, or this is no Raspberry Pi.
        """
        MCP3008.check(channel, reference_v)
        try:
            import gpiozero
        except ImportError as exc:
            raise _missing("MCP3008", exc) from exc
        try:
            chip = gpiozero.MCP3008(channel=channel, device=device)
        except gpiozero.GPIOZeroError as exc:
            raise RefusedError(
                f"gpiozero knows no SPI pins here ({exc}): this driver is for a Raspberry Pi, take mcp3008 elsewhere"
            ) from exc
        return cls(chip, reference_v=reference_v, errors=(OSError, gpiozero.GPIOZeroError))

    def read_v(self) -> float:
        """Convert once. See `contact.ContactReader`."""
        try:
            counts = self._device.raw_value
        except self._errors as exc:
            raise LinkError(f"the MCP3008 does not answer ({exc}): open it again") from exc
        if counts >= MCP3008.FULL_SCALE:
            raise OutOfRangeError(
                f"the MCP3008 is at full scale, {self._reference_v:g} V or more: check the divider at its input"
            )
        return _in_range(counts * self._reference_v / (MCP3008.FULL_SCALE + 1), "the MCP3008")

    def close(self) -> None:
        """Give the chip back. Idempotent."""
        self._device.close()


READERS: dict[str, Callable[[int | None, int, int], ContactReader]] = {
    "ads1115": lambda bus, channel, address: ADS1115.open(
        bus=1 if bus is None else bus, channel=channel, address=address
    ),
    "mcp3008": lambda bus, channel, _: MCP3008.open(bus=0 if bus is None else bus, channel=channel),
    "mcp3008-pi": lambda _bus, channel, _address: Mcp3008OnPi.open(channel=channel),
}


def open_reader(driver: str, *, bus: int | None = None, channel: int = 0, address: int = 0x48) -> ContactReader:
    """Open what reads the contact.

    Parameters
    ----------
    driver : str
        One of `READERS`; ``mcp3008-pi`` goes through gpiozero.
    bus : int, optional
        By default I2C bus 1, SPI bus 0; gpiozero knows its own.
    channel : int
        Input of the ADC.
    address : int
        Of an ADS1115.

    Raises
    ------
    OutOfRangeError
        No such driver, or it has no such channel or address.
    RefusedError
        Its library is not installed.
    LinkError
        No such bus, or nobody there.
    """
    if driver not in READERS:
        raise OutOfRangeError(f"no ADC {driver!r}: expected one of {', '.join(READERS)}")
    return READERS[driver](bus, channel, address)
