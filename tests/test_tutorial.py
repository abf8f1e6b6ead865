"""The tutorial "train on your own pairs" is true: its commands, as they stand there, work one after the other."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")
    pytest.importorskip("cv2", reason="needs the extra [train]")

from tests.lab import write_lab, write_marks

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "docs" / "train-on-your-own-pairs.md"
MODULES = {"superlens": "edge", "superlens-train": "models", "superlens-export": "export"}


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.timeout(480)  # ten programs, one after the other
def test_every_command_of_the_tutorial_works_in_its_order(tmp_path: Path) -> None:
    lab = write_lab(tmp_path, "leaves", side_px=800, scale=1.0)
    (tmp_path / "grains").mkdir()
    grains = write_lab(tmp_path / "grains", "leaves", side_px=800, scale=1.0, pixel_nm=332.0)
    write_marks(tmp_path / "marks.json", grains, "leaves")
    grains.mosaic.rename(tmp_path / "grains.tif")
    grains.sem.rename(tmp_path / "grains-sem.tif")
    places = [(100, 100), (100, 650), (600, 150), (580, 620)]
    seen = [(lab.matrix @ [x, y, 1])[1::-1].round(1).tolist() for y, x in places]
    (tmp_path / "points.json").write_text(json.dumps({"optical_yx": places, "sem_yx": seen}))
    (tmp_path / "models").symlink_to(ROOT / "models")
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    listed = commands()
    assert len(listed) == 10
    for program, *arguments in listed:
        call = [sys.executable, "-P", "-m", MODULES[program], *arguments]
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            call, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{shlex.join([program, *arguments])}\n{done.stderr}\n{done.stdout}"
    assert read(tmp_path / "report.json")["registration"]["residual_px"] < 1
    by_hand = read(tmp_path / "pairs-by-hand" / "pairs.json")["registrations"][0]
    assert by_hand["score"] is None
    for report in ("before.json", "after.json"):
        assert {"input", "output", "best_classical"} <= set(read(tmp_path / report)["psnr_db"])
    assert read(tmp_path / "figures.json")["frames"] == 10
    assert read(tmp_path / "pairs-labelled" / "pairs.json")["classes"] == ["spiny", "smooth"]
    assert (tmp_path / "lens" / "best.safetensors").is_file()
