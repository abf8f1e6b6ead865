"""Builds the Debian machine that test_machine.py boots: kernel, initial ramdisk, root image, and the module gpio-sim.

``python -m tests.system.machine.build`` makes them once in build/machine, again where this file has changed. It needs
root and the packages of `TOOLS`; without them it says so, and the tests then say what is missing.

The box's packages are in the image, copied from this Python's. The checkout is not: `pack_checkout` makes a disk of it
whenever the machine is switched on.
"""

from __future__ import annotations

import compileall
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
BUILT = ROOT / "build" / "machine"
SUITE, PYTHON = "bookworm", "3.11"
LGPIO = "lgpio==0.2.2.0"

TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "setpriv": "util-linux",
    "xz": "xz-utils",
    "gcc": "gcc",
    "make": "make",
}

PACKAGES = "linux-image-amd64,systemd-sysv,udev,dbus,kmod,initramfs-tools,python3"

# Before packages are installed. The kernel needs these modules to reach its disk (Debian would look at the machine it
# is built on); of the drivers all but a few are never loaded, and unpacking them would take as long as all the rest.
RAMDISK = "virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n"
DPKG = """force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
path-exclude=/lib/modules/*/kernel/sound/*
path-exclude=/lib/modules/*/kernel/net/*
path-exclude=/lib/modules/*/kernel/drivers/*
path-include=/lib/modules/*/kernel/drivers/block/*
path-include=/lib/modules/*/kernel/drivers/char/*
path-include=/lib/modules/*/kernel/drivers/usb/*
path-include=/lib/modules/*/kernel/drivers/virtio/*
"""

FIRST = {
    "etc/initramfs-tools/modules": RAMDISK,
    "etc/initramfs-tools/conf.d/list.conf": "MODULES=list\n",
    "etc/dpkg/dpkg.cfg.d/machine": DPKG,
}

# /opt/superlens is the checkout, and its .venv one for this machine's Python.
VENV = "/opt/superlens/.venv"
SITE = f"srv/venv/lib/python{PYTHON}/site-packages"
LOCAL = f"usr/local/lib/python{PYTHON}/dist-packages"
FSTAB = f"""/dev/vda / ext4 rw,noatime 0 0
/dev/vdb /opt/superlens ext4 ro 0 0
/srv/venv {VENV} none bind 0 0
"""
AGENT = f"""[Unit]
Description=runs what the host asks for
RequiresMountsFor={VENV}
BindsTo=dev-virtio\\x2dports-agent.device
After=dev-virtio\\x2dports-agent.device
[Service]
ExecStart={VENV}/bin/python3 /opt/superlens/tests/system/machine/guest.py agent
StandardOutput=journal+console
StandardError=journal+console
"""
# As pip writes them.
COMMAND = f"#!{VENV}/bin/python3\nimport sys\nfrom {{}}.__main__ import main\nsys.exit(main())\n"
THEN = {
    "etc/fstab": FSTAB,
    "etc/hostname": "superlens-test\n",
    "etc/systemd/system/agent.service": AGENT,
    "srv/venv/pyvenv.cfg": "home = /usr/bin\ninclude-system-site-packages = true\n",
    "srv/venv/bin/superlens": COMMAND.format("edge"),
    "srv/venv/bin/superlens-pzt": COMMAND.format("firmware_bridge"),
    f"{LOCAL}/superlens.pth": "/opt/superlens\n",
}
LINKS = {
    "srv/venv/bin/python3": "/usr/bin/python3",
    "etc/systemd/system/multi-user.target.wants/agent.service": "../agent.service",
    **{
        f"etc/systemd/system/{unit}": "/dev/null"
        for unit in ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer")
    },
}

# The headers and the source of the very kernel that was installed, from wherever that came from.
FETCH = """#!/bin/sh
set -eu
cd {debs}
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
release=$(ls "$1/lib/modules")
version=$(dpkg-query --admindir="$1/var/lib/dpkg" -W -f '${{Version}}' "linux-image-$release")
apt-get download -qq "linux-headers-$release" "linux-headers-${{release%-amd64}}-common" \\
    "linux-kbuild-6.1=$version" "linux-source-6.1=$version"
"""

# gpio-sim's interrupts come from irq_sim.c, which Debian's kernel leaves out as well. One name in it is for the kernel
# alone; what modules may use instead gives the same.
MODULE = """ccflags-y += -DCONFIG_IRQ_SIM=1
obj-m += gpio-sim.o
gpio-sim-y := gpio_sim_main.o irq_sim.o
"""
KERNEL_ONLY, FOR_MODULES = "irq_to_desc(irqnum)", "irq_data_to_desc(irq_get_irq_data(irqnum))"


def missing() -> str | None:
    """Why the machine cannot be built here, or None."""
    here = platform.machine(), ".".join(platform.python_version_tuple()[:2])
    if here != ("x86_64", PYTHON):
        return (
            f"the test's machine is x86_64 with Python {PYTHON} and this one's packages; this one is {' '.join(here)}"
        )
    lacking = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if lacking:
        return f"not installed: {' '.join(lacking)}; `sh .ci/system-packages` installs them as root"
    return None if os.geteuid() == 0 else "only root can build the test's machine"


def packages() -> dict[str, Distribution]:
    """What the box needs besides itself, and gpiozero, as this Python has it."""
    wanted, found = ["superlens", "gpiozero"], dict[str, Distribution]()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name not in found:
            found[name] = distribution(name)
            needs = [Requirement(need) for need in found[name].requires or ()]
            wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def folder() -> Path:
    """Where the machine is, or will be: what it is made from is in the name."""
    key = hashlib.sha256(Path(__file__).read_bytes())
    key.update("".join(f"{name}=={what.version}\n" for name, what in sorted(packages().items())).encode())
    return BUILT / key.hexdigest()[:16]


