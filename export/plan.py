"""A TensorRT plan on disk: the key it was built under, who may have written it, and how it gets there whole.

A plan holds machine code for one GPU, one driver and one release of TensorRT. Beside ``NAME.plan`` lies
``NAME.plan.json``, its :class:`PlanRecord`; a plan is used only where every field of the record's key is as it is here.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pwd
import re
import shlex
import stat
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from export.errors import PlanError
from export.manifest import BuiltWith, FileName, Precision, Sha256

Shape = tuple[int, int]

_WORDS = {
    "tensorrt": "TensorRT",
    "cuda": "CUDA",
    "gpu": "the GPU",
    "compute_capability": "compute capability",
    "l4t": "L4T",
    "onnx_sha256": "the ONNX file",
    "precision": "precision",
    "shape_px": "frames of (height, width) px",
}

# Numbers of cuda.h (CUdevice_attribute), which never change.
_NOT_ALLOWED = (
    "On a Jetson this user is as a rule not in the groups video and render: "
    "sudo usermod --append --groups video,render USER"
)
_MULTIPROCESSORS, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 16, 75, 76


class PlanKey(BuiltWith):
    """Everything that must be the same where a plan is used.

    ``gpu`` is the driver's name and the number of multiprocessors: all Orin modules have one name, and a power mode can
    switch multiprocessors off. ``cuda`` is the driver's.
    """

    onnx_sha256: Sha256
    precision: Precision
    shape_px: Shape


class PlanRecord(BaseModel):
    """What one plan file is. ``layers``: how many TensorRT's inspector lists after fusion, None where it does not."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    file: FileName
    sha256: Sha256
    key: PlanKey
    layers: int | None = Field(ge=1)
    workspace_mb: int
    optimization_level: int
    build_s: float
    built_utc: str


class Device(NamedTuple):
    """The GPU and the system that a plan is bound to."""

    gpu: str
    compute_capability: str
    cuda: str
    l4t: str | None


def this_device() -> Device:
    """GPU 0 as the CUDA driver describes it. Needs no CUDA context.

    Raises
    ------
    PlanError
        There is no driver, or it has no GPU.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as exc:
        raise PlanError(
            f"There is no CUDA driver here ({exc}). TensorRT needs an NVIDIA GPU; a Jetson's driver comes with JetPack."
        ) from exc

    def ask(function: str, *arguments: object) -> None:
        code = getattr(cuda, function)(*arguments)
        if code:
            remedy = _NOT_ALLOWED if code in (100, 801) and l4t_release() else "Run: nvidia-smi"
            raise PlanError(f"The CUDA driver has no usable GPU: {function} returned error {code}. {remedy}")

    def attribute(number: int) -> int:
        ask("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    device, value, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    ask("cuInit", 0)
    ask("cuDeviceGet", ctypes.byref(device), 0)
    ask("cuDeviceGetName", name, len(name), device)
    ask("cuDriverGetVersion", ctypes.byref(value))
    version = value.value  # 1000 major + 10 minor
    return Device(
        gpu=f"{name.value.decode()}, {attribute(_MULTIPROCESSORS)} SM",
        compute_capability=f"{attribute(_CAPABILITY_MAJOR)}.{attribute(_CAPABILITY_MINOR)}",
        cuda=f"{version // 1000}.{version % 1000 // 10}",
        l4t=l4t_release(),
    )


def l4t_release(path: Path = Path("/etc/nv_tegra_release")) -> str | None:
    """The Jetson's L4T release, for instance 36.4.0; None on any other machine."""
    if not path.is_file():
        return None
    found = re.match(r"# R(\d+) .*?REVISION: ([\d.]+)", path.read_text(encoding="utf-8"))
    if found is None:
        raise PlanError(f"{path} does not begin with a release such as '# R36 (release), REVISION: 4.0'.")
    return ".".join(found.groups())


def key_here(tensorrt: str, *, onnx_sha256: str, precision: Precision, shape_px: Shape) -> PlanKey:
    """The key of a plan that release ``tensorrt`` would build, or use, on this device; PlanError as `this_device`."""
    return PlanKey(
        tensorrt=tensorrt,
        onnx_sha256=onnx_sha256,
        precision=precision,
        shape_px=shape_px,
        **this_device()._asdict(),
    )


def plan_name(model: str, precision: Precision, shape_px: Shape) -> str:
    """The file name of a plan.

    >>> plan_name("enhance-rt", "fp16", (512, 640))
    'enhance-rt_fp16_512x640.plan'
    """
    return f"{_plain(model)}_{precision}_{shape_px[0]}x{shape_px[1]}.plan"


def choice_name(model: str, shape_px: Shape) -> str:
    """The file name of what was measured of a model's plans, and which of them runs.

    >>> choice_name("my model", (512, 640))
    'my-model_512x640.choice.json'
    """
    return f"{_plain(model)}_{shape_px[0]}x{shape_px[1]}.choice.json"


