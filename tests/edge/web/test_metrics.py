"""What Prometheus reads."""

from __future__ import annotations

from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from edge.status import FlowStatus, RunState


def scrape(box: Any) -> dict[tuple[str, str], float]:
    text = box.app().test_client().get("/metrics").get_data(as_text=True)
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_figures_are_those_of_the_status(box: Any) -> None:
    samples = scrape(box)
    assert samples["superlens_frames_total", ""] == 41208
    assert samples["superlens_dropped_total", ""] == 0
    assert samples["superlens_inference_fps", ""] == 39.8
    assert samples["superlens_latency_seconds", "0.99"] == 0.02
    assert samples["superlens_engine_seconds", "0.5"] == 0.0061
    assert samples["superlens_rss_mb", ""] == 182
    assert {word: samples["superlens_state", word] for word in ("LIVE", "IDLE")} == {"LIVE": 1, "IDLE": 0}
    assert samples["superlens_info", "enhance-rt,bf16,camera,stage,0.1.0"] == 1


def test_what_nobody_measured_is_left_out(box: Any) -> None:
    box.publish(flow=FlowStatus(), engine=None, rss_mb=None, state=RunState.IDLE)
    names = {name for name, _ in scrape(box)}
    assert "superlens_frames_total" in names
    for unknown in (
        "superlens_capture_fps",
        "superlens_latency_seconds",
        "superlens_engine_seconds",
        "superlens_rss_mb",
    ):
        assert unknown not in names


def test_two_apps_share_no_registry(box: Any) -> None:
    assert scrape(box) == scrape(box)
    assert REGISTRY.get_sample_value("superlens_frames_total") is None
