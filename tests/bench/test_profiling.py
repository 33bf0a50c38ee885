"""Where the time goes: real passes of real engines, and the parts that their operations are of."""

import ctypes
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner

from t1_edge.build import Build, Format, Profile
from t1_edge.cli import main
from t1_edge.engines.base import Engine
from t1_edge.engines.places import PLACES
from t1_edge.errors import EngineError, InputError
from t1_edge_bench import operations
from t1_edge_bench.operations import Pass, watch_llama, watch_onnx
from t1_edge_bench.profiling import part_of, profile
from tiny import Family

PARTS = {
    "activation",
    "attention",
    "down",
    "embedding",
    "gate and up",
    "head",
    "norms and sums",
    "output projection",
    "queries, keys, values",
    "rest",
}
LAYERS = 3
MATRICES: dict[Format, dict[str, int]] = {
    # What ONNX Runtime multiplies together is apart again in a node more; or it is apart anyway.
    "onnx": {"output projection": LAYERS, "down": LAYERS, "head": 1, "gate and up": 2 * LAYERS},
    "gguf": {
        "output projection": LAYERS,
        "down": LAYERS,
        "head": 1,
        "gate and up": 2 * LAYERS,
        "queries, keys, values": 3 * LAYERS,
    },
}
"""Operations of the parts that hold matrices."""


def _passes(engine: Engine) -> Iterator[float]:
    """Rows are read, and looked at with a token more."""
    with engine.start([[5, 6, 7], [8, 9, 10, 11]], room=2) as session:
        began = time.perf_counter()
        session.logits()
        yield time.perf_counter() - began
        session.append({0: 3})
        began = time.perf_counter()
        session.peek(4)
        yield time.perf_counter() - began


def _watch(build: Build, engine: Format) -> list[Pass]:
    if engine == "onnx":
        return watch_onnx(build, PLACES["cpu"], 1, _passes)
    return watch_llama(build, 1, _passes)


@pytest.mark.parametrize("engine", ["onnx", "gguf"])
@pytest.mark.parametrize("precision", ["portable", "float"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_every_operation_is_of_a_part(
    tiny_build: Callable[..., Build], family: Family, precision: Profile, engine: Format
) -> None:
    """The rest picks what is wanted: last tokens, and rows whose logits are."""
    passes = _watch(tiny_build(family, precision, tied=family == "llama"), engine)
    assert len(passes) == 2
    for one in passes:
        assert 0 < sum(operation.seconds for operation in one.operations) < one.seconds
        names = [operation.name for operation in one.operations]
        assert {part_of(name, engine) for name in names} == PARTS
        rest = {name.split()[0] for name in names if part_of(name, engine) == "rest"}
        assert rest == {"GatherND" if engine == "onnx" else "GET_ROWS"}
        counts = Counter(part_of(name, engine) for name in names)
        assert {part: counts[part] for part in MATRICES[engine]} == MATRICES[engine]
        attending = [name for name in names if part_of(name, engine) == "attention"]
        assert not [name for name in attending if "weight" in name]


@pytest.mark.parametrize("engine", ["onnx", "gguf"])
def test_what_nobody_knows_is_the_rest(engine: Format) -> None:
    assert part_of("MUL_MAT ffn_new-0 blk.0.ffn_new.weight ffn_norm-0", engine) == "rest"
    assert part_of("MatMulNBits model.layers.0.mlp.new_proj.weight.out", engine) == "rest"


@pytest.mark.usefixtures("heard")
def test_an_interruption_reaches_who_waits(tiny_build: Callable[..., Build]) -> None:
    """It mostly comes as llama.cpp calls back, where what is raised is printed and forgotten."""

    def endless(engine: Engine) -> Iterator[float]:
        while True:
            yield from _passes(engine)

    build = tiny_build("llama", "portable")
    for delay in (0.5, 0.6, 0.7):
        main_thread = threading.main_thread().ident
        timer = threading.Timer(delay, signal.pthread_kill, (main_thread, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            watch_llama(build, 1, endless)
        timer.join()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_texts_over_the_limit_are_said_to_be_cut(tiny_build: Callable[..., Build]) -> None:
    said: list[str] = []
    build = str(tiny_build("llama", "portable").path)
    rows = profile(build, engine="onnx", documents=2, passes=1, threads=1, say=said.append)
    assert said[0] == "2 of 2 texts are cut to 200 tokens"
    assert rows[0].tokens == 2 * 200


def test_more_than_onnx_runtime_notes_is_refused(
    tiny_build: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "_MOST_EVENTS", 50)
    with pytest.raises(EngineError, match="notes 50 operations: watch fewer passes"):
        _watch(tiny_build("llama", "portable"), "onnx")


def test_tensors_of_another_layout_are_refused(
    tiny_build: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Longer(ctypes.Structure):
        _fields_ = (("more", ctypes.c_int64), *operations._Tensor._fields_)

    monkeypatch.setattr(operations, "_Tensor", Longer)
    with pytest.raises(EngineError, match=r"has other tensors than 0\.3\.36"):
        _watch(tiny_build("llama", "portable"), "gguf")


def test_a_profile_of_both_engines(nano: Build) -> None:
    arguments = ["bench", "profile", "--build", str(nano.path), "--threads", "1", "--passes", "3"]
    arguments += ["--documents", "2", "--thoughts", "3"]
    found = CliRunner().invoke(main, [*arguments, "--json"])
    assert found.exit_code == 0, found.stderr
    rows = json.loads(found.stdout)["rows"]
    kinds = [(row["library"].split()[0], row["graph"], row["work"]) for row in rows]
    assert kinds == [
        ("onnxruntime", "everything", "reading"),
        ("onnxruntime", "everything", "thinking"),
        ("onnxruntime", "documents", "reading"),
        ("llama.cpp", "everything", "reading"),
        ("llama.cpp", "everything", "thinking"),
    ]
    for row in rows:
        assert row["passes"] == 3
        assert row["rows"] == (3 if row["work"] == "thinking" else 2)
        assert row["tokens"] == 3 if row["work"] == "thinking" else row["tokens"] > 2 * 150
        assert 0 < sum(row["parts"].values()) < row["watched"]
        assert row["alone"] > 0
        assert list(row["parts"].values()) == sorted(row["parts"].values(), reverse=True)
    reading = rows[2]["parts"].keys()
    assert reading - rows[0]["parts"].keys() == {"rounding activations"}
    assert "head" not in reading
    plain = CliRunner().invoke(main, [*arguments, "--engine", "gguf"])
    assert "llama.cpp thinking" in plain.stdout
    shares = [line.split()[-1] for line in plain.stdout.splitlines() if line.endswith("%")]
    assert sum(int(share.removesuffix("%")) for share in shares) == pytest.approx(100, abs=5)
    assert "a pass alone, ms" in plain.stdout
    assert "gguf: reading (passes: 3 alone, 3 watched)" in plain.stderr


def test_what_cannot_be_profiled(tiny_build: Callable[..., Build]) -> None:
    build = str(tiny_build("llama", "portable").path)
    with pytest.raises(InputError, match="1 thread or more, not 0"):
        profile(build, engine="onnx", threads=0)
    with pytest.raises(EngineError, match="65 rows at once: the engine takes 64"):
        profile(build, engine="gguf", documents=65, threads=1)
