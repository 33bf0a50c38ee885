"""The command: what it prints where, and how it ends."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from t1_edge.build import Build
from t1_edge.cli import main
from t1_edge.engines import room

COMMANDS = ["pull", "export", "verify", "info", "doctor", "encode", "bench", "demo"]


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def build(tiny_build: Callable[..., Build], own_cache: Path) -> str:
    return str(tiny_build("qwen3", "portable").path)


def _commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        yield (*prefix, name)
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*prefix, name))


ALL = list(_commands(main))


def test_the_commands_are_the_promised_ones() -> None:
    assert [path[0] for path in ALL if len(path) == 1] == COMMANDS
    assert ("bench", "quality") in ALL
    assert ("bench", "latency") in ALL
    assert ("bench", "profile") in ALL
    assert ("bench", "soak") in ALL


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help(path: tuple[str, ...]) -> None:
    found = _run(*path, "--help")
    assert found.exit_code == 0
    assert "Usage: " in found.stdout
    assert len(found.stdout.splitlines()) > 4


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_is_documented(path: tuple[str, ...]) -> None:
    root = Path(__file__).parents[2]
    assert f"t1-edge {' '.join(path)}" in (root / "README.md").read_text(encoding="utf-8")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from t1_edge.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "import t1_edge\n"
        "heavy = {'numpy', 'tokenizers', 'msgspec', 'onnxruntime', 'llama_cpp', 'torch'}\n"
        "sys.stderr.write(' '.join(sorted(heavy & set(sys.modules))))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in found.stdout
    assert found.stderr == ""


def test_info(build: str) -> None:
    found = json.loads(_run("info", build, "--json").stdout)
    assert found["decoder"]["family"] == "qwen3"
    said = _run("info", build).stdout
    assert "qwen3-portable" in said
    limits = found["contract"]["max_query_tokens"], found["contract"]["max_document_tokens"]
    assert "{} tokens for a query, {} for a document".format(*limits) in said


def test_verify(build: str) -> None:
    found = json.loads(_run("verify", build, "--json").stdout)
    assert set(found["golden"]) == {"onnx", "gguf"}
    assert found["not_installed"] == []
    plain = _run("verify", build)
    assert "every hash is right" in plain.stdout
    assert "reading" in plain.stderr


def test_verify_finds_a_flipped_bit(build: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(build, copy)
    weights = bytearray((copy / "weights.bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    (copy / "weights.bin").write_bytes(weights)
    found = _run("verify", str(copy))
    assert found.exit_code == 1
    assert "weights.bin is damaged" in found.stderr
    assert found.stdout == ""


@pytest.mark.parametrize("engine", ["onnx", "gguf"])
def test_encode_documents(build: str, engine: str, tmp_path: Path) -> None:
    out = tmp_path / "vectors.npy"
    arguments = ["encode", "--build", build, "--engine", engine, "the weather", "the lake"]
    found = json.loads(_run(*arguments, "--output", str(out), "--json").stdout)
    assert found["truncated"] == 0
    assert found["fingerprint"] == Build(Path(build)).manifest.fingerprint
    vectors = np.load(out)
    assert vectors.shape == (2, 64)
    np.testing.assert_allclose(vectors, [row["vector"] for row in found["rows"]], atol=1e-7)


def test_encode_queries_shows_the_thought(build: str) -> None:
    found = _run("encode", "--build", build, "--query", "--budget", "3", "the north")
    assert found.exit_code == 0
    assert "thought" in found.stdout


@pytest.mark.parametrize(
    ("how", "stopped_by"),
    [
        (["--deadline", "0"], "deadline"),
        (["--settle", "0.0001", "--budget", "12"], "settled"),
        (["--budget", "2"], "budget"),
    ],
)
def test_what_ends_a_thought_can_be_chosen(build: str, how: list[str], stopped_by: str) -> None:
    asked = ["encode", "--build", build, "--query", "--json", *how, "of the water"]
    [row] = json.loads(_run(*asked).stdout)["rows"]
    assert row["stopped_by"] == stopped_by
    again = json.loads(_run(*asked).stdout)["rows"][0]
    assert (row["cached"], again["cached"]) == (False, stopped_by != "deadline")
    anew = json.loads(_run(*asked, "--no-cache").stdout)["rows"][0]
    assert not anew["cached"]
    assert anew["vector"] == row["vector"]


def test_nothing_ends_a_thought_that_there_is_not(build: str) -> None:
    asked = ["encode", "--build", build, "--query", "--budget", "0", "--settle", "0.9", "lake"]
    found = _run(*asked)
    assert found.exit_code == 1
    assert "with a budget of 0 there is none: give --budget" in found.stderr


def test_a_thought_can_be_given(build: str) -> None:
    asked = ["encode", "--build", build, "--query", "where is it cold", "--json"]
    given, other = (
        json.loads(_run(*asked, "--thought", thought).stdout)["rows"][0]
        for thought in ("snow north", "the water")
    )
    assert (given["thought"], other["thought"]) == ("snow north", "the water")
    assert given["vector"] != other["vector"]


def test_which_engine_is_faster_is_measured_once_and_said(build: str, own_cache: Path) -> None:
    for expected in (["measuring which is faster here: onnx or gguf"], []):
        *said, ran = _run("encode", "--build", build, "lake").stderr.splitlines()
        # Where llama.cpp's AMX kernels do not run, a warning says so, too.
        assert [line for line in said if "AMX" not in line] == expected
        assert ran.endswith("on cpu, the graph for everything")


def test_encode_reads_lines_and_counts_what_it_cut(build: str) -> None:
    lines = "one\n \n" + "word " * 500 + "\n"
    arguments = ["encode", "--build", build, "--file", "-", "--json"]
    found = CliRunner().invoke(main, arguments, input=lines)
    assert json.loads(found.stdout)["truncated"] == 1
    assert "1 of 3 texts were longer" in found.stderr
    assert "1 of 3 texts are blank" in found.stderr


def test_a_batch_that_does_not_fit_can_be_smaller(
    build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["the water of the lake " * 30] * 6
    asked = ["encode", "--build", build, "--engine", "onnx", "--json", *texts]
    assert _run(*asked).exit_code == 0  # whoever opens it first tries it on golden rows
    monkeypatch.setattr(room, "free_memory", lambda: 1_000_000)
    refused = _run(*asked)
    assert refused.exit_code == 1
    size = refused.stderr.split()[-1]
    assert f"give a batch_size of {size}" in refused.stderr
    found = _run(*asked, "--batch-size", size)
    assert found.exit_code == 0, found.stderr
    assert len(json.loads(found.stdout)["rows"]) == len(texts)


def test_a_line_that_is_no_utf8_is_named(build: str, tmp_path: Path) -> None:
    (tmp_path / "texts").write_bytes(b"one\n\xff\xfe\n")
    found = _run("encode", "--build", build, "--file", str(tmp_path / "texts"))
    assert found.exit_code == 1
    assert "texts:2 is no UTF-8" in found.stderr


def test_latency_needs_an_engine(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t1_edge.engines.opening.find_spec", lambda name: None)
    for arguments in (["bench", "latency"], ["encode", "x"]):
        found = _run(*arguments, "--build", build)
        assert found.exit_code == 1
        assert "pip install 't1-edge[cpu]'" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["encode", "--build", "nowhere", "--budget", "3", "x"], 2, "--query"),
        (["encode", "--build", "nowhere", "--deadline", "3", "x"], 2, "--deadline is for queries"),
        (["encode", "--build", "nowhere", "--no-cache", "x"], 2, "--no-cache is for queries"),
        (["encode", "--query", "--document", "x"], 2, "--query or --document"),
        (["encode", "--output", "/nowhere/v.npy", "x"], 1, "its folder is missing"),
        (["export", "x", "--save-statistics", "/nowhere/s.gguf"], 1, "its folder is missing"),
        (["encode", "--query", "--document-graph", "documents", "x"], 2, "is for documents"),
        (["encode", "--query", "--batch-size", "2", "x"], 2, "--batch-size is for documents"),
        (["encode", "--query", "--thought", "t", "--budget", "3", "x"], 2, "leave --budget"),
        (["export", "hf:no/where", "--profile", "native"], 1, "ask for one format"),
        (["info", "nowhere"], 1, "no build 'nowhere'"),
        (["encode", "--build", "nowhere", "x"], 1, "no build 'nowhere'"),
        (["export", "nowhere"], 1, "no checkpoint 'nowhere'"),
        (["pull", "nowhere"], 1, "known are nano, smollm2-135m"),
        (["encode", "--build", "nowhere"], 2, "give texts"),
        (["encode", "--build", "nowhere", "--file", os.devnull], 1, f"{os.devnull} has no lines"),
        (["encode"], 2, "give texts"),
        (["nonsense"], 2, "No such command"),
        (["export", "x", "--format", "tflite"], 2, "tflite"),
        (["bench", "quality", "--build", "x", "--data", "/nowhere", "--budget", "a"], 2, "integer"),
        (["bench", "quality", "--build", "x", "--data", "/nowhere"], 1, "/nowhere is no folder"),
    ],
)
def test_failures_have_a_code_and_a_reason(
    arguments: list[str], code: int, message: str, own_cache: Path
) -> None:
    found = _run(*arguments)
    assert (found.exit_code, found.stdout) == (code, "")
    assert message in found.stderr


def test_an_interruption_is_130(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("t1_edge_export.pull.pull", interrupted)
    assert _run("pull", "smollm2-135m").exit_code == 130
