"""Exports that are cut off: nothing half-written is a build, and a later one ends alike."""

import dataclasses
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from click.testing import CliRunner

from attempts import asked, attempt, stand_still
from stages import stage
from t1_edge.build import Build
from t1_edge.cli import main
from t1_edge.errors import BuildError, ExportError, KilledError
from t1_edge_export import staging, trial_process, weights
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.decoder import TensorSpec, weight_count
from t1_edge_export.pipeline import export
from t1_edge_export.quantize import calibration
from t1_edge_export.quantize.calibration import Calibration
from t1_edge_export.quantize.quantizer import SEARCH, Quantizer, RowQuantizer
from t1_edge_export.request import Request, check_request
from t1_edge_export.staging import claimed
from t1_edge_export.vocabulary import with_tokens
from tiny import TINY_CONTRACT, Tiny

PLAIN = Calibration(kind="rtn")


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return Request(
        name="tiny",
        destination=tmp_path / "out" / "tiny",
        contract=TINY_CONTRACT,
        allow_drift=True,
    )


def _bytes(build: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in build.iterdir()}


def _processes() -> ForkServerContext:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["attempts", "gguf", "llama_cpp", "onnx", "onnxruntime"])
    return processes


@pytest.mark.parametrize(("fitted", "due"), [(False, 50), (True, 10)])
def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    checkpoint: Checkpoint, tiny: Callable[..., Tiny], tmp_path: Path, fitted: bool, due: int
) -> None:
    target = tmp_path / "out" / "killed"
    other = asked(checkpoint, target.with_name("tiny"), fitted=fitted)
    whole = _bytes(export(checkpoint, other).path)
    processes = _processes()
    arguments = (tiny("llama").folder, target, fitted)
    began = time.monotonic()
    first = processes.Process(target=attempt, args=arguments)
    first.start()
    first.join()
    longest = 1.1 * (time.monotonic() - began)  # so that no stage is out of reach
    assert _bytes(target) == whole
    target.rename(target.with_name("undisturbed"))
    moment = random.Random(0)
    kills = attempts = 0
    reached: set[str] = set()
    while kills < due:
        attempts += 1
        child = processes.Process(target=attempt, args=arguments)
        child.start()
        child.join(moment.uniform(0, longest))
        child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        kills += child.exitcode != 0
        reached |= {path.name for path in target.parent.glob(".killed.partial/build/*")}
        if target.exists():
            assert _bytes(target) == whole
            target.rename(target.with_name(f"whole-{attempts}"))
        else:
            with pytest.raises(BuildError):
                Build(target)
    assert reached >= ({"weights.bin", "documents.bin"} if fitted else {"golden.npz"})
    last = processes.Process(target=attempt, args=arguments)
    last.start()
    last.join()
    assert last.exitcode == 0
    assert _bytes(target) == whole
    assert not [name for name in os.listdir(target.parent) if name.startswith(".")]


def test_what_is_whole_is_not_quantized_again(
    checkpoint: Checkpoint, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_WEIGHTS_BETWEEN_FLUSHES", 1)
    left = weight_count(checkpoint.decoder) // 2

    def lose_patience(count: int) -> None:
        nonlocal left
        left -= count
        if left < 0:
            raise KeyboardInterrupt

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, request_, bars=stage("quantizing", lose_patience), say=said.append)
    assert "--resume" in said[-1]
    assert not request_.destination.exists()
    quantized: list[str] = []

    def four_bits(spec: TensorSpec) -> RowQuantizer:
        quantized.append(spec.name)
        return SEARCH.four_bits(spec)

    monkeypatch.setattr(calibration, "SEARCH", Quantizer(four_bits=four_bits))
    again = dataclasses.replace(request_, resume=True)
    done: list[int] = []
    build = export(checkpoint, again, bars=stage("quantizing", done.append))
    assert "model.layers.0.self_attn.q_proj.weight" not in quantized
    assert "model.layers.2.mlp.down_proj.weight" in quantized
    assert sum(done) == weight_count(build.manifest.decoder)
    fresh = dataclasses.replace(request_, destination=request_.destination.with_name("fresh"))
    assert _bytes(export(checkpoint, fresh).path) == _bytes(build.path)


