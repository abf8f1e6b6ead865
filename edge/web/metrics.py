"""The status in Prometheus' text format. A figure nobody has measured is left out, never 0."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edge.status import RunState, Status, StatusBoard


class BoardCollector(Collector):
    """Reads the board when it is asked, so there is nothing to keep in step."""

    def __init__(self, board: StatusBoard) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        """The families of one scrape, from one snapshot."""
        return _families(self._board.status())


def registry_of(board: StatusBoard) -> CollectorRegistry:
    """A registry of this board alone; the process-wide default one stays out of it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(BoardCollector(board))
    return registry


def _families(status: Status) -> Iterator[Metric]:
    flow = status.flow
    state = GaugeMetricFamily("superlens_state", "1 for the state the box is in.", labels=["state"])
    for word in RunState:
        state.add_metric([word.value], float(status.state is word))
    yield state
    problems = GaugeMetricFamily("superlens_problems", "Open problems.", labels=["severity"])
    for severity in ("fault", "warning", "note"):
        problems.add_metric([severity], sum(problem.severity == severity for problem in status.problems))
    yield problems
    info = GaugeMetricFamily(
        "superlens_info", "What runs; always 1.", labels=["version", "model", "precision", "simulated"]
    )
    engine = status.engine
    names = (engine.model, engine.precision) if engine is not None else ("", "")
    info.add_metric([status.version, *names, ",".join(status.simulated)], 1)
    yield info
    yield CounterMetricFamily("superlens_frames", "Frames enhanced since the job began.", value=flow.frames)
    yield CounterMetricFamily(
        "superlens_dropped", "Frames that were not enhanced since the job began, gaps included.", value=flow.dropped
    )
    yield CounterMetricFamily(
        "superlens_gaps",
        "Frames missing in the numbers since the job began: the part of the dropped ones that never came.",
        value=flow.gaps,
    )
    for name, text, percentiles in (
        ("superlens_latency_seconds", "End of exposure to JPEG ready.", flow.latency_s),
        ("superlens_engine_seconds", "One call of the engine.", engine.engine_s if engine is not None else None),
    ):
        family = GaugeMetricFamily(name, text, labels=["quantile"])
        for quantile, value in (("0.5", percentiles.p50), ("0.99", percentiles.p99)) if percentiles is not None else ():
            if value is not None:
                family.add_metric([quantile], value)
        yield family
    scan = status.scan
    for name, text, figure in (
        ("superlens_capture_fps", "Frames captured a second.", flow.capture_fps),
        ("superlens_inference_fps", "Frames enhanced a second.", flow.inference_fps),
        ("superlens_preview_fps", "Pictures encoded a second.", flow.preview_fps),
        ("superlens_scan_tiles", "Tiles the scan has in all.", None if scan is None else scan.tiles),
        ("superlens_scan_tiles_done", "Tiles taken.", None if scan is None else scan.done),
        ("superlens_scan_tiles_missing", "Tiles lost.", None if scan is None else scan.missing),
        ("superlens_rss_mb", "Memory of the process.", status.rss_mb),
        ("superlens_disk_free_mb", "Free space for data.", status.disk_free_mb),
        ("superlens_uptime_seconds", "Time since start.", status.uptime_s),
    ):
        if figure is not None:
            yield GaugeMetricFamily(name, text, value=figure)
