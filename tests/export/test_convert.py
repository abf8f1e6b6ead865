"""A bundle of several precisions: each is judged, the bad ones stay out, and nothing is ever half written."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")

import onnx
import onnxruntime
import tifffile
import torch
from click.testing import CliRunner, Result
from onnx import helper
from PIL import Image as Picture

import models
from export import calibration, gate, graph
from export import convert as conversion
from export.__main__ import main
from export.audit import audit
from export.convert import convert
from export.errors import CalibrationError, ExportError, GraphError, ManifestError, ParityError, PrecisionError
from export.files import sha256_of
from export.manifest import Bundle, load_bundle
from export.runtime import infer_with
from models.checkpoint import build_network, save_checkpoint
from models.recipe import Recipe, read_recipe
from tests.graphs import picture

ALL = ("fp32", "fp16", "int8", "int8_fp16")
DATA = "synthetic:calibration"


def untrained(recipe: Recipe, path: Path) -> Path:
    """A checkpoint of random weights, with the layers that begin as zeros filled too."""
    torch.manual_seed(3)
    net = build_network(recipe).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    save_checkpoint(path, net, recipe, 1)
    return path


def enhancer(**options: Any) -> Recipe:
    recipe = read_recipe("enhance-rt").tiny().having("data", families=["dots", "grating"])
    return recipe.having("network", options={"features": 8, "blocks": 2} | options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with all precisions."""
    folder = tmp_path_factory.mktemp("convert")
    checkpoint = untrained(enhancer(), folder / "best.safetensors")
    made = convert(checkpoint, folder / "toy", ["fp16", "int8"], data=DATA)
    assert made.refused == {}
    return made.bundle


