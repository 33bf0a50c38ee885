"""How llama.cpp is driven: what is decoded, what stays in its cache, and what is mapped."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import llama_cpp
import msgspec
import numpy as np
import psutil
import pytest
from gguf import GGUFReader

from t1_edge.build import GGUF_MODEL, Build, Decoder
from t1_edge.engines import llama_context
from t1_edge.engines.base import Float32Array
from t1_edge.engines.llama import LlamaEngine
from t1_edge.engines.llama_mapping import LlamaMapping, can_map
from t1_edge.errors import EngineError
from t1_edge_export.checkpoint import Derived, open_checkpoint
from t1_edge_export.pipeline import export
from t1_edge_export.request import Request
from tiny import TINY_CONTRACT, Tiny

ROW = [1, 2, 3, 4, 5, 6]


@pytest.fixture
def model(tiny_build: Callable[..., Build]) -> Build:
    return tiny_build("llama", "portable")


@pytest.fixture
def engine(model: Build) -> Iterator[LlamaEngine]:
    with closing(LlamaEngine(model.file(GGUF_MODEL), model.manifest.decoder, threads=1)) as opened:
        yield opened


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each decode call, as they come."""
    counts: list[int] = []
    decode = llama_cpp.llama_decode

    def count(context: Any, batch: Any) -> Any:
        counts.append(batch.n_tokens)
        return decode(context, batch)

    monkeypatch.setattr(llama_cpp, "llama_decode", count)
    return counts


def test_a_peek_at_little_is_one_decode_and_gives_logits_too(
    engine: LlamaEngine, decoded: list[int]
) -> None:
    with engine.start([ROW], room=4) as session:
        session.logits()
        session.append({0: 7})
        session.peek(8, 9)
        session.logits()
    assert decoded == [len(ROW), 3]


@pytest.mark.parametrize(("length", "decodes"), [(14, [16]), (15, [16, 1])])
def test_what_is_long_passes_the_head_once(
    engine: LlamaEngine, decoded: list[int], length: int, decodes: list[int]
) -> None:
    with engine.start([[5] * length], room=2) as session:
        session.peek(8, 9)
    assert decoded == decodes


def test_what_rows_begin_with_stays_in_the_cache(engine: LlamaEngine, decoded: list[int]) -> None:
    engine.prime([ROW[:2], ROW[:4]])
    rows = [ROW, [*ROW[:2], 9], [9, 9]]
    for _ in range(2):
        for row in rows:
            with engine.start([row], room=2) as session:
                session.logits()
    assert decoded == [4, 2, 2, 1, 2, 2, 1, 2]


