"""The appliance's configuration: TOML in, frozen values out, every key with its unit and its bounds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from edge.errors import ConfigError
from firmware_bridge.boards import line_of
from firmware_bridge.contact import Thresholds
from firmware_bridge.gcs import PROFILES
from firmware_bridge.rules import Rules

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_FIELD_UM = 16.0
LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")

PixelFormat = Literal[
    "mono8", "mono10p", "mono12p", "mono16", "bayer_rg8", "bayer_gr8", "bayer_gb8", "bayer_bg8", "rgb8"
]
"""What a camera delivers, by the name in GenICam's Pixel Format Naming Convention (PFNC 2.4) in lower case.

``p`` is packed: a row is a stream of bits, least significant first, and begins on a byte.
"""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic would take true for 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation not in (bool, bool | None):
            raise ValueError("true and false mean nothing here")
        return value


def _is_a_port(port: str) -> str:
    """A name that `firmware_bridge.transport.open_transport` takes, or a simulator's."""
    scheme, _, rest = port.partition("://")
    host, _, number = rest.rpartition(":")
    tcp = scheme in ("tcp", "socket") and host and number.isdecimal() and 0 < int(number) < 65536
    if not (port.startswith("/") or tcp or port in ("sim:", *(f"sim:{profile}" for profile in PROFILES))):
        raise ValueError(f"expected /dev/ttyUSB0, tcp://192.168.0.10:50000 or sim:{next(iter(PROFILES))}, for instance")
    return port


Port = Annotated[str, AfterValidator(_is_a_port)]


class BoxConfig(_Section):
    """The box itself."""

    name: Annotated[str, Field(min_length=1, max_length=40)] = "superlens"
    data_dir: Path | None = None  # snapshots and scans; None: the user's data folder

    @property
    def folder(self) -> Path:
        """Where snapshots and the scans of the page go."""
        return self.data_dir or Path(platformdirs.user_data_dir("superlens", appauthor=False))


class CameraConfig(_Section):
    """Which camera, and how it exposes."""

    driver: Literal["simulated", "replay"] = "simulated"
    path: Path | None = None  # replay: an image file, a folder, a TIFF stack or an .npz
    fps: Annotated[float, Field(ge=0.01, le=1000)] | None = None  # None: 40 simulated, unpaced replay
    exposure_s: Annotated[float, Field(gt=0, le=10)] = 0.005
    shape_px: tuple[Annotated[int, Field(ge=16, le=8192)], Annotated[int, Field(ge=16, le=8192)]] = (512, 512)
    pixel_format: PixelFormat = "mono8"  # of the simulated camera
    bit_depth: Annotated[int, Field(ge=1, le=16)] | None = None  # None: the pixel format's own
    pixel_size_nm: Annotated[float, Field(gt=0, le=100_000)] | None = None  # None: from the optics or the file


class OpticsConfig(_Section):
    """What the simulated camera looks through. The default is a 57 um BaTiO3 glass sphere in water.

    A section with any key in it is taken at its word. Without one, the microscope is the one that the model was trained
    for: see `edge.cameras.microscope`.
    """

    microscope: Literal["sphere", "objective"] = "sphere"  # objective: by itself, without a sphere
    sphere_diameter_um: Annotated[float, Field(ge=2, le=500)] = 57.0
    sphere_index: Annotated[float, Field(ge=1.3, le=2.5)] = 1.9
    medium_index: Annotated[float, Field(ge=1.0, le=1.8)] = 1.33
    wavelength_nm: Annotated[float, Field(ge=200, le=2000)] = 550.0
    effective_na: Annotated[float, Field(gt=0, le=2)] | None = None  # replaces the traced PSF by an Airy pattern
    objective_na: Annotated[float, Field(ge=0.01, le=1.6)] = 0.55
    objective_magnification: Annotated[float, Field(ge=1, le=200)] = 50.0
    camera_pixel_um: Annotated[float, Field(ge=0.5, le=50)] = 6.5


