"""--json writes a whole file or none, and never puts a file in a device's place."""

from __future__ import annotations

import os
import stat
import threading

import click
import pytest
from click.testing import CliRunner

from firmware_bridge.json_option import json_option


@click.command()
@json_option
@click.option("--fail", is_flag=True)
def write(as_json, fail):
    as_json.write("{")
    if fail:
        raise click.ClickException("half way")
    as_json.write("}")


def test_a_file_is_whole_or_is_not_there(tmp_path):
    path = tmp_path / "said.json"
    assert CliRunner().invoke(write, ["--json", str(path)]).exit_code == 0
    assert path.read_text() == "{}"
    assert CliRunner().invoke(write, ["--json", "-"]).stdout == "{}"


@pytest.mark.parametrize("name", ["nowhere/said.json", "."])
def test_a_file_that_could_not_be_written_is_refused_before_anything_is_done(tmp_path, name):
    done = []

    @click.command()
    @json_option
    def act(as_json):
        done.append(as_json)

    result = CliRunner().invoke(act, ["--json", str(tmp_path / name)])
    assert result.exit_code == 2
    assert "cannot be written" in result.output
    assert done == []


@pytest.mark.parametrize("fail", [(), ("--fail",)])
def test_what_is_no_file_is_written_to_and_stays_what_it_is(tmp_path, fail):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    heard = []
    reader = threading.Thread(target=lambda: heard.append(path.read_text()))
    reader.start()
    CliRunner().invoke(write, ["--json", str(path), *fail])
    reader.join(timeout=5)
    assert heard == ["{" if fail else "{}"]
    assert stat.S_ISFIFO(path.stat().st_mode)