def _plain(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", model)


def build_command(onnx: Path, *, model: str, precision: Precision, shape_px: Shape, folder: Path) -> tuple[str, ...]:
    """What makes a plan, as arguments of `python`."""
    sides = map(str, shape_px)
    where = ("--name", model, "--precision", precision, "--shape-px", *sides, "--out", str(folder))
    return ("-m", "export.build_engine", str(onnx), *where)


def read_plan(folder: Path, name: str, key: PlanKey, *, remedy: str) -> tuple[bytes, PlanRecord]:
    """The plan's bytes, after everything about it was found in order.

    Raises
    ------
    PlanError
        It is absent, damaged, not to be read, built under another key, or others could have written it. The message
        names all that is wrong with the key, and ends with ``remedy``, or what to do about the owner.
    """
    path, beside = folder / name, folder / f"{name}.json"
    plan, text = read_private(path), read_private(beside)
    if plan is None or text is None:
        raise PlanError(f"There is no TensorRT plan {path}. {remedy}")
    try:
        record = PlanRecord.model_validate_json(text)
    except ValidationError as exc:
        wrong = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in exc.errors())
        raise PlanError(f"{beside} is no record of a plan ({wrong}). {remedy}") from exc
    if differing := differences(record.key, key):
        raise PlanError(f"The plan {path} was built for {', '.join(differing)}. {remedy}")
    if hashlib.sha256(plan).hexdigest() != record.sha256:
        raise PlanError(f"The plan {path} ({len(plan)} bytes) is damaged or cut off: its hash is wrong. {remedy}")
    return plan, record


def differences(built: PlanKey, here: PlanKey) -> list[str]:
    """Each field that differs, in words: what the plan was built for, and what is here."""
    return [
        f"{words} {_brief(getattr(built, field))} (here {_brief(getattr(here, field))})"
        for field, words in _WORDS.items()
        if getattr(built, field) != getattr(here, field)
    ]


def _brief(value: object) -> str:
    text = "none" if value is None else str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def read_private(path: Path) -> bytes | None:
    """The bytes of a file in a folder of plans; None where there is none.

    Raises
    ------
    PlanError
        As `check_private`; or this user may not read it, as when root has made it.
    """
    try:
        if not path.is_file():
            return None
        check_private(path)
        return path.read_bytes()
    except OSError as exc:
        raise PlanError(f"{path} cannot be read: {exc.strerror}. {remedy_of(exc, path.parent)}") from exc


def remedy_of(exc: OSError, folder: Path) -> str:
    """What to do about a folder of plans that cannot be read or written."""
    if isinstance(exc, PermissionError):
        return f"Plans belong to the user that runs superlens: sudo chown -R {_name(os.geteuid())} {folder}"
    return "Free some space there, and look for faults of the disk in dmesg."


def as_user(uid: int) -> str:
    """What a shell command begins with so that it works on a service's plans; nothing where no service keeps them."""
    state = os.environ.get("STATE_DIRECTORY")
    return f"sudo -u {_name(uid)} env STATE_DIRECTORY={shlex.quote(state)} " if state else ""


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # as in a container
        return f"#{uid}"


def check_private(path: Path) -> None:
    """Refuse a plan, or a folder of plans, that another user could have written: a plan is code, and TensorRT runs it.

    Raises
    ------
    PlanError
        The file or its folder belongs to somebody else or may be written by others, or a folder above may be, so that
        they could put another in its place (a sticky folder such as /tmp keeps them from that).
    """
    path = path.resolve()
    folder = path if path.is_dir() else path.parent
    for place in (path, *path.parents):
        facts = place.stat()
        near = place in (path, folder)
        writers = stat.S_IWGRP | stat.S_IWOTH if near else stat.S_IWOTH
        open_to_others = facts.st_mode & writers and not (facts.st_mode & stat.S_ISVTX and not near)
        if open_to_others or facts.st_uid not in (0, os.geteuid()):
            raise PlanError(
                f"{place} belongs to user {facts.st_uid} with mode {stat.filemode(facts.st_mode)}: others could put "
                f"their own code into {path.name}. {_own_words(place, facts, folder if near else None)}"
            )


def _own_words(place: Path, facts: os.stat_result, folder: Path | None) -> str:
    """What to do about a place that is not this user's alone; ``folder`` of the plans, None for one above it."""
    if facts.st_uid in (0, os.geteuid()):
        return f"Keep plans where only this user writes: chmod {'-R ' if folder else ''}go-w {place}"
    if os.geteuid() == 0:
        return f"Run this as that user: {as_user(facts.st_uid) or f'sudo -u {_name(facts.st_uid)} '}superlens ..."
    if folder is None:
        return "Keep plans in a folder of this user: set XDG_CACHE_HOME, or STATE_DIRECTORY for a service."
    return f"Keep plans where only this user writes: sudo chown -R {_name(os.geteuid())} {folder}"


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace several files of a folder; when the disk is full, all of them stay as they were.

    All bytes are on the disk before the first name changes, in the order given. Between two names lies an instant; a
    power cut in it leaves a plan whose hash is not the record's, which :func:`read_plan` refuses.
    """
    with ExitStack() as closing:
        ready: list[tuple[Path, Path]] = []
        for name, data in files.items():
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}.", delete=False) as file:
                temporary = Path(file.name)
                closing.callback(temporary.unlink, missing_ok=True)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            ready.append((temporary, folder / name))
        for temporary, final in ready:
            temporary.replace(final)
        _sync(folder)


def move_plan(source: Path, target: Path, name: str) -> None:
    """Let a plan and its record take the place of those of the same name in another folder of the same disk."""
    for part in (name, f"{name}.json"):
        (source / part).replace(target / part)
    _sync(target)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
