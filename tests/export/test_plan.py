"""Plans: sizes against files that were written, and refusals before anything is."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from t1_edge.build import GGUF_MODEL, TOKENIZER, Build, Profile
from t1_edge.cli import main
from t1_edge.errors import ExportError
from t1_edge_export import hashing
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.containers import PlacedFile
from t1_edge_export.decoder import weight_count
from t1_edge_export.plan import check_room, make_plan
from t1_edge_export.quantize.calibration import Calibration
from t1_edge_export.request import Request
from t1_edge_export.timing import probe_seconds
from t1_edge_export.vocabulary import with_tokens
from tiny import TINY_CONTRACT, Tiny


def _request(destination: Path, profile: Profile) -> Request:
    return Request(name="x", destination=destination, contract=TINY_CONTRACT, profile=profile)


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen3", False)])
@pytest.mark.parametrize("profile", ["float", "portable"])
def test_sizes_are_those_of_the_files(
    tiny: Callable[..., Tiny],
    tiny_build: Callable[..., Build],
    tmp_path: Path,
    family: str,
    tied: bool,
    profile: Profile,
) -> None:
    manifest = tiny_build(family, profile, tied=tied).manifest
    checkpoint = with_tokens(open_checkpoint(tiny(family, tied=tied).folder), TINY_CONTRACT)
    request = _request(tmp_path / "not" / "there" / "yet", profile)
    plan = make_plan(checkpoint, request)
    assert set(plan.files) == {"tokenizer.json", "model.onnx", "weights.bin", "model.gguf"}
    for name, size in plan.files.items():
        assert size == pytest.approx(manifest.files[name].size, abs=200)
    assert sum(part.weights for part in plan.tensors) == weight_count(manifest.decoder)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("profile", "documents"), [("float", False), ("portable", True)])
def test_a_probe_has_seconds_for_each_stage_and_leaves_nothing(
    tiny: Callable[..., Tiny], tmp_path: Path, profile: Profile, documents: bool
) -> None:
    checkpoint = with_tokens(open_checkpoint(tiny("qwen3").folder), TINY_CONTRACT)
    request = replace(_request(tmp_path / "x", profile), documents=documents)
    found = probe_seconds(checkpoint, request)
    assert found.calibrating == 0
    assert found.writing > 0
    assert found.reference > 0
    texts = replace(request, calibration=Calibration(rows=[tuple(range(100))]))
    assert probe_seconds(checkpoint, texts).calibrating > 0
    assert os.listdir(tmp_path) == []


def test_a_model_larger_than_the_disk_is_refused(tiny: Callable[..., Tiny], tmp_path: Path) -> None:
    plan = make_plan(open_checkpoint(tiny("llama").folder), _request(tmp_path / "x", "float"))
    check_room(plan)
    large = msgspec.structs.replace(plan, files={"model.gguf": 10**15})
    with pytest.raises(ExportError, match=r"needs .* GB of disk .* --output on another disk"):
        check_room(large)
    check_room(large, resumed=True)  # they may be there
    with pytest.raises(ExportError, match="end other programs"):
        check_room(msgspec.structs.replace(plan, memory=10**15, free_memory=10**10))


def test_an_engine_that_would_not_fit_is_refused_before_the_work(
    tiny: Callable[..., Tiny], tmp_path: Path
) -> None:
    plan = make_plan(open_checkpoint(tiny("llama").folder), _request(tmp_path / "x", "portable"))
    assert plan.engine_memory.keys() == {"onnx", "gguf"}
    scarce = msgspec.structs.replace(
        plan, memory=10**9, engine_memory={"onnx": 5 * 10**9, "gguf": 3 * 10**9}, free_memory=10**9
    )
    with pytest.raises(ExportError, match=r"for onnx needs 5\.00 GB of memory .* first, or try"):
        check_room(scarce)
    enough_for_one = msgspec.structs.replace(scarce, free_memory=4 * 10**9)
    with pytest.raises(ExportError, match=r"write gguf alone .--format gguf, .* or try"):
        check_room(enough_for_one, resumed=True)
    check_room(msgspec.structs.replace(scarce, free_memory=6 * 10**9))
    check_room(scarce, ignore_engine_memory=True)


def test_what_an_engine_needs_is_of_its_files(tiny: Callable[..., Tiny], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("llama").folder)
    request = replace(_request(tmp_path / "x", "portable"), formats=("onnx",))
    plain = make_plan(checkpoint, request).engine_memory["onnx"]
    assert make_plan(checkpoint, replace(request, block_size=64)).engine_memory["onnx"] < plain


def test_a_file_larger_than_the_disk_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"needs .* of disk"):
        PlacedFile(tmp_path / "large", size=2 * shutil.disk_usage(tmp_path).total)
    assert os.listdir(tmp_path) == []


def test_the_command_says_what_it_would_do(
    tiny: Callable[..., Tiny], tmp_path: Path, own_cache: Path
) -> None:
    arguments = ["export", str(tiny("qwen3").folder), "--output", str(tmp_path / "b"), "--dry-run"]
    plain = CliRunner().invoke(main, arguments)
    assert plain.exit_code == 0, plain.stderr
    assert "weights.bin" in plain.stdout
    assert re.search(r"^q4_0 +21 tensors +[0-9,]+ weights of 4\.5 bits$", plain.stdout, re.M)
    assert re.search(r"^f32 .* of 32 bits$", plain.stdout, re.M)
    assert "that are free" in plain.stdout
    found = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert {part["encoding"] for part in found["tensors"]} == {"q4_0", "q8_0", "f32"}
    assert set(found["seconds"]) == {"calibrating", "writing", "reference"}
    assert not (tmp_path / "b").exists()


def test_a_dry_run_reads_no_weight_to_hash_it(
    tiny: Callable[..., Tiny], tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashed(*arguments: object) -> str:
        raise AssertionError("hashed")

    monkeypatch.setattr(hashing, "hash_of", hashed)
    folder = tiny("qwen3").folder
    command = ["export", "--dry-run", "--json", "--contract", "chat"]
    found = CliRunner().invoke(main, [*command, str(folder)])
    assert found.exit_code == 0, found.output
    assert {"weights.bin", "model.gguf"} <= json.loads(found.stdout)["files"].keys()
    shutil.copytree(folder, tmp_path / "other")
    definition = json.loads((folder / TOKENIZER).read_text())
    for changes, message in (
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"model": {}}, f"the {TOKENIZER} of other is damaged"),
    ):
        (tmp_path / "other" / TOKENIZER).write_text(json.dumps(definition | changes))
        found = CliRunner().invoke(main, [*command, str(tmp_path / "other")])
        assert (found.exit_code, message in found.stderr) == (1, True), found.output
    with pytest.raises(AssertionError, match="hashed"):
        open_checkpoint(folder).source()


def test_the_command_refuses_what_an_export_would(
    tiny: Callable[..., Tiny], tiny_build: Callable[..., Build], own_cache: Path
) -> None:
    def refusal(*arguments: str) -> str:
        command = ["export", str(tiny("qwen3").folder), "--dry-run", *arguments]
        found = CliRunner().invoke(main, command)
        assert (found.exit_code, found.stdout) == (1, "")
        return found.stderr

    taken = str(tiny_build("qwen3", "portable").path)
    assert "--force replaces it" in refusal("--output", taken)
    assert "leave --calibration out" in refusal("--quantizer", "rtn", "--calibration", "default")
    assert "rounds nothing" in refusal("--profile", "float", "--quantizer", "rtn")
    assert "leave --quantizer out" in refusal(
        "--profile", "native", "--format", "gguf", "--quantizer", "rtn"
    )
    assert "none to save" in refusal("--calibration", "none", "--save-statistics", "s.gguf")
    model = str(tiny_build("qwen3", "portable").file(GGUF_MODEL))
    assert "it is no importance matrix" in refusal("--calibration", model)
    command = ["export", str(tiny("qwen3").folder), "--dry-run", "--output", taken, "--force"]
    assert CliRunner().invoke(main, command).exit_code == 0
