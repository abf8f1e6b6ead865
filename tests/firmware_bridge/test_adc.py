"""The ADCs' registers as their data sheets draw them, on buses that play transcripts."""

from __future__ import annotations

import sys
import types

import pytest

from firmware_bridge.adc import ADS1115, MCP3008, Mcp3008OnPi, open_reader
from firmware_bridge.errors import LinkError, LinkTimeoutError, OutOfRangeError, ProtocolError, RefusedError


class I2c:
    """Plays a transcript: ("w", register, bytes) or ("r", register, bytes); anything else fails the test."""

    def __init__(self, script) -> None:
        self.script, self.closed = list(script), 0

    def write_i2c_block_data(self, address, register, data) -> None:
        assert ("w", register, bytes(data)) == self.script.pop(0)[:3]
        assert address == 0x48

    def read_i2c_block_data(self, address, register, length):
        kind, expected, data = self.script.pop(0)
        assert (kind, register, length) == ("r", expected, 2)
        if isinstance(data, Exception):
            raise data
        return list(data)

    def close(self) -> None:
        self.closed += 1


# OS=1 MUX=100 (AIN0, GND) PGA=001 (4.096 V) MODE=1 | DR=111 (860/s) COMP_QUE=11 (off)
START = ("w", 1, b"\xc3\xe3")
BUSY, DONE = ("r", 1, b"\x43\xe3"), ("r", 1, b"\xc3\xe3")


def ads1115(*script, **keywords) -> ADS1115:
    times = iter(range(1000))
    return ADS1115(I2c(script), clock=lambda: next(times) * 1e-3, sleep=lambda _: None, **keywords)


@pytest.mark.parametrize(
    ("counts", "value_v"),
    [
        (b"\x00\x00", 0.0),
        (b"\x00\x01", 125e-6),
        (b"\x40\x00", 2.048),
        (b"\x67\x20", 3.3),
        (b"\xff\xff", -125e-6),  # two's complement
        (b"\xff\x00", -0.032),
    ],
)
def test_an_ads1115_converts_once_for_each_reading(counts, value_v):
    reader = ads1115(START, BUSY, BUSY, DONE, ("r", 0, counts))
    assert reader.read_v() == pytest.approx(value_v, abs=1e-9)
    assert not reader._bus.script


def test_each_channel_of_an_ads1115_has_its_own_multiplexer_bits():
    for channel, high in enumerate((0xC3, 0xD3, 0xE3, 0xF3)):
        config = bytes([high, 0xE3])
        reader = ads1115(("w", 1, config), ("r", 1, config), ("r", 0, b"\x20\x00"), channel=channel)
        assert reader.read_v() == pytest.approx(1.024)


@pytest.mark.parametrize("counts", [b"\x7f\xff", b"\x69\xa0", b"\xf0\x00", b"\x80\x00"])
def test_a_voltage_that_no_contact_signal_has_is_refused(counts):
    with pytest.raises(OutOfRangeError, match=r"expected 0 to 3\.3 V"):
        ads1115(START, DONE, ("r", 0, counts)).read_v()


def test_an_ads1115_that_lost_power_does_not_go_on_telling_its_last_value():
    with pytest.raises(ProtocolError, match="did it lose power"):
        ads1115(START, ("r", 1, b"\x85\x83")).read_v()  # the value after a reset, SBAS444 table 8


def test_a_conversion_that_never_ends_is_a_time_out():
    with pytest.raises(LinkTimeoutError, match="does not end"):
        ads1115(START, *[BUSY] * 100).read_v()


def test_an_ads1115_that_is_not_there_is_one_clear_error():
    with pytest.raises(LinkError, match="check its power, cable and address"):
        ads1115(START, ("r", 1, OSError(121, "Remote I/O error"))).read_v()


def test_half_a_register_is_a_protocol_error():
    with pytest.raises(ProtocolError, match="1 bytes"):
        ads1115(START, ("r", 1, b"\xc3")).read_v()