@pytest.fixture
def bundle(whole: Bundle, tmp_path: Path) -> Bundle:
    """A copy with FP32 alone."""
    folder = tmp_path / "toy"
    shutil.copytree(whole.folder, folder)
    for path in folder.glob("model_*"):
        path.unlink()
    index = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(index | {"precisions": {"fp32": "model.json"}}))
    return load_bundle(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_all_precisions_are_there_with_figures_and_clean_audits(whole: Bundle) -> None:
    assert whole.precisions == ALL
    for precision in ALL[1:]:
        manifest = whole.manifest(precision)
        verify = manifest.verify
        assert verify.gate is not None
        assert (verify.gate.data, verify.gate.images) == (DATA, 2)
        assert verify.psnr_db == verify.gate.psnr_db["enhanced"] >= gate.LEAST_PSNR_DB
        assert verify.gate.loss_db is not None
        assert verify.gate.loss_db <= gate.MOST_LOSS_DB
        assert (manifest.file, manifest.outputs) == (f"model_{precision}.onnx", whole.manifest().outputs)
        if precision.startswith("int8"):
            assert audit(onnx.load(str(whole.model_path(precision)))) == []
            assert verify.gate.calibration == "max of 2 pictures"
            assert verify.gate.scheme
    card = (whole.folder / "README.md").read_text()
    assert card.count("## Precisions") == 1
    assert card.index("## Precisions") < card.index("## Limits")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_file_runs_at_odd_sizes(whole: Bundle, precision: Any, engine: str) -> None:
    image = picture(31)
    want = infer_with(whole.model_path())(image)["enhanced"]
    found = infer_with(whole.model_path(precision), engine, precision=precision)(image)["enhanced"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, want, atol=0.03)


def test_converting_again_gives_the_same_files(whole: Bundle, bundle: Bundle) -> None:
    again = convert(bundle.folder, bundle.folder, ["int8", "fp16"], data=DATA).bundle
    for precision in ALL:
        assert again.manifest(precision).sha256 == whole.manifest(precision).sha256


def test_precisions_of_a_bundle_that_nobody_asked_for_again_stay(bundle: Bundle) -> None:
    convert(bundle.folder, bundle.folder, ["fp16"])
    made = convert(bundle.folder, bundle.folder, ["fp32"]).bundle
    assert made.precisions == ("fp32", "fp16")
    made.model_path("fp16")
    assert "| fp16 |" in (bundle.folder / "README.md").read_text()


def test_a_precision_that_fails_is_left_out_with_its_figure_and_the_others_are_written(
    whole: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "LEAST_PSNR_DB", whole.manifest("int8").verify.psnr_db + 1)
    made = convert(whole.folder, tmp_path / "toy", ["fp16", "int8"], data=DATA)
    assert made.bundle.precisions == ("fp32", "fp16")
    assert set(made.refused) == {"int8", "int8_fp16"}
    assert all(isinstance(reason, ParityError) for reason in made.refused.values())
    assert "dB from FP32 in 'enhanced', expected at least" in str(made.refused["int8"])
    assert names(tmp_path / "toy") == [
        "README.md", "bundle.json", "model.json", "model.onnx", "model_fp16.json", "model_fp16.onnx",
        "weights.safetensors",
    ]  # fmt: skip
    assert "| int8 |" not in (tmp_path / "toy" / "README.md").read_text()


@pytest.fixture
def full(whole: Bundle, tmp_path: Path) -> Bundle:
    """A copy with all precisions."""
    shutil.copytree(whole.folder, tmp_path / "full")
    return load_bundle(tmp_path / "full")


def test_a_refused_precision_leaves_the_good_file_of_before_and_says_so(
    full: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {precision: full.manifest(precision) for precision in ALL}
    monkeypatch.setattr(gate, "LEAST_PSNR_DB", 300.0)
    again = call("convert", full.folder, "--precision", "fp16", "--out", full.folder, "--json", "-")
    afresh = call("convert", full.folder / "weights.safetensors", "--precision", "fp16", "--out", full.folder)
    for result in (again, afresh):
        assert result.exit_code == 1
        assert "The fp16 file that was there before stays." in result.stderr
    bundle = load_bundle(full.folder)
    assert {precision: bundle.manifest(precision) for precision in bundle.precisions} == before
    bundle.model_path("fp16")
    assert set(json.loads(again.stdout)) == {"bundle", "refused", *ALL}
    assert "| fp16 |" in (full.folder / "README.md").read_text()


def test_precisions_of_another_network_do_not_stay(full: Bundle, tmp_path: Path) -> None:
    other = untrained(enhancer(blocks=1), tmp_path / "other.safetensors")
    assert convert(other, full.folder).bundle.precisions == ("fp32",)
    assert not list(full.folder.glob("model_*"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": "another"}, r"is the bundle of another \(enhance\), not of .* was not touched"),
        ({"task": "sem"}, r"is the bundle of .* \(sem\), not of .* \(enhance\)"),
        (None, "is not empty and no bundle, nothing in it was touched; give --out another folder"),
    ],
)
def test_a_folder_of_something_else_is_not_written_into(
    full: Bundle, change: dict[str, str] | None, complaint: str
) -> None:
    index = full.folder / "bundle.json"
    checkpoint = full.folder.parent / "best.safetensors"
    shutil.copyfile(full.folder / "weights.safetensors", checkpoint)
    if change is None:
        index.unlink()
    else:
        index.write_text(json.dumps(json.loads(index.read_text()) | change))
    before = {path.name: path.read_bytes() for path in full.folder.iterdir()}
    with pytest.raises(ExportError, match=complaint):
        convert(checkpoint, full.folder)
    assert {path.name: path.read_bytes() for path in full.folder.iterdir()} == before


@pytest.mark.parametrize("there", ["nothing", "a damaged index"])
def test_an_empty_folder_and_a_damaged_bundle_are_written_into(full: Bundle, tmp_path: Path, there: str) -> None:
    out = tmp_path / "empty" if there == "nothing" else full.folder
    out.mkdir(exist_ok=True)
    if there == "a damaged index":
        (out / "bundle.json").write_text("{")
    assert convert(full.folder / "weights.safetensors", out).bundle.precisions == ("fp32",)


def test_a_damaged_file_of_before_does_not_stay_and_is_told(full: Bundle) -> None:
    (full.folder / "model_fp16.onnx").write_bytes(b"damaged")
    made = convert(full.folder, full.folder, ["fp32"])
    assert "fp16" not in made.bundle.precisions
    assert "model_fp16.onnx has SHA-256" in str(made.refused["fp16"])


def test_a_file_with_findings_is_not_written(whole: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion.audit, "audit", lambda _: ["it smells"])
    made = convert(whole.folder, tmp_path / "toy", ["int8"], data=DATA)
    assert made.bundle.precisions == ("fp32",)
    assert "TensorRT would not run int8 as it is meant: it smells" in str(made.refused["int8"])


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_ranges_may_be_cut_otherwise(bundle: Bundle, method: Any) -> None:
    made = convert(bundle.folder, bundle.folder, ["int8"], data=DATA, method=method)
    assert set(made.bundle.precisions) | set(made.refused) == {"fp32", "int8", "int8_fp16"}
    for precision in made.bundle.precisions[1:]:
        figures = made.bundle.manifest(precision).verify.gate
        assert figures is not None
        assert figures.calibration == f"{method} of 2 pictures"


def frames(folder: Path, *, light: float = 1.0) -> Path:
    """A folder of four."""
    folder.mkdir()
    for seed in range(4):
        Picture.fromarray(np.round(255 * light * picture(48, seed=seed)).astype(np.uint8)).save(folder / f"{seed}.png")
    return folder


def test_a_folder_of_frames_judges_and_so_do_the_pictures_that_the_network_knows(
    bundle: Bundle, tmp_path: Path
) -> None:
    folder = frames(tmp_path / "frames")
    made = convert(bundle.folder, bundle.folder, ["int8"], data=str(folder))
    assert made.refused == {}
    figures = made.bundle.manifest("int8").verify.gate
    assert figures is not None
    assert figures.calibration == f"max of 4 pictures of {folder} and {DATA}"
    assert (figures.data in (str(folder), DATA), figures.images) == (True, 2)
    assert figures.loss_db is not None, "only the synthetic ones have a truth"


def test_frames_in_less_light_make_no_file_that_is_wrong_in_more(bundle: Bundle, tmp_path: Path) -> None:
    made = convert(bundle.folder, bundle.folder, ["int8"], data=str(frames(tmp_path / "frames", light=0.1))).bundle
    bright = picture(48)
    found, fp32 = (infer_with(made.model_path(one), precision=one)(bright) for one in ("int8", "fp32"))
    assert gate.psnr_db([found], [fp32])["enhanced"] >= gate.LEAST_PSNR_DB


def test_a_file_that_is_right_on_the_frames_alone_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(frames(tmp_path / "frames", light=0.1))
    load = calibration.load

    def narrow(*arguments: Any, **options: Any) -> calibration.Pictures:
        pictures = load(*arguments, **options)
        return pictures._replace(tuning=pictures.tuning[:2])

    monkeypatch.setattr(calibration, "load", narrow)
    refused = convert(bundle.folder, bundle.folder, ["int8"], data=folder).refused
    assert f"int8 fails its gate on 2 pictures of {DATA}" in str(refused["int8"])


def test_int8_without_pictures_is_refused(bundle: Bundle) -> None:
    with pytest.raises(CalibrationError, match=r"INT8 scales are measured on pictures.*--calibration"):
        convert(bundle.folder, bundle.folder, ["int8"])


@pytest.mark.parametrize("precision", ["int8", "int8_fp16"])
def test_an_old_onnxruntime_neither_makes_nor_runs_int8(
    whole: Bundle, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    with pytest.raises(PrecisionError, match=r"ONNX Runtime 1\.23\.2 computes int8 wrongly .* expected 1\.31"):
        convert(whole.folder, whole.folder, [precision], data=DATA)
    with pytest.raises(PrecisionError, match=rf"computes {precision} wrongly"):
        infer_with(whole.model_path(precision), precision=precision)
    infer_with(whole.model_path("fp16"), precision="fp16")
    infer_with(whole.model_path("int8"), "openvino", precision="int8")


def spoil(bundle: Bundle, change: Any) -> None:
    """Another FP32 graph, whose manifest has its hash."""
    model = onnx.load(str(bundle.model_path()))
    change(model)
    (bundle.folder / "model.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((bundle.folder / "model.json").read_text())
    manifest["sha256"] = sha256_of(bundle.folder / "model.onnx")
    (bundle.folder / "model.json").write_text(json.dumps(manifest))


def foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Gelu", ["image"], ["more"], domain="com.microsoft"))


def unsupported_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("NonZero", ["image"], ["more"]))


def other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 24


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (foreign_operator, "operators of domain com.microsoft"),
        (unsupported_operator, "NonZero is not among the operators"),
        (other_opset, "is of opset 24, expected 13 to 20"),
    ],
)
def test_a_graph_that_cannot_be_exported_is_refused(bundle: Bundle, change: Any, complaint: str) -> None:
    spoil(bundle, change)
    before = names(bundle.folder)
    with pytest.raises(GraphError, match=complaint):
        convert(bundle.folder, bundle.folder, ["fp16"])
    assert names(bundle.folder) == before


def test_a_file_that_is_no_graph_is_refused(bundle: Bundle) -> None:
    (bundle.folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ManifestError, match="SHA-256"):
        convert(bundle.folder, bundle.folder, ["fp16"])
    with pytest.raises(GraphError, match="is no ONNX file"):
        graph.read_model(bundle.folder / "model.onnx")


def test_weights_of_another_network_than_the_manifest_says_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    untrained(enhancer(blocks=1), bundle.folder / "weights.safetensors")
    with pytest.raises(ManifestError, match=r"weights\.safetensors is not the checkpoint that model\.onnx was made"):
        convert(bundle.folder, tmp_path / "other", ["fp16"])


def test_a_picture_that_does_not_fit_is_refused_in_words(whole: Bundle) -> None:
    for engine in ("onnxruntime", "openvino"):
        with pytest.raises(ExportError, match=r"cannot take a picture of \(3, 31, 31\) px"):
            infer_with(whole.model_path(), engine)(np.zeros((3, 31, 31), np.float32))


def test_an_unknown_precision_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ExportError, match="no precision fp8; choose from fp32, fp16, int8, int8_fp16"):
        convert(bundle.folder, bundle.folder, ["fp8"])  # type: ignore[list-item]


