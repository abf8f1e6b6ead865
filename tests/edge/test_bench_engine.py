"""Back ends side by side: what is in a row, what is left out and why. No timing is asserted but on a clock of ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge import bench_engine, windows
from edge.__main__ import main
from edge.engine.measure import pictures_of
from tests.tensorrt.models import make_precisions

ROW = {
    "model", "backend", "precision", "arithmetic", "shape", "p50_s", "p99_s", "fps", "ratio_to_reference", "reference",
    "psnr_to_fp32_db",
}  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, small_specimen: Path) -> None:
    """Short windows, none of them thrown away, and a specimen that is drawn in no time."""
    monkeypatch.setattr(bench_engine, "WINDOW_S", 0.0)
    monkeypatch.setattr(windows, "OTHER_WORK_LIMIT_CORES", 1e9)
    specimen = {"path": str(small_specimen), "pixel_size_nm": 48.0}
    validate = bench_engine.Config.model_validate
    monkeypatch.setattr(
        bench_engine.Config, "model_validate", lambda document: validate({**document, "specimen": specimen})
    )


@pytest.mark.usefixtures("quick")
def test_every_back_end_and_precision_that_is_there_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.31.0")  # the oldest that computes INT8
    bundle = make_precisions(tmp_path / "two", {"int8": 0.9})
    rows, left_out = bench_engine.bench_engine([str(bundle)], backends=["openvino", "onnxruntime"], shape_px=(32, 48))
    files = [(row["backend"], row["precision"]) for row in rows if row["arithmetic"] == "f32"]
    assert files == [("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")]
    for row in rows:
        assert ROW <= row.keys()
        assert row["shape"] == [32, 48]
        assert 0 < row["p50_s"] <= row["p99_s"]
        assert row["ratio_to_reference"] > 0
        assert row["windows"] == 5
        assert row["contended"] is False
        ours = "openvino benchmark loop" if row["backend"] == "openvino" else "onnxruntime fp32"
        assert row["reference"] == ours
    by_file = {(row["backend"], row["precision"], row["arithmetic"]): row["psnr_to_fp32_db"] for row in rows}
    assert by_file["onnxruntime", "fp32", "f32"] == 200
    assert by_file["openvino", "fp32", "f32"] > 60
    assert 20 < by_file["openvino", "int8", "f32"] < 35
    assert left_out == []


@pytest.mark.usefixtures("quick")
def test_a_bundle_without_fp32_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    bundle = make_precisions(tmp_path / "random", {"int8": 0.9})
    index = json.loads((bundle / "bundle.json").read_text())
    del index["precisions"]["fp32"]
    (bundle / "bundle.json").write_text(json.dumps(index))
    rows, _ = bench_engine.bench_engine([str(bundle)], precisions=["int8"], shape_px=(32, 32), windows=1)
    assert {row["psnr_to_fp32_db"] for row in rows} == {None}
    ratios = {row["backend"]: row["ratio_to_reference"] for row in rows}
    assert ratios["openvino"] > 0
    assert ratios.get("onnxruntime") is None
    bench_engine.print_rows(rows)


@pytest.mark.usefixtures("quick")
def test_what_is_not_there_is_left_out_with_the_command_that_makes_it(identity_bundle: Path) -> None:
    rows, left_out = bench_engine.bench_engine(
        [str(identity_bundle)], backends=["openvino", "tensorrt"], precisions=["int8"], shape_px=(32, 32), windows=1
    )
    assert rows == []
    assert f"superlens-export convert {identity_bundle} --out {identity_bundle} --precision int8" in left_out[0]
    assert left_out[1].startswith("gain on tensorrt")


@pytest.mark.usefixtures("quick")
def test_the_command_prints_a_list_of_rows(identity_bundle: Path) -> None:
    options = ["--model", str(identity_bundle), "--backend", "openvino", "--shape", "32", "32", "--windows", "1"]
    done = CliRunner().invoke(main, ["bench", "engine", *options, "--json", "-"])
    assert done.exit_code == 0, done.output
    assert ROW <= json.loads(done.stdout)[0].keys()
    assert "left out: gain on openvino in int8" in done.stderr
    table = CliRunner().invoke(main, ["bench", "engine", *options])
    assert "openvino benchmark loop" in table.stdout


@pytest.mark.usefixtures("quick")
def test_nothing_to_measure_is_an_error(identity_bundle: Path) -> None:
    options = ["--model", str(identity_bundle), "--precision", "fp16", "--shape", "32", "32"]
    done = CliRunner().invoke(main, ["bench", "engine", *options])
    assert done.exit_code == 1
    assert "see what was left out" in done.stderr


@pytest.mark.usefixtures("quick")
def test_openvinos_own_loop_computes_what_the_engine_does(identity_bundle: Path) -> None:
    scene = bench_engine._scene(bench_engine.find_bundle(str(identity_bundle)), (32, 48))
    engine = scene.load("openvino", "fp32", "f32")
    values = scene.pictures * np.float32(1 / 255)
    path = identity_bundle / "gain_fp32.onnx"
    run = bench_engine.openvino_loop(path, values, "f32")
    run(1)
    (request,) = [cell.cell_contents for cell in run.__closure__ if hasattr(cell.cell_contents, "infer")]
    found = np.rint(request.get_tensor("enhanced").data[0, 0] * 255)
    np.testing.assert_array_equal(found, pictures_of(engine, scene.pictures[1])["enhanced"])


def test_figures_are_those_of_the_clock_and_the_two_take_turns() -> None:
    now_s, ran = 0.0, []

    def lasting(name: str, frame_s: float) -> bench_engine.Run:
        def run(index: int) -> None:
            nonlocal now_s
            now_s += frame_s
            ran.append(name)

        return run

    figures = bench_engine._figures(lasting("ours", 0.25), lasting("theirs", 0.5), 4, lambda: now_s)
    assert (figures["p50_s"], figures["fps"], figures["ratio_to_reference"]) == (0.25, 4, 2)
    turns = [name for name, before in zip(ran, ["", *ran], strict=False) if name != before]
    assert turns[:4] == ["ours", "theirs", "ours", "theirs"]
    assert turns.count("ours") > 2