@pytest.mark.parametrize("bad", [{"channel": 4}, {"channel": -1}, {"address": 0x4C}])
def test_an_ads1115_has_four_channels_and_four_addresses(bad):
    with pytest.raises(OutOfRangeError):
        ads1115(**bad)


def test_a_bus_is_given_back_once_and_then_refused():
    reader = ads1115()
    bus = reader._bus
    reader.close()
    reader.close()
    assert bus.closed == 1
    with pytest.raises(LinkError, match="closed"):
        reader.read_v()


def test_opening_an_ads1115_reads_it_once(monkeypatch):
    bus = I2c([START, DONE, ("r", 0, b"\x7f\xff")])  # answers; that its input is out of range is no reason to refuse
    monkeypatch.setitem(sys.modules, "smbus2", types.SimpleNamespace(SMBus=lambda number: bus))
    ADS1115.open(bus=7)
    assert not bus.script
    absent = I2c([START, ("r", 1, OSError(121, "Remote I/O error"))])
    monkeypatch.setitem(sys.modules, "smbus2", types.SimpleNamespace(SMBus=lambda number: absent))
    with pytest.raises(LinkError):
        ADS1115.open()
    assert absent.closed == 1


def test_a_bus_that_does_not_exist_says_what_to_do(monkeypatch):
    def no_bus(number):
        raise FileNotFoundError(2, "No such file", f"/dev/i2c-{number}")

    monkeypatch.setitem(sys.modules, "smbus2", types.SimpleNamespace(SMBus=no_bus))
    with pytest.raises(LinkError, match="/dev/i2c-3 cannot be opened"):
        ADS1115.open(bus=3)


@pytest.mark.parametrize(
    ("module", "opens"), [("smbus2", ADS1115.open), ("spidev", MCP3008.open), ("gpiozero", Mcp3008OnPi.open)]
)
def test_a_missing_library_names_its_extra(monkeypatch, module, opens):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RefusedError, match=r"pip install -e '\.\[jetson\]' in the checkout"):
        opens()


class Spi:
    """Answers one frame; keeps what was sent."""

    def __init__(self, reply) -> None:
        self.reply, self.sent, self.closed = reply, [], 0

    def open(self, bus, device) -> None:
        if isinstance(self.reply, Exception):
            raise self.reply
        self.opened = (bus, device)

    def xfer2(self, data):
        self.sent.append(bytes(data))
        if isinstance(self.reply, Exception):
            raise self.reply
        return list(self.reply)

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("channel", "reply", "counts", "sent"),
    [
        (0, b"\xff\x00\x00", 0, b"\x01\x80\x00"),  # what comes before the null bit is not driven
        (1, b"\xff\xf8\x01", 1, b"\x01\x90\x00"),
        (5, b"\x00\x02\x00", 512, b"\x01\xd0\x00"),
        (7, b"\x00\x03\xfe", 1022, b"\x01\xf0\x00"),
    ],
)
def test_an_mcp3008_answers_ten_bits_behind_a_null_bit(channel, reply, counts, sent):
    bus = Spi(reply)
    assert MCP3008(bus, channel=channel).read_v() == pytest.approx(counts * 3.3 / 1024)
    assert bus.sent == [sent]


@pytest.mark.parametrize("reply", [b"\xff\xff\xff", b"\x00\x04\x00", b"\x00\x00"])
def test_a_line_that_nobody_drives_is_no_value(reply):
    with pytest.raises(ProtocolError, match="null bit"):
        MCP3008(Spi(reply)).read_v()


def test_full_scale_is_refused_because_it_may_be_any_voltage_above():
    with pytest.raises(OutOfRangeError, match="full scale"):
        MCP3008(Spi(b"\x00\x03\xff")).read_v()


def test_an_spi_bus_that_fails_is_a_link_error():
    with pytest.raises(LinkError, match="does not answer"):
        MCP3008(Spi(OSError(5, "I/O error"))).read_v()


@pytest.mark.parametrize("bad", [{"channel": 8}, {"reference_v": 5.0}, {"reference_v": 0.0}])
def test_an_mcp3008_has_eight_channels_and_no_five_volts(bad):
    with pytest.raises(OutOfRangeError):
        MCP3008(Spi(b""), **bad)