def test_a_full_disk_leaves_what_was_there(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in bundle.folder.iterdir()}
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "model_fp16.onnx":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ExportError, match=r"no room for the bundle .*No space left.* untouched: make room"):
        convert(bundle.folder, bundle.folder, ["fp16"])
    assert {path.name: path.read_bytes() for path in bundle.folder.iterdir()} == before
    assert names(bundle.folder.parent) == [bundle.folder.name]


def test_ctrl_c_while_working_leaves_what_was_there(bundle: Bundle) -> None:
    before = names(bundle.folder)

    def pressed(what: str, done: int, _: int) -> None:
        if what == "judging fp16" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(bundle.folder, bundle.folder, ["fp16"], progress=pressed)
    assert names(bundle.folder) == before
    assert names(bundle.folder.parent) == [bundle.folder.name]


def test_ctrl_c_while_files_move_waits_until_all_are_there(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def pressing(path: Path, target: Path) -> Path:
        if path.name == "model_fp16.onnx":
            signal.raise_signal(signal.SIGINT)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", pressing)
    with pytest.raises(KeyboardInterrupt):
        convert(bundle.folder, bundle.folder, ["fp16"])
    load_bundle(bundle.folder).model_path("fp16")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_the_command_takes_many_precisions_after_one_option(bundle: Bundle) -> None:
    out = bundle.folder.parent / "out"
    result = call("convert", bundle.folder, "--precision", "fp32", "fp16", "--out", out, "--json", "-")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert set(told) == {"bundle", "fp32", "fp16", "refused"}
    assert told["fp16"]["verify"]["gate"]["images"] == 2
    assert "judging fp16: 2" in result.stderr
    repeated = call("convert", "--precision", "fp16", "--precision", "fp32", bundle.folder, "--out", out)
    assert repeated.exit_code == 0, repeated.output


def test_the_command_takes_12_bit_counts_in_16_bit_files(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for seed in range(2):
        counts = np.round(4095 * picture(48, seed=seed)).astype(np.uint16)
        tifffile.imwrite(folder / f"{seed}.tif", counts)
    arguments = ["convert", bundle.folder, "--precision", "int8", "--out", bundle.folder, "--calibration", folder]
    assert call(*arguments).exit_code == 2
    result = call(*arguments, "--bit-depth", 12)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("json_to", ["nowhere/x.json", "."])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, json_to: str
) -> None:
    monkeypatch.setattr(conversion, "convert", pytest.fail)
    result = call("convert", bundle.folder, "--out", bundle.folder, "--json", bundle.folder / json_to)
    assert result.exit_code == 2
    assert "Invalid value for '--json'" in result.stderr
    assert "cannot be written (No such file or directory)" in result.stderr or "is a folder" in result.stderr


def test_json_may_go_to_a_device_or_over_a_file(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("old")
    for json_to in ("/dev/null", tmp_path / "x.json"):
        assert call("convert", bundle.folder, "--out", bundle.folder, "--json", json_to).exit_code == 0
    assert json.loads((tmp_path / "x.json").read_text())["fp32"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_folder_that_cannot_be_made_is_refused_in_words(bundle: Bundle) -> None:
    result = call("convert", bundle.folder, "--out", "/proc/superlens")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "error: /proc/superlens cannot be written (" in result.stderr
    assert "); give --out a folder that you may write to" in result.stderr


@pytest.mark.parametrize("damage", [b"II*\0junk", None])
def test_a_damaged_tiff_is_one_line(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes | None
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(folder / name, np.round(255 * picture(48)).astype(np.uint8))
    whole = (folder / "a.tif").read_bytes()
    (folder / "a.tif").write_bytes(damage or whole[:20] + bytes(range(40)) + whole[60:])
    result = call("convert", bundle.folder, "--out", bundle.folder, "--precision", "int8", "--calibration", folder)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {folder / 'a.tif'} ")
    assert result.stderr.count("\n") == 1
    assert not [record for record in caplog.records if record.name.startswith("tifffile")]


def test_the_command_exits_1_where_a_precision_failed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LEAST_PSNR_DB", 300.0)
    result = call("convert", bundle.folder, "--precision", "fp16", "--out", bundle.folder, "--json", "-")
    assert result.exit_code == 1
    assert "expected at least 300 dB" in json.loads(result.stdout)["refused"]["fp16"]
    assert "error: fp16 fails its gate" in result.stderr


def test_a_wrong_call_exits_2_with_one_line(bundle: Bundle) -> None:
    for arguments, complaint in (
        (["--precision", "int8"], "INT8 scales are measured on pictures"),
        (["--precision", "int8", "--calibration", "nowhere"], "nowhere is neither a folder nor"),
        (["--precision", "fp8"], "'fp8' is not one of"),
        (["--precision", "fp16", "fp8"], "unexpected extra argument"),
    ):
        result = call("convert", bundle.folder, "--out", bundle.folder, *arguments)
        assert result.exit_code == 2
        assert complaint in result.output
        assert "Traceback" not in result.output


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [enhancer(scale=2).having("data", scale=2), read_recipe("neural-lens-mini").tiny(), read_recipe("sem-lite").tiny()],
    ids=["twice the size", "several outputs in grey and colour", "sem"],
)
def test_networks_of_every_kind_are_judged_in_every_output(recipe: Recipe, tmp_path: Path) -> None:
    if recipe.task == "sem":
        recipe = recipe.having("data", families=["dots", "grating"])
    made = convert(untrained(recipe, tmp_path / "a.safetensors"), tmp_path / "b", ["fp16", "int8"], data=DATA)
    assert "fp16" in made.bundle.precisions
    for precision in made.bundle.precisions[1:]:
        figures = made.bundle.manifest(precision).verify.gate
        assert figures is not None
        assert set(figures.psnr_db) == set(made.bundle.manifest().output_names)
    assert all(isinstance(reason, ParityError) for reason in made.refused.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["srcnn", "enhance-rt"])
def test_committed_networks_pass_in_every_precision(name: str, tmp_path: Path) -> None:
    zoo = Path(models.__file__).parent / "zoo"
    made = convert(zoo / name, tmp_path / name, ["fp16", "int8"], data=DATA)
    assert made.refused == {}
    for precision, least_db in (("fp16", 65.0), ("int8", 42.0), ("int8_fp16", 42.0)):
        path = made.bundle.model_path(precision)  # type: ignore[arg-type]
        assert made.bundle.manifest(precision).verify.psnr_db > least_db  # type: ignore[arg-type]
        if precision != "fp16":
            assert audit(onnx.load(str(path))) == []
