"""What a plan's key is made of, and who may write a plan."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from export.errors import PlanError
from export.plan import check_private, l4t_release, this_device, write_together

RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"


def test_the_release_of_a_jetson_is_read(tmp_path: Path) -> None:
    (tmp_path / "nv_tegra_release").write_text(RELEASE + "# KERNEL_VARIANT: oot\n")
    assert l4t_release(tmp_path / "nv_tegra_release") == "36.4.3"


@pytest.mark.parametrize(("l4t", "remedy"), [("36.4.3", "groups video and render"), (None, "nvidia-smi")])
def test_a_gpu_that_may_not_be_opened_says_what_to_do_on_this_machine(
    l4t: str | None, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuInit=lambda flags: 801))
    monkeypatch.setattr("export.plan.l4t_release", lambda: l4t)
    with pytest.raises(PlanError, match=rf"cuInit returned error 801\..*{remedy}"):
        this_device()


def test_another_machine_has_none(tmp_path: Path) -> None:
    assert l4t_release(tmp_path / "absent") is None


def test_a_release_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "nv_tegra_release").write_text("R36\n")
    with pytest.raises(PlanError, match="does not begin with a release"):
        l4t_release(tmp_path / "nv_tegra_release")


@pytest.mark.parametrize(
    ("mode", "allowed"), [(0o700, True), (0o755, True), (0o775, False), (0o777, False), (0o1777, False)]
)
def test_a_folder_of_plans_is_written_by_its_owner_alone(plans: Path, mode: int, allowed: bool) -> None:
    plans.chmod(mode)
    if allowed:
        check_private(plans)
    else:
        with pytest.raises(PlanError, match="others could put"):
            check_private(plans)


@pytest.mark.parametrize(("mode", "allowed"), [(0o775, True), (0o777, False), (0o1777, True)])
def test_a_folder_above_may_be_shared_where_only_owners_rename(plans: Path, mode: int, allowed: bool) -> None:
    plans.parent.chmod(mode)
    if allowed:
        check_private(plans)
    else:
        with pytest.raises(PlanError, match="others could put"):
            check_private(plans)


def test_a_plan_of_another_user_is_refused(plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(plans, 12345, -1)
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/superlens")
    run_as_they = r"that user: sudo -u #12345 env STATE_DIRECTORY=/var/lib/superlens superlens"
    with pytest.raises(PlanError, match=f"belongs to user 12345.*{run_as_they}"):
        check_private(plans)


def test_whoever_is_not_root_is_told_to_make_the_plans_their_own(plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(plans, 12345, -1)  # what belongs to root would pass
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(PlanError, match=rf"this user writes: sudo chown -R #54321 {plans}"):
        check_private(plans)


def test_a_link_is_judged_by_where_it_leads(plans: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "a.plan").write_bytes(b"")
    (plans / "a.plan").symlink_to(shared / "a.plan")
    with pytest.raises(PlanError, match="others could put"):
        check_private(plans / "a.plan")


def test_files_change_together_or_not_at_all(plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_together(plans, {"a": b"1", "b": b"1"})
    sync = os.fsync

    def full_at_the_second(descriptor: int, calls: list[int] = []) -> None:  # noqa: B006 - counts
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "no space")
        sync(descriptor)

    monkeypatch.setattr("export.plan.os.fsync", full_at_the_second)
    with pytest.raises(OSError, match="no space"):
        write_together(plans, {"a": b"2", "b": b"2"})
    assert {path.name: path.read_bytes() for path in plans.iterdir()} == {"a": b"1", "b": b"1"}