def test_an_interruption_leaves_no_cache_without_beginnings(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.prime([ROW[:4], [9, 8]])
    expected = _logits(engine, [9, 8, 7])
    engine.prime([ROW[:4], [9, 8]])
    decode = llama_cpp.llama_decode

    def interrupted(context: Any, batch: Any) -> Any:
        monkeypatch.setattr(llama_cpp, "llama_decode", decode)
        raise KeyboardInterrupt

    monkeypatch.setattr(llama_cpp, "llama_decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.start([ROW], room=1)
    np.testing.assert_array_equal(_logits(engine, [9, 8, 7]), expected)


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_pass_that_fails_leaves_the_cache_as_it_was(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch, ran: bool, failing: int
) -> None:
    rows = [[5, 6, *range(20 + at, 40 + 2 * at)] for at in range(3)]
    with engine.start(rows, room=4) as session:
        expected = session.peek(8, 9), session.peek(9), session.logits()
    decode, left = llama_cpp.llama_decode, [failing]

    def fail(context: Any, batch: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            return -1 if not ran else decode(context, batch) or -1
        return decode(context, batch)

    with engine.start(rows, room=4) as session:  # three decodes
        monkeypatch.setattr(llama_cpp, "llama_decode", fail)
        with pytest.raises(EngineError, match="failed on"):
            session.peek(8, 9)
        monkeypatch.undo()
        found = session.peek(8, 9), session.peek(9), session.logits()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_share_more_than_what_is_kept(engine: LlamaEngine, decoded: list[int]) -> None:
    engine.prime([ROW[:2]])
    with engine.start([[*ROW, 7], [*ROW, 8, 9]], room=1) as session:
        together = session.logits()
    assert decoded == [2, 4, 3]
    engine.prime([])
    with engine.start([[*ROW, 8, 9]], room=1) as session:
        np.testing.assert_allclose(session.logits()[0], together[1], atol=1e-3)


def test_a_cache_that_grows_changes_nothing(engine: LlamaEngine) -> None:
    engine.prime([ROW[:2]])
    before = _logits(engine, ROW)
    with engine.start([ROW * 9] * 20, room=9) as session:
        session.logits()
    np.testing.assert_array_equal(_logits(engine, ROW), before)


def _with_odd_vocabulary(tiny: Callable[..., Tiny], destination: Path) -> Build:
    request = Request(
        name="odd",
        destination=destination,
        contract=TINY_CONTRACT,
        profile="float",
        formats=("gguf",),
    )
    whole = open_checkpoint(tiny("llama").folder)
    shorter = msgspec.structs.replace(whole.decoder, vocabulary=379)
    return export(Derived(whole, decoder=shorter), request)


def test_rows_that_kernels_do_not_divide_are_padded(
    tiny: Callable[..., Tiny], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    padded = _with_odd_vocabulary(tiny, tmp_path / "padded")
    decoder = padded.manifest.decoder
    assert decoder.vocabulary == 379
    tensors = {found.name: found for found in GGUFReader(padded.file(GGUF_MODEL)).tensors}
    table = tensors["token_embd.weight"].data
    assert len(table) == decoder.padded_vocabulary == 384
    assert not table[decoder.vocabulary :].any()
    assert open_checkpoint(padded.file(GGUF_MODEL)).decoder.vocabulary == 379
    # As builds were before.
    monkeypatch.setattr(Decoder, "padded_vocabulary", property(lambda self: self.vocabulary))
    plain = _with_odd_vocabulary(tiny, tmp_path / "plain")
    monkeypatch.undo()
    found = []
    for build in (padded, plain):
        with closing(LlamaEngine(build.file(GGUF_MODEL), decoder, threads=1)) as engine:
            found.append(_logits(engine, ROW))
    assert found[0].shape == (1, decoder.vocabulary)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.skipif(not can_map(), reason="the system does not tell where a file is mapped")
def test_a_mapped_file_is_let_go_of_once_it_is_loaded(model: Build) -> None:
    file = model.file(GGUF_MODEL)
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_extra_bufts = False
    mapping = LlamaMapping(llama_cpp, file, parameters)
    loaded = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
    mapping.loaded()
    assert _resident(file) == [0]
    llama_cpp.llama_model_free(loaded)


@pytest.fixture
def open_mapped(model: Build, monkeypatch: pytest.MonkeyPatch) -> Callable[[], LlamaEngine]:
    """Opens the model as where AMX's kernels run; they need not."""
    if not can_map():
        pytest.skip("the system does not tell where a file is mapped")
    load = llama_cpp.llama_model_load_from_file

    def load_as_it_is(path: bytes, parameters: Any) -> Any:
        parameters.use_extra_bufts = False  # not every compiler's kernels for AMX run
        return load(path, parameters)

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", load_as_it_is)
    monkeypatch.setattr(llama_context, "has_amx", lambda library: True)
    file, decoder = model.file(GGUF_MODEL), model.manifest.decoder
    return lambda: LlamaEngine(file, decoder, threads=1, pack=True)


def test_rows_that_were_looked_up_do_not_stay_resident(
    model: Build, open_mapped: Callable[[], LlamaEngine]
) -> None:
    file = model.file(GGUF_MODEL)
    with closing(open_mapped()) as engine:
        _logits(engine, ROW)
        [looked_up] = _resident(file)
        assert looked_up > 0
        with engine.start([ROW], room=1):
            assert _resident(file) == [0]
    assert _resident(file) == []


def test_a_model_lets_go_of_its_own_pages_alone(
    model: Build, open_mapped: Callable[[], LlamaEngine]
) -> None:
    file = model.file(GGUF_MODEL)
    with closing(open_mapped()) as first:
        before = _logits(first, ROW)
        [held] = _resident(file)
        with closing(open_mapped()) as second:
            with second.start([ROW], room=1):
                assert sorted(_resident(file)) == [0, held]
            np.testing.assert_array_equal(_logits(second, ROW), before)


def test_llama_says_why_it_cannot_open_a_file(
    tmp_path: Path, tiny_build: Callable[..., Build]
) -> None:
    build = tiny_build("llama", "float")
    whole = build.file(GGUF_MODEL).read_bytes()
    (tmp_path / GGUF_MODEL).write_bytes(whole[: len(whole) // 2])
    decoder = build.manifest.decoder
    with pytest.raises(
        EngineError, match=r"cannot open .*model\.gguf: .*(bounds|corrupted|incomplete)"
    ):
        LlamaEngine(tmp_path / GGUF_MODEL, decoder, threads=1)


def _resident(file: Path) -> list[int]:
    """Bytes that are resident of each of a file's mappings."""
    parts = psutil.Process().memory_maps(grouped=False)
    return [part.rss for part in parts if part.path == str(file)]


def _logits(engine: LlamaEngine, row: list[int]) -> Float32Array:
    with engine.start([row], room=1) as session:
        return session.logits()
