"""What the page is told to worry about."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.observe import QUIET_S, unwritable, warnings
from edge.status import FlowStatus, RunState, Status


def status(**changes) -> Status:
    healthy = {
        "name": "t",
        "version": "0",
        "state": RunState.LIVE,
        "note": "",
        "simulated": (),
        "start_error": None,
        "uptime_s": QUIET_S + 1,
        "disk_free_mb": 50_000.0,
        "flow": FlowStatus(capture_fps=40.0, inference_fps=39.0),
    }
    return Status(**{**healthy, **changes})


def test_a_healthy_box_has_no_warning() -> None:
    assert warnings(status()) == {}
    assert warnings(status(flow=FlowStatus())) == {}


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"flow": FlowStatus(capture_fps=40.0, inference_fps=21.0)}, "slow", "21 of 40 frames/s"),
        ({"disk_free_mb": 900.0}, "disk", "0.9 GB left"),
    ],
)
def test_what_stands_out_is_said_with_its_figure_but_not_in_the_first_two_minutes(
    changes: dict, key: str, words: str
) -> None:
    assert words in warnings(status(**changes))[key][0]
    assert warnings(status(**changes, uptime_s=QUIET_S - 1)) == {}


def test_a_folder_that_cannot_be_written_is_a_warning_with_its_key_and_trying_leaves_nothing(tmp_path: Path) -> None:
    assert unwritable(tmp_path / "to" / "be" / "made") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    notice = unwritable(tmp_path / "file" / "scans")
    assert notice is not None
    assert (notice.severity, "[box] data_dir" in notice.what_to_do) == ("warning", True)