def _leave_half(checkpoint: Checkpoint, request: Request, *, slabs: int = 1) -> None:
    left = slabs

    def interrupted(count: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, request, bars=stage("quantizing", interrupted))


def test_what_was_written_outlives_an_engine_that_is_killed(
    checkpoint: Checkpoint, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(module: str, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        return subprocess.run([sys.executable, "-c", kill], capture_output=True, encoding="utf-8")

    said: list[str] = []
    with monkeypatch.context() as scarce:
        scarce.setattr(trial_process, "run_module", killed)
        with pytest.raises(KilledError, match="memory runs out"):
            export(checkpoint, request_, say=said.append)
    assert "--resume goes on" in said[-1]
    assert not request_.destination.exists()
    export(checkpoint, dataclasses.replace(request_, resume=True))
    assert os.listdir(request_.destination.parent) == ["tiny"]


def test_another_request_does_not_go_on_with_it_nor_lose_it(
    checkpoint: Checkpoint, request_: Request
) -> None:
    _leave_half(checkpoint, request_)
    other = dataclasses.replace(request_, profile="float", resume=True)
    with pytest.raises(ExportError, match=r"other options.*leave --resume out"):
        export(checkpoint, other)
    assert os.listdir(request_.destination.parent) == [".tiny.partial"]
    export(checkpoint, dataclasses.replace(request_, resume=True))
    assert os.listdir(request_.destination.parent) == ["tiny"]


def test_another_calibration_does_not_go_on_with_it_nor_lose_it(
    checkpoint: Checkpoint, request_: Request
) -> None:
    _leave_half(checkpoint, request_)
    again = dataclasses.replace(request_, resume=True)
    with pytest.raises(ExportError, match=r"other options.*leave --resume out"):
        export(checkpoint, dataclasses.replace(again, calibration=PLAIN))
    assert os.listdir(request_.destination.parent) == [".tiny.partial"]
    export(checkpoint, again)


def test_other_options_are_refused_before_anything_is_fitted(
    checkpoint: Checkpoint, request_: Request
) -> None:
    checkpoint = with_tokens(checkpoint, TINY_CONTRACT)
    _leave_half(checkpoint, request_)
    again = dataclasses.replace(request_, resume=True)
    check_request(checkpoint, again)
    check_request(checkpoint, dataclasses.replace(again, calibration=PLAIN))  # not known by then
    with pytest.raises(ExportError, match=r"other options.*leave --resume out"):
        check_request(checkpoint, dataclasses.replace(again, block_size=64))


def test_without_resume_it_starts_over_and_says_so(
    checkpoint: Checkpoint, request_: Request
) -> None:
    _leave_half(checkpoint, request_)
    said: list[str] = []
    export(checkpoint, request_, say=said.append)
    assert "starting over" in said[0]
    assert os.listdir(request_.destination.parent) == ["tiny"]


@pytest.mark.parametrize("same", [True, False])
def test_who_is_not_asked_goes_on_with_the_same_request_alone(
    checkpoint: Checkpoint, request_: Request, same: bool
) -> None:
    left = request_ if same else dataclasses.replace(request_, formats=("gguf",))
    _leave_half(checkpoint, left)
    said: list[str] = []
    export(checkpoint, dataclasses.replace(request_, resume=None), say=said.append)
    assert any("starting over" in line for line in said) != same
    assert os.listdir(request_.destination.parent) == ["tiny"]


def test_a_journal_that_was_cut_off_itself_is_read_up_to_there(
    checkpoint: Checkpoint, request_: Request
) -> None:
    _leave_half(checkpoint, request_)
    journal = request_.destination.with_name(".tiny.partial") / "journal.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"tensor": "model.lay')
    export(checkpoint, dataclasses.replace(request_, resume=True))


def test_killed_just_before_it_was_published_it_ends_alike(
    checkpoint: Checkpoint, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _bytes(export(checkpoint, request_).path)
    late = dataclasses.replace(request_, destination=request_.destination.with_name("late"))

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(staging, "_publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(checkpoint, late)
    assert (late.destination.with_name(".late.partial") / "build" / "t1.json").exists()
    assert _bytes(export(checkpoint, dataclasses.replace(late, resume=True)).path) == whole


def test_a_file_that_was_cut_meanwhile_is_not_gone_on_with(
    checkpoint: Checkpoint, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_WEIGHTS_BETWEEN_FLUSHES", 1)
    _leave_half(checkpoint, request_, slabs=3)
    partial = request_.destination.with_name(".tiny.partial")
    assert len((partial / "journal.jsonl").read_bytes().splitlines()) > 1
    os.truncate(partial / "build" / "weights.bin", 100)
    with pytest.raises(
        ExportError, match=r"weights\.bin is not as it was left: leave --resume out"
    ):
        export(checkpoint, dataclasses.replace(request_, resume=True))


def test_a_journal_whose_build_was_published_counts_for_nothing(
    checkpoint: Checkpoint, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind the rename, with the staging directory not yet cleared away."""
    monkeypatch.setattr(weights, "_WEIGHTS_BETWEEN_FLUSHES", 1)
    _leave_half(checkpoint, request_, slabs=3)
    shutil.rmtree(request_.destination.with_name(".tiny.partial") / "build")
    check_request(checkpoint, dataclasses.replace(request_, resume=True, block_size=64))
    export(checkpoint, dataclasses.replace(request_, resume=True)).check_hashes()


def test_a_journal_of_noise_is_an_error(checkpoint: Checkpoint, request_: Request) -> None:
    _leave_half(checkpoint, request_)
    journal = request_.destination.with_name(".tiny.partial") / "journal.jsonl"
    journal.write_bytes(b"\xff\n")
    again = dataclasses.replace(request_, resume=True)
    for ask in (check_request, export):
        with pytest.raises(ExportError, match="is damaged"):
            ask(checkpoint, again)


def test_the_second_of_two_is_refused_with_the_firsts_pid(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "build"),
        pytest.raises(ExportError, match=f"process {os.getpid()} is writing"),
        claimed(tmp_path / "build"),
    ):
        pass


def test_the_second_is_refused_before_it_begins(checkpoint: Checkpoint, request_: Request) -> None:
    with (
        pytest.raises(ExportError, match=rf"is writing {request_.destination} already"),
        claimed(request_.destination),
    ):
        check_request(checkpoint, request_)
    check_request(checkpoint, request_)


def test_another_process_is_refused_while_the_first_still_collects(
    tiny: Callable[..., Tiny], tmp_path: Path
) -> None:
    processes, folder, target = _processes(), tiny("llama").folder, tmp_path / "build"
    collecting, go_on = processes.Event(), processes.Event()
    first = processes.Process(target=stand_still, args=(folder, target, collecting, go_on))
    first.start()
    try:
        assert collecting.wait(120)
        command = ["export", str(folder), "--contract", "chat", "--output", str(target)]
        second = CliRunner().invoke(main, command)
        assert (second.exit_code, second.stdout) == (1, "")
        assert f"process {first.pid} is writing {target} already" in second.stderr
        assert "collecting" not in second.stderr
        assert first.pid != os.getpid()
        assert first.is_alive()
        assert os.listdir(tmp_path / ".build.partial") == ["lock"]
    finally:
        go_on.set()
        first.join()
    assert first.exitcode == 0
    Build(target).check_hashes()
    assert os.listdir(tmp_path) == ["build"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_ends_while_it_collects_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, error: type[BaseException]
) -> None:
    def fails(count: int) -> None:
        raise error

    request = asked(checkpoint, tmp_path / "out" / "tiny", fitted=True)
    with pytest.raises(error):
        export(checkpoint, request, bars=stage("collecting", fails))
    assert os.listdir(tmp_path) == []