class SpecimenConfig(_Section):
    """What lies under the simulated sphere."""

    path: Path | None = None  # any image file; None: a demonstration specimen, pollen under an objective by itself
    pixel_size_nm: Annotated[float, Field(gt=0, le=100_000)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0


class StageConfig(_Section):
    """The PZT controller. Positions are the stage's own axes."""

    port: Port = "sim:e727"
    baud: Annotated[int, Field(ge=1200, le=4_000_000)] = 115_200
    limits_low_um: tuple[float, float, float] | None = None  # None: the controller's own travel
    limits_high_um: tuple[float, float, float] | None = None
    velocity_um_s: Annotated[float, Field(gt=0, le=100_000)] | None = None
    z_sign: Literal[1, -1] = 1  # -1 where +z takes the sample away from the sphere
    settle_timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    enable_servo: bool | None = None
    # close the servo and arm the interlock; None: only on a simulated stage. True is a person's word that at each start
    # the sphere is lifted, and that nothing can collide

    @model_validator(mode="after")
    def _limits_are_a_box(self) -> StageConfig:
        low_um, high_um = self.limits_low_um, self.limits_high_um
        if (low_um is None) != (high_um is None):
            raise ValueError("limits_low_um and limits_high_um: expected both, or neither")
        for axis, low, high in zip("xyz", low_um or (), high_um or (), strict=False):
            if not low < high:
                raise ValueError(f"{axis} of limits_low_um, {low:g}, is not below that of limits_high_um, {high:g}")
        return self


class InterlockConfig(_Section):
    """What may move, and how far at once: fields of `firmware_bridge.rules.Rules`, with its defaults."""

    max_step_um: Annotated[float, Field(gt=0, le=10_000)] = Rules.max_step_um
    # one move of one axis, the sphere being away
    max_velocity_um_s: Annotated[float, Field(gt=0, le=100_000)] = Rules.max_velocity_um_s  # the same
    engaged_step_um: Annotated[float, Field(gt=0, le=1000)] = Rules.engaged_step_um  # sideways, near the sphere
    engaged_z_step_um: Annotated[float, Field(gt=0, le=10)] = Rules.engaged_z_step_um
    engaged_velocity_um_s: Annotated[float, Field(gt=0, le=10_000)] = Rules.engaged_velocity_um_s
    hold_um: Annotated[float, Field(gt=0, le=1)] = Rules.hold_um  # what counts as standing still
    poll_timeout_s: Annotated[float, Field(ge=0.5, le=60)] = Rules.poll_timeout_s  # a stage so long silent is a fault
    contact_timeout_s: Annotated[float, Field(ge=0.01, le=10)] = Rules.contact_timeout_s  # near the sphere

    @model_validator(mode="after")
    def _near_the_sphere_no_farther_than_away_from_it(self) -> InterlockConfig:
        most_um = self.max_step_um
        for key, step_um in (("engaged_step_um", self.engaged_step_um), ("engaged_z_step_um", self.engaged_z_step_um)):
            if step_um > most_um:
                raise ValueError(f"{key} = {step_um:g} is above max_step_um = {most_um:g}: set it to that, or to less")
        return self


class ContactConfig(_Section):
    """What reads the contact between sphere and sample, a voltage of 0 to 3.3 V, and what it means."""

    driver: Literal["none", "simulated", "ads1115", "mcp3008", "mcp3008-pi"] = "none"  # -pi: through gpiozero
    bus: Annotated[int, Field(ge=0, le=63)] | None = None  # None: I2C bus 1, SPI bus 0
    channel: Annotated[int, Field(ge=0, le=7)] = 0
    address: Annotated[int, Field(ge=0x48, le=0x4B)] = 0x48  # of an ADS1115
    set_point_v: float | None = None  # contact as wanted
    overload_v: float | None = None  # stop and retract
    broken_v: float | None = None  # below it the sensor or its cable is broken: stop and retract; None: not looked at
    debounce: Annotated[int, Field(ge=1, le=100)] = 2  # so many samples in a row have to say the same
    period_s: Annotated[float, Field(ge=0.001, le=0.1)] = 0.005  # between two samples

    @model_validator(mode="after")
    def _says_what_it_means(self) -> ContactConfig:
        given = [key for key in ("set_point_v", "overload_v", "broken_v") if getattr(self, key) is not None]
        if self.driver == "none" and given:
            raise ValueError(
                f"nothing is read without a driver, and {', '.join(given)} would guard nothing: set driver"
            )
        if self.driver != "none" and (self.set_point_v is None or self.overload_v is None):
            raise ValueError("set_point_v and overload_v are needed, in V, as measured with this sensor")
        _ = self.thresholds  # refuses what makes no sense
        return self

    @property
    def thresholds(self) -> Thresholds | None:
        """None where no contact is read."""
        if self.driver == "none" or self.set_point_v is None or self.overload_v is None:
            return None
        return Thresholds(self.set_point_v, self.overload_v, self.broken_v, self.debounce)


class FocusConfig(_Section):
    """The focus stage, which lifts the objective; + is away from the sample."""

    driver: Literal["none", "simulated", "xps", "esp301"] = "none"
    port: Port | None = None  # tcp://HOST:5001 of an XPS, /dev/ttyUSB0 of an ESP301
    axis: Annotated[str, Field(min_length=1)] | None = None  # FOCUS.Pos of an XPS, 1 to 3 of an ESP301
    baud: Annotated[int, Field(ge=1200, le=4_000_000)] = 921_600  # of an ESP301; 19200 at its RS-232 port
    limits_um: tuple[float, float] | None = None  # None: the controller's own
    lift_um: Annotated[float, Field(gt=0, le=100_000)] = 500.0  # how far up, away from the sample, when it is lifted

    @model_validator(mode="after")
    def _says_where_it_is(self) -> FocusConfig:
        if self.driver in ("xps", "esp301") and (self.port is None or self.axis is None):
            raise ValueError("port and axis are needed")
        if self.limits_um is not None and not self.limits_um[0] < self.limits_um[1]:
            raise ValueError("limits_um: expected the lower limit first, then the upper")
        return self


class TriggerConfig(_Section):
    """The line to the camera's hardware trigger: `firmware_bridge.trigger.open_trigger`."""

    driver: Literal["simulated", "gpio"] = "simulated"
    chip: Annotated[int, Field(ge=0)] | None = None  # N of /dev/gpiochipN; without it, board
    pin: Annotated[int, Field(ge=0)] | None = None  # line of the chip, or pin of the board's header
    board: str | None = None  # of `firmware_bridge.boards`: jetson-orin-nano, raspberry-pi-5, ...
    timed: bool = False  # lgpio times the pulses in its own thread
    exposure_pin: Annotated[int, Field(ge=0)] | None = None
    # where the camera's exposure-active output is wired to, counted as pin is: each pulse waits for it

    @model_validator(mode="after")
    def _says_which_line(self) -> TriggerConfig:
        if self.driver == "gpio" and (self.pin is None or (self.chip is None) == (self.board is None)):
            raise ValueError('driver = "gpio" needs pin, and either chip or board: chip = 0, pin = 18 for instance')
        if self.pin is not None and self.pin == self.exposure_pin:
            raise ValueError("exposure_pin is the pin of the trigger itself")
        if self.board is not None:
            for number in (self.pin, self.exposure_pin):
                if number is not None:
                    line_of(self.board, number)  # an OutOfRangeError is a ValueError, in words
        return self


_Matrix = tuple[tuple[float, float], tuple[float, float]]
_Table = tuple[tuple[NonNegativeFloat, float], ...]


class SphereConfig(_Section):
    """The sphere: what carries it, and its usable field in the frame; enhanced is flat grey outside it."""

    mount: Literal["cantilever", "objective"] = "cantilever"  # what carries the sphere: what retracts first
    field_um: Annotated[float, Field(ge=0.1, le=1000)] | None = DEFAULT_FIELD_UM  # diameter; None: the whole frame
    centre_px: tuple[float, float] | None = None  # (y, x); None: the middle of the frame
    camera_from_stage_px_per_um: _Matrix | None = None
    # rows (x, y) of A: a stage move of s um shifts a feature by A @ s px; None: (1 / pixel size) times identity
    distortion: _Table | None = None
    # calibrated pairs of (radius on the specimen in um, relative magnification there), taken out of mosaics; None: the
    # simulated camera's own, on a real one no correction

    @field_validator("camera_from_stage_px_per_um")
    @classmethod
    def _invertible(cls, rows: _Matrix | None) -> _Matrix | None:
        if rows is not None and rows[0][0] * rows[1][1] == rows[0][1] * rows[1][0]:
            raise ValueError("the two stage axes move the image along the same line; calibrate it again")
        return rows

    @field_validator("distortion")
    @classmethod
    def _grows_from_the_axis(cls, table: _Table | None) -> _Table | None:
        if table is not None:
            radii_um = [radius_um for radius_um, _ in table]
            if len(radii_um) < 2 or radii_um[0] != 0 or radii_um != sorted(set(radii_um)):
                raise ValueError("expected at least two pairs whose radius grows from 0 um")
        return table


class EngineConfig(_Section):
    """Which model, and what runs it."""

    model: str = "enhance-rt"  # a bundle's folder, or the name of one that ships in models/zoo
    backend: Literal["openvino", "onnxruntime", "tensorrt"] = "openvino"
    fallback: Literal["openvino"] | None = None  # runs, and says so, where TensorRT does not; None: that is an error
    precision: Literal["fp32", "int8"] = "fp32"
    # of the model file, where the CPU runs it; TensorRT measures what the bundle has, and chooses
    hint: Literal["auto", "bf16", "f32"] = "auto"  # auto: bf16 where the processor has it, else f32
    show: str | None = None  # which of the model's outputs is on view and goes into scans; None: its first


class PreviewConfig(_Section):
    """The live picture."""

    fps: Annotated[float, Field(gt=0, le=60)] = 30.0
    jpeg_quality: Annotated[int, Field(ge=30, le=100)] = 85


class WebConfig(_Section):
    """The status page. Without a password it stays on loopback."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080  # 0 is any that is free; the program says which
    allowed_hosts: tuple[str, ...] = ()  # names besides 127.0.0.1, [::1] and localhost that a request may ask for
    max_viewers: Annotated[int, Field(ge=1, le=64)] = 8

    @field_validator("host")
    @classmethod
    def _loopback(cls, host: str) -> str:
        if host not in LOOPBACK_HOSTS:
            raise ValueError(
                f"the page on {host!r} needs a password, and logins are not built yet; use 127.0.0.1 and an SSH tunnel "
                "(ssh -L 8080:127.0.0.1:8080 box)"
            )
        return host


class Config(_Section):
    """Everything the appliance can be told."""

    box: BoxConfig = BoxConfig()
    camera: CameraConfig = CameraConfig()
    optics: OpticsConfig = OpticsConfig()
    specimen: SpecimenConfig = SpecimenConfig()
    stage: StageConfig = StageConfig()
    interlock: InterlockConfig = InterlockConfig()
    contact: ContactConfig = ContactConfig()
    focus: FocusConfig = FocusConfig()
    trigger: TriggerConfig = TriggerConfig()
    sphere: SphereConfig = SphereConfig()
    engine: EngineConfig = EngineConfig()
    preview: PreviewConfig = PreviewConfig()
    web: WebConfig = WebConfig()

    @model_validator(mode="after")
    def _the_field_lies_in_the_frame(self) -> Config:
        centre_px, shape_px = self.sphere.centre_px, self.camera.shape_px
        if self.camera.driver == "simulated" and centre_px is not None:
            if not all(0 <= at <= side for at, side in zip(centre_px, shape_px, strict=True)):
                raise ValueError(
                    f"sphere.centre_px: (y, x) = ({centre_px[0]:g}, {centre_px[1]:g}) lies outside the frame of "
                    f"{shape_px[0]} x {shape_px[1]} px, camera.shape_px"
                )
        return self


def load_config(path: Path | None = None, overrides: dict[str, dict[str, Any]] | None = None) -> Config:
    """Read a TOML file and lay command-line values over it.

    Parameters
    ----------
    path
        The file; None for the defaults (a wholly simulated instrument).
    overrides
        ``{section: {key: value}}``; a value of None leaves the file's.

    Raises
    ------
    ConfigError
        The file cannot be read, is no TOML, names an unknown key or holds a value out of bounds. Every fault is listed,
        with the key, the value found and what was expected.
    """
    document: dict[str, Any] = {}
    where = "the command line"
    if path is not None:
        where = str(path)
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            raise ConfigError(f"No configuration file at {path}. Check the path, or leave --config out.") from exc
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"The configuration {path} cannot be read: {exc}.") from exc
        except tomllib.TOMLDecodeError as exc:
            raise ConfigError(f"The configuration {path} is no valid TOML: {exc}.") from exc
    for section, values in (overrides or {}).items():
        given = {key: value for key, value in values.items() if value is not None}
        if given and isinstance(document.setdefault(section, {}), dict):  # what is no table, the model refuses
            document[section] = {**document[section], **given}
    try:
        return Config.model_validate(document)
    except ValidationError as exc:
        raise ConfigError(f"The configuration from {where} is wrong:\n" + _explain(exc)) from exc


def _explain(exc: ValidationError) -> str:
    """One line a fault: section.key, what was expected, what was found."""
    lines = []
    for fault in exc.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _known_keys(fault["loc"][:-1])
            lines.append(f"  {key}: unknown key; known here: {', '.join(known)}")
            continue
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "model_type":
            message = f"expected a table: a line [{key}], and its keys below"
        found = "" if isinstance(fault["input"], dict) else f" (found {fault['input']!r})"  # of a table, what is wrong
        lines.append("  " + ": ".join(filter(None, (key, message))) + found)
    return "\n".join(lines)


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return sorted(model.model_fields)
