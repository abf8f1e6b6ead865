"""`superlens-export`: makes a bundle of a checkpoint, and judges it."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from export.errors import ExportError, ParityError
from export.files import try_folder, write_atomically
from export.manifest import Form, Manifest, Precision, load_bundle
from models.errors import ModelsError
from models.evaluate import text_report

if TYPE_CHECKING:
    from export.calibration import Method

_PRECISIONS: tuple[str, ...] = get_args(Precision)


def _writable(_: click.Context, __: click.Parameter, value: str | Path | None) -> str | Path | None:
    """Refuse a file that cannot be written, before minutes are spent on what belongs there."""
    if value is None or value == "-":
        return value
    path = Path(os.path.realpath(value))
    if path.is_dir():
        raise click.BadParameter(f"{value} is a folder, expected a file")
    if path.is_file() or not path.exists():  # a device or a pipe is written to
        try:
            try_folder(path.parent)
        except OSError as exc:
            raise click.BadParameter(f"{value} cannot be written ({exc.strerror})") from exc
    return value


_json = click.option(
    "--json",
    "json_to",
    metavar="FILE",
    callback=_writable,
    help="Write the result as JSON to FILE, - is the terminal.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Turn checkpoints into bundles that the superlens box runs."""
    # Of a damaged file it tells more than once what stands in the one error of ours.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)


class _ManyValues(click.Command):
    """A command that takes `--precision fp16 int8` for `--precision fp16 --precision int8`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each of its values."""
        spelled: list[str] = []
        listing = False
        for arg in args:
            if listing and arg in _PRECISIONS and spelled[-1] != "--precision":
                spelled.append("--precision")
            else:
                listing = arg == "--precision" or (listing and arg in _PRECISIONS)
            spelled.append(arg)
        return super().parse_args(ctx, spelled)


_precisions = click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(_PRECISIONS),
    default=["fp32"],
    help="One or more. fp32 always comes along; int8 makes two files, int8 (OpenVINO) and int8_fp16 (TensorRT).",
)


@main.command(cls=_ManyValues)
@click.argument("source", metavar="CHECKPOINT|BUNDLE", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the bundle.")
@_precisions
@click.option(
    "--calibration",
    "data",
    help="A folder of frames, or of pairs, or synthetic:calibration; INT8 needs it.",
)
@click.option("--bit-depth", type=int, help="Bits the frames' counts have, if fewer than the file's type.")
@click.option(
    "--method",
    type=click.Choice(["max", "percentile", "entropy"]),
    default="max",
    show_default=True,
    help="How INT8 ranges are cut.",
)
@click.option(
    "--form",
    type=click.Choice(["merged", "staged"]),
    default="merged",
    show_default=True,
    help="Of a neural lens: staged runs the magnifiers of types that are in the picture, merged all of them.",
)
@_json
def convert(
    source: Path,
    out: Path,
    precisions: tuple[Precision, ...],
    data: str | None,
    bit_depth: int | None,
    method: Method,
    form: Form,
    json_to: str | None,
) -> None:
    """Make a bundle of CHECKPOINT, or more precisions of BUNDLE: ONNX files, manifests, weights and model card.

    Each precision is compared with FP32 on pictures that decided nothing about it; one that fails is not written, and
    the exit status is 1.
    """
    with _one_clear_error():
        from export.convert import convert as make

        bundle, refused = make(
            source, out, precisions, data=data, bit_depth=bit_depth, method=method, form=form, progress=_Lines()
        )
        manifests = {precision: bundle.manifest(precision) for precision in bundle.precisions}
        for precision, manifest in manifests.items():
            what = f"{manifest.name} {precision}{' staged' if manifest.form == 'staged' else ''}"
            print(f"{out}: {what}, {_figures(manifest)}", file=sys.stderr)
        for precision, reason in refused.items():
            stays = f" The {precision} file that was there before stays." if precision in manifests else ""
            click.echo(f"error: {reason}.{stays}" if stays else f"error: {reason}", err=True)
        result: dict[str, Any] = {"bundle": str(out)}
        result |= {name: manifest.model_dump(mode="json", exclude_none=True) for name, manifest in manifests.items()}
        _write(json_to, result | {"refused": {precision: str(reason) for precision, reason in refused.items()}})
        if refused:
            raise SystemExit(1)


@main.command(cls=_ManyValues)
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the bundle.")
@click.option("--size", "size_px", default=1024, show_default=True, help="Sides of the picture, px.")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(_PRECISIONS), default=["int8"])
@click.option("--seed", default=0, show_default=True, help="Of the weights.")
@_json
def random(
    name: str, out: Path, size_px: int, precisions: tuple[Precision, ...], seed: int, json_to: str | None
) -> None:
    """Make a bundle of NAME, neural-lens-4x64 or neural-lens-4x32, with random weights: for benchmarks only."""
    with _one_clear_error():
        from export.random import random_bundle

        bundle = random_bundle(name, out, size_px=size_px, precisions=precisions, seed=seed, progress=_Lines())
        result: dict[str, Any] = {"bundle": str(out)}
        for precision in bundle.precisions:
            result[precision] = bundle.manifest(precision).model_dump(mode="json", exclude_none=True)
        _write(json_to, result)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The zip file.")