def build() -> Path:
    """Build the machine, unless it is there."""
    there = folder()
    if not there.is_dir():
        BUILT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILT, prefix="new-") as name:
            made = Path(name) / "made"
            made.mkdir()
            _build(Path(name), made)
            for old in BUILT.glob("?" * len(there.name)):
                shutil.rmtree(old)
            made.rename(there)
    return there


def _build(work: Path, made: Path) -> None:
    root, debs = work / "root", work / "debs"
    debs.mkdir()
    _write(work / "first", FIRST)
    _write(work, {"fetch": FETCH.format(debs=debs)})
    (work / "fetch").chmod(0o755)
    variant = ("--quiet", "--mode=root", "--variant=apt", "--components=main", f"--include={PACKAGES}")
    hooks = (f"--essential-hook=sync-in {work}/first /", f"--customize-hook={work}/fetch")
    settings = ('--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Retries "3"')
    run("mmdebstrap", *variant, *settings, *hooks, SUITE, root)
    _write(root, THEN)
    for name, target in LINKS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    (root / "opt/superlens").mkdir()
    for name, package in packages().items():
        for file in package.files or ():
            # Of the box itself, which is installed to be edited, only what it says of itself; and no commands.
            if ".." not in file.parts and (name != "superlens" or file.parent.suffix == ".dist-info"):
                (root / SITE / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file.locate(), root / SITE / file)
    run("chmod", "-R", "a+rX", root / SITE)  # whatever this user's umask is
    for command in ("superlens", "superlens-pzt"):
        (root / "srv/venv/bin" / command).chmod(0o755)
    wheel = ("--no-deps", "--only-binary", ":all:", "--python-version", PYTHON, "--platform", "manylinux_2_34_x86_64")
    run(sys.executable, "-m", "pip", "install", "--quiet", *wheel, "--target", root / LOCAL, LGPIO)
    (release,) = (path.name for path in (root / "lib/modules").iterdir())
    shutil.copy(_gpio_sim(work, debs, release), root / "lib/modules" / release)
    run("chroot", root, "depmod", release)
    shutil.move(root / f"boot/vmlinuz-{release}", made / "vmlinuz")
    shutil.move(root / f"boot/initrd.img-{release}", made / "initrd")
    shutil.rmtree(root / "boot")
    _pack(root, made / "root.img", megabytes=2048)


def pack_checkout(image: Path) -> None:
    """Make a disk of what a checkout needs to run the box and the machine's own programs."""
    with tempfile.TemporaryDirectory() as name:
        checkout = Path(name)
        for part in ("edge", "firmware_bridge", "models", "export", "systemd", "tests/system/machine"):
            shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
        # The disk is read-only, and the machine would compile everything at each start of a program.
        compileall.compile_dir(checkout, quiet=1, stripdir=checkout, prependdir="/opt/superlens")
        (checkout / ".venv").mkdir()
        run("chmod", "-R", "a+rX", checkout)
        _pack(checkout, image, megabytes=256)


def _pack(tree: Path, image: Path, *, megabytes: int) -> None:
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, image)


def _gpio_sim(work: Path, debs: Path, release: str) -> Path:
    """Compile the module for a kernel from that kernel's own source."""
    kernel, module = work / "kernel", work / "module"
    for package in debs.glob("linux-[hk]*.deb"):
        run("dpkg-deb", "--extract", package, kernel)
    headers = kernel / f"usr/src/linux-headers-{release}"
    makefile = headers / "Makefile"  # it names the place that the package would be installed in
    makefile.write_text(makefile.read_text().replace("include /usr/src/", f"include {kernel}/usr/src/"))
    module.mkdir()
    (source,) = debs.glob("linux-source*.deb")
    files = ("drivers/gpio/gpio-sim.c", "drivers/gpio/gpiolib.h", "kernel/irq/irq_sim.c")
    names = " ".join(f"linux-source-6.1/{name}" for name in files)
    unpack = f"dpkg-deb --fsys-tarfile {source} | tar -xO ./usr/src/linux-source-6.1.tar.xz"
    run("sh", "-c", f"{unpack} | xz -dc | tar -x -C {module} --strip-components=3 {names}")
    (module / "gpio-sim.c").rename(module / "gpio_sim_main.c")
    irq = (module / "irq_sim.c").read_text()
    if KERNEL_ONLY not in irq:
        raise RuntimeError(f"{KERNEL_ONLY} is not in irq_sim.c of {release}: look whether it still needs replacing")
    _write(module, {"irq_sim.c": irq.replace(KERNEL_ONLY, FOR_MODULES), "Makefile": MODULE})
    run("make", "-s", "-C", headers, f"M={module}", "modules")
    return module / "gpio-sim.ko"


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def run(*command: str | Path) -> None:
    """Run a tool; what it said is in the error if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join(map(str, command))
        raise RuntimeError(f"{words} ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-4000:]}")


def main() -> int:
    """Build it, or say why not; in CI that is a failure."""
    why = missing()
    if why is None:
        try:
            build()
            return 0
        except RuntimeError as exc:
            why = str(exc)
    sys.stderr.write(f"the machine of tests/system/test_machine.py is not built: {why}\n")
    return int(os.environ.get("CI") == "true")


if __name__ == "__main__":
    sys.exit(main())
