"""`superlens-export`: makes a bundle of a checkpoint, and judges it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from export.errors import ExportError, ParityError
from export.manifest import load_bundle, write_atomically
from models.errors import ModelsError
from models.evaluate import text_report

_json = click.option("--json", "json_to", metavar="FILE", help="Write the result as JSON to FILE, - is the terminal.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Turn checkpoints into bundles that the superlens box runs."""


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the bundle.")
@_json
def convert(checkpoint: Path, out: Path, json_to: str | None) -> None:
    """Make the bundle of CHECKPOINT: ONNX FP32, manifest, weights and model card."""
    with _one_clear_error():
        from export.to_onnx import convert as make

        bundle = make(checkpoint, out)
        manifest = bundle.manifest("fp32")
        print(f"{out}: {manifest.name} fp32, {manifest.verify.max_abs_error:.1e} from torch", file=sys.stderr)
        _write(json_to, {"bundle": str(out), "fp32": manifest.model_dump(mode="json", exclude_none=True)})


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    default="synthetic:heldout",
    show_default=True,
    help="synthetic:heldout, real:heldout, or a folder made by superlens-train pairs.",
)
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder of images for real:heldout.")
@click.option("--engine", default="onnxruntime", show_default=True, help="onnxruntime or openvino; both FP32.")
@click.option("--write-card", is_flag=True, help="Put the figures into the bundle's model card.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the whole report with pictures; takes minutes.")
@_json
def evaluate(
    bundle: Path,
    data: str,
    data_dir: Path | None,
    engine: str,
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
        judgement = judge.evaluate_bundle(loaded, data, engine=engine, folder=folder, thorough=html is not None)
        if write_card:
            judge.write_card(loaded, judgement)
        if html is not None:
            from models.report import html_report

            write_atomically(html, html_report(judgement, title=f"{loaded.name} on {data}").encode())
        if json_to != "-":
            print(text_report(judgement.report))
        _write(json_to, judgement.report)


@contextmanager
def _one_clear_error() -> Iterator[None]:
    """What went wrong in one line: exit 2 where the call or its files are wrong, 1 where the run failed."""
    try:
        yield
    except ModuleNotFoundError as exc:
        click.echo(f"error: this needs {exc.name}, which is not installed: pip install 'superlens[export]'", err=True)
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