def package(bundle: Path, out: Path) -> None:
    """Write BUNDLE's FP32 network as a bioimage.io package, which other microscopy programs read."""
    with _one_clear_error():
        from export.package import package as pack

        pack(load_bundle(bundle), out)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    default="synthetic:heldout",
    show_default=True,
    help="synthetic:heldout, real:heldout, or a folder made by superlens-train pairs.",
)
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder of images for real:heldout.")
@click.option("--engine", default="onnxruntime", show_default=True, help="onnxruntime or openvino.")
@click.option("--precision", type=click.Choice(_PRECISIONS), default="fp32", show_default=True, help="Which file.")
@click.option("--write-card", is_flag=True, help="Put the figures into the bundle's model card.")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    callback=_writable,
    help="Write the whole report with pictures; takes minutes.",
)
@_json
def evaluate(
    bundle: Path,
    data: str,
    data_dir: Path | None,
    engine: str,
    precision: Precision,
    write_card: bool,
    html: Path | None,
    json_to: str | None,
) -> None:
    """Judge BUNDLE against the truth, its input and the best classical methods."""
    with _one_clear_error():
        loaded = load_bundle(bundle)
        from export import evaluate as judge

        folder = data_dir
        if not data.endswith(":heldout"):
            data, folder = "pairs", Path(data)
        judgement = judge.evaluate_bundle(
            loaded, data, engine=engine, precision=precision, folder=folder, thorough=html is not None
        )
        if write_card:
            judge.write_card(loaded, judgement)
        if html is not None:
            from models.report import html_report

            write_atomically(html, html_report(judgement, title=f"{loaded.name} on {data}").encode())
        if json_to != "-":
            print(text_report(judgement.report))
        _write(json_to, judgement.report)


class _Lines:
    """Progress on stderr: one line that is written over on a terminal, one line a stage elsewhere."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report."""
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r\x1b[K{what} {done}/{total}", end=end, file=sys.stderr, flush=True)
        elif done == total:
            print(f"{what}: {total}", file=sys.stderr, flush=True)


def _figures(manifest: Manifest) -> str:
    verify = manifest.verify
    if verify.gate is None:
        return f"{verify.max_abs_error:.1e} from {verify.against}"
    loss = "" if verify.gate.loss_db is None else f", {verify.gate.loss_db:+.3f} dB lost against the truth"
    return f"{verify.psnr_db:.2f} dB from FP32{loss}, on {verify.gate.images} pictures of {verify.gate.data}"


@contextmanager
def _one_clear_error() -> Iterator[None]:
    """What went wrong in one line: exit 2 where the call or its files are wrong, 1 where the run failed."""
    try:
        yield
    except ModuleNotFoundError as exc:
        click.echo(
            f"error: this needs {exc.name}, which is not installed: run make install-dev in the checkout", err=True
        )
        raise SystemExit(2) from exc
    except (ExportError, ModelsError, OSError) as exc:
        click.echo(f"error: {exc}", err=True)
        raise SystemExit(1 if isinstance(exc, ParityError | OSError) else 2) from exc


def _write(json_to: str | None, result: dict[str, Any]) -> None:
    text = json.dumps(result, indent=2)
    if json_to == "-":
        print(text)
    elif json_to is not None:
        write_atomically(Path(json_to), (text + "\n").encode())


if __name__ == "__main__":
    main()