def test_opening_an_mcp3008_sets_mode_and_clock(monkeypatch):
    bus = Spi(b"\x00\x02\x00")
    monkeypatch.setitem(sys.modules, "spidev", types.SimpleNamespace(SpiDev=lambda: bus))
    reader = MCP3008.open(bus=1, device=2, channel=3)
    assert (bus.opened, bus.mode, bus.max_speed_hz) == ((1, 2), 0, 1_000_000)
    assert reader.read_v() == pytest.approx(1.65)
    reader.close()
    reader.close()
    assert bus.closed == 1
    with pytest.raises(LinkError, match="closed"):
        reader.read_v()
    broken = Spi(FileNotFoundError(2, "No such file"))
    monkeypatch.setitem(sys.modules, "spidev", types.SimpleNamespace(SpiDev=lambda: broken))
    with pytest.raises(LinkError, match=r"/dev/spidev0\.0 cannot be opened"):
        MCP3008.open()
    assert broken.closed == 1


class PiDevice:
    def __init__(self, raw_value) -> None:
        self.value = raw_value

    @property
    def raw_value(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    def close(self) -> None:
        self.value = OSError("closed")


def test_a_raspberry_pis_mcp3008_is_the_same_chip():
    reader = Mcp3008OnPi(PiDevice(512))
    assert reader.read_v() == pytest.approx(1.65)
    reader.close()
    with pytest.raises(LinkError):
        reader.read_v()
    with pytest.raises(OutOfRangeError, match="full scale"):
        Mcp3008OnPi(PiDevice(1023)).read_v()


def test_gpiozeros_mcp3008_off_a_pi_names_the_other_driver(monkeypatch):
    class GPIOZeroError(Exception):
        pass

    def no_pi(**_):
        raise GPIOZeroError("PinUnknownPi")

    monkeypatch.setitem(sys.modules, "gpiozero", types.SimpleNamespace(MCP3008=no_pi, GPIOZeroError=GPIOZeroError))
    with pytest.raises(RefusedError, match="mcp3008 elsewhere"):
        Mcp3008OnPi.open()


@pytest.mark.parametrize(
    "opens",
    [
        lambda: ADS1115.open(channel=6),
        lambda: ADS1115.open(address=0x47),
        lambda: MCP3008.open(channel=8),
        lambda: MCP3008.open(reference_v=5.0),
        lambda: Mcp3008OnPi.open(channel=8),
        lambda: Mcp3008OnPi.open(reference_v=5.0),
    ],
)
def test_a_channel_that_does_not_exist_is_refused_before_anything_is_opened(monkeypatch, opens):
    opened = []

    def open_it(*_, **__) -> None:
        opened.append(1)
        raise OSError("opened")

    monkeypatch.setitem(sys.modules, "smbus2", types.SimpleNamespace(SMBus=open_it))
    monkeypatch.setitem(sys.modules, "spidev", types.SimpleNamespace(SpiDev=open_it))
    monkeypatch.setitem(sys.modules, "gpiozero", types.SimpleNamespace(MCP3008=open_it, GPIOZeroError=OSError))
    with pytest.raises(OutOfRangeError):
        opens()
    assert opened == []


def test_a_reader_is_opened_by_the_name_of_its_driver(monkeypatch):
    opened = []
    for chip in (ADS1115, MCP3008, Mcp3008OnPi):
        monkeypatch.setattr(chip, "open", lambda name=chip.__name__, **keywords: opened.append((name, keywords)))
    open_reader("ads1115", channel=2, address=0x49)
    open_reader("mcp3008", bus=1)
    open_reader("mcp3008-pi", channel=7)
    assert opened == [
        ("ADS1115", {"bus": 1, "channel": 2, "address": 0x49}),
        ("MCP3008", {"bus": 1, "channel": 0}),
        ("Mcp3008OnPi", {"channel": 7}),
    ]
    with pytest.raises(OutOfRangeError, match="no ADC 'ads1015'"):
        open_reader("ads1015")
