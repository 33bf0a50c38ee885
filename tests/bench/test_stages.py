"""What each stage of an export took."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from peers.process_tree import Look, Taken
from peers.stages import Stage, main, stages
from tiny import Tiny


def test_what_it_took_is_divided_among_what_it_said() -> None:
    talk = [
        b"collecting statistics (at 2 s)",
        b"collecting 1 of 2 GB, 1 s left",
        b"writing (at 2 s)",
    ]
    first, second, third = (len(b"\n".join([*talk[:n], b""])) for n in (1, 2, 3))
    log = b"\n".join([*talk, b""])
    looks = [Look(1.0, 10, 0), Look(2.0, 70, first), Look(4.5, 30, second), Look(5.0, 20, third)]
    assert stages(log, Taken(seconds=7.5, looks=looks, returncode=0)) == [
        Stage(what="beginning", seconds=2.0, peak_resident=10),
        Stage(what="collecting statistics", seconds=3.0, peak_resident=70),
        Stage(what="writing", seconds=2.5, peak_resident=20),
    ]


def test_a_stage_that_nobody_looked_into_has_what_stood_before() -> None:
    log = b"reading (at 1 s)\nwriting (at 1 s)\n"
    looks = [Look(0.5, 10, 0), Look(2.0, 20, len(log))]
    found = stages(log, Taken(seconds=3.0, looks=looks, returncode=0))
    assert [(s.what, s.peak_resident) for s in found] == [
        ("beginning", 10),
        ("reading", 10),
        ("writing", 20),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_an_export_is_measured_and_removed(tiny: Callable[..., Tiny], tmp_path: Path) -> None:
    options = ["--contract", "chat", "--calibration", "none", "--format", "gguf", "--allow-drift"]
    command = [str(tiny("llama").folder), "--work", str(tmp_path), "--", *options]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    assert [stage["what"] for stage in found] == [
        "beginning",
        "writing gguf",
        "asking the float reference for golden vectors",
        "comparing llama.cpp's tokenizer with tokenizer.json",
        "verifying what was written for gguf",
    ]
    assert all(stage["peak_resident"] > 0 for stage in found[-2:])
    assert all(stage["seconds"] >= 0 for stage in found)
    assert [path.name for path in tmp_path.iterdir()] == ["stages.log"]
    refused = CliRunner().invoke(main, [*command, "--calibration", "nowhere.gguf"])
    assert refused.exit_code == 1
    assert f"see {tmp_path / 'stages.log'}" in refused.output
