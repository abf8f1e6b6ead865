"""Our use of TensorRT against the real Python bindings of three releases, which need no GPU and no TensorRT.

`python tests/tensorrt/bindings.py install` fetches the bindings; `... list` writes the list of names anew.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from export.manifest import Bundle
from export.plan import build_command
from tests.tensorrt.bindings import HOME, LIST, OURS, RELEASES, ROOT, environment, list_names, real_names, used_names
from tests.tensorrt.stubs import stub

NAMES = json.loads(LIST.read_text())


@pytest.fixture(scope="session")
def bindings() -> None:
    """The real ones are installed."""
    if not all((HOME / release / "tensorrt.py").is_file() for release in RELEASES):
        reason = "TensorRT's bindings are not here; fetch them: python tests/tensorrt/bindings.py install"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


@pytest.mark.usefixtures("bindings")
def test_the_list_is_what_the_bindings_say_and_our_code_uses() -> None:
    assert list_names(real_names()) == NAMES, "run: python tests/tensorrt/bindings.py list"


def test_every_name_we_use_is_in_every_release() -> None:
    rooted, _ = used_names()
    assert rooted <= NAMES.keys()
    for name in rooted:
        assert NAMES[name].keys() == {"all"} or NAMES[name].keys() == RELEASES.keys(), name


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all checks of types: mypy reads Python's own types once."""
    return tmp_path_factory.mktemp("types")


SECONDS = itertools.count(1_600_000_000)


def check_types(release: str, folder: Path, change: tuple[str, str] = ("", "")) -> str:
    """What mypy says of our files, after a change, against the names of a release; "" where nothing is wrong."""
    (folder / "tensorrt.pyi").write_text(stub(NAMES, release))
    for file in OURS:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text((ROOT / file).read_text(encoding="utf-8").replace(*change))
        # mypy's cache knows a file by its size and the second it was written in: two changes may share both.
        os.utime(folder / file, times=(second := next(SECONDS), second))
    options = ("--config-file=", "--check-untyped-defs", "--ignore-missing-imports", "--explicit-package-bases")
    # What is not on the command line is Any, except stubs: TensorRT's alone are followed.
    command = [
        sys.executable,
        "-m",
        "mypy",
        *options,
        "--follow-imports=skip",
        f"--cache-dir={folder / 'cache'}",
        *OURS,
    ]
    where = {**os.environ, "MYPYPATH": str(folder)}
    done = subprocess.run(command, env=where, cwd=folder, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
def test_our_calls_have_the_right_arguments_and_results(release: str, folder: Path) -> None:
    assert check_types(release, folder) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("execute_async_v3(", "execute_async_v4(", 'has no attribute "execute_async_v4"'),
        ("parse_from_file(str(request.onnx))", 'parse_from_file("", 3)', "Too many arguments"),
        ("BuilderFlag.TF32", "BuilderFlag.FP16", 'has no attribute "FP16"'),
        ("set_tensor_address(name, addresses[name])", "set_tensor_address(addresses[name], name)", "arg-type"),
        ("network.num_inputs != 1", "network.num_input != 1", 'has no attribute "num_input"'),
    ],
)
def test_a_wrong_name_or_argument_is_found(right: str, wrong: str, message: str, folder: Path) -> None:
    assert message in check_types("11.4.0.106", folder, (right, wrong))


@pytest.mark.usefixtures("bindings")
@pytest.mark.parametrize("release", RELEASES)
def test_the_real_bindings_take_our_logger_and_monitor_and_the_flag_is_strongly_typed(release: str) -> None:
    code = (
        "import tensorrt as trt, export.build_engine as b, export.bindings as c;"
        "logger = c.make_logger(); logger.log(trt.ILogger.ERROR, 'out of memory');"
        "monitor = b._make_monitor(print, lambda: True); monitor.phase_start('a', None, 3);"
        "assert monitor.step_complete('a', 1) is False; assert isinstance(monitor, trt.IProgressMonitor);"
        "assert trt.float32 == trt.DataType.FLOAT and 'memory is full' in c.why(logger);"
        "print(c.check_release(), 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=environment(release), capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == f"{release} {1 if release.startswith('11.') else 2}", done.stderr


@pytest.mark.usefixtures("bindings")
@pytest.mark.parametrize("release", RELEASES)
def test_the_builder_on_real_bindings_without_a_library_fails_in_words(
    release: str, bundle: Bundle, plans: Path, driver: Path
) -> None:
    where = environment(release)
    where["LD_LIBRARY_PATH"] += f":{driver}"
    command = build_command(bundle.model_path("fp16"), model="gain", precision="fp16", shape_px=(32, 48), folder=plans)
    done = subprocess.run([sys.executable, *command], env=where, capture_output=True, text=True, check=False)
    start, error = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, start["key"]["tensorrt"]) == (1, release)
    assert error["message"].startswith("TensorRT does not start: ")
    assert "nullptr" in error["message"]


@pytest.mark.parametrize("release", RELEASES)
def test_the_stand_in_has_no_name_and_no_argument_that_tensorrt_has_not(
    fake_tensorrt: Callable[..., ModuleType], release: str
) -> None:
    fake = fake_tensorrt(release)
    for owner, cls in vars(fake).items():
        if not inspect.isclass(cls) or cls.__module__ != "tensorrt" or owner.startswith("_"):
            continue
        for member, value in vars(cls).items():
            if member.startswith("_") or (owner, member) == ("ICudaEngine", "alive"):
                continue
            known = NAMES.get(f"{owner}.{member}")
            if known is None:
                assert inspect.isclass(value) or hasattr(cls, "__members__") or owner == "ILogger", (owner, member)
                continue
            signatures = known.get("all") or known[release]
            if inspect.isfunction(value):
                ours = list(inspect.signature(value).parameters)
                assert any(_takes(text, ours) for text in signatures), (owner, member)
    for name, by_release in NAMES.items():
        owner, _, member = name.partition(".")
        text = (by_release.get("all") or by_release.get(release, [""]))[0]
        if text.startswith("= "):
            assert int(getattr(fake, owner)[member]) == int(text[2:]), name


def _takes(signature: str, ours: list[str]) -> bool:
    """Whether ``f(self: A, b: int = 3) -> C`` may be called with these arguments."""
    inside = signature.partition("(")[2].rpartition(")")[0]
    parts = [part for part in inside.split(", ") if part]
    names = [part.partition(":")[0] for part in parts]
    return names[: len(ours)] == ours and all("=" in part for part in parts[len(ours) :])
