"""Header readers against noise: a file opens, or is one error; never a hang, never all memory."""

import copy
import json
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from t1_edge.errors import CheckpointError, ExportError, T1Error
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.adapter import CONFIG, WEIGHTS, with_adapter
from t1_edge_export.checkpoint import Checkpoint, open_checkpoint
from t1_edge_export.decoder import tensors
from t1_edge_export.gguf_file import open_gguf
from t1_edge_export.gguf_tokenizer import gguf_tokenizer
from t1_edge_export.journal import NOTHING, Journal
from t1_edge_export.quantize.statistics import collect, read_statistics
from t1_edge_export.safetensors_file import read_tensors
from t1_edge_export.vocabulary import with_tokens
from tiny import TINY_CONTRACT, Tiny

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HUGE = [2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 8, 2**64 - 1]


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory() -> Iterator[None]:
    """A gibibyte more than there is in use: the files here have kilobytes."""
    pages = Path("/proc/self/statm")
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages.exists():
        used = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def _weights(checkpoint: Checkpoint) -> NDArray[np.float32]:
    """All of them, once the tokenizer was read in every way that an export does."""
    checkpoint = with_tokens(checkpoint, TINY_CONTRACT)
    TextTokenizer(checkpoint.tokenizer).encode_plain("the weather")
    gguf_tokenizer(checkpoint.tokenizer, checkpoint.decoder.vocabulary)
    assert checkpoint.source().sha256
    specs = tensors(checkpoint.decoder)
    return np.concatenate([checkpoint.rows(s.name, 0, s.shape[0]).reshape(-1) for s in specs])


class Damaged:
    """A file that is damaged, read, and put right again.

    Args:
        path: The file.
        read: What reads it.
    """

    def __init__(self, path: Path, read: Callable[[], object]) -> None:
        self.path = path
        self.original = path.read_bytes()
        self._read = read

    def read(self, damaged: bytes) -> object:
        """What it reads as; None if that is an error, as it should be."""
        self.path.write_bytes(damaged)
        try:
            return self._read()
        except T1Error:
            return None
        finally:
            self.path.write_bytes(self.original)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Tiny]) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(tiny("llama").folder, root / "whole")
    shutil.copytree(tiny("llama", shard="60KB").folder, root / "shards")
    (root / "adapter").mkdir()
    (root / "adapter" / CONFIG).write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    module = "base_model.model.model.layers.0.mlp.up_proj"
    a, b = np.ones((2, 64), np.float32), np.ones((128, 2), np.float32)
    factors = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    save_file(factors, root / "adapter" / WEIGHTS)
    return root


@pytest.fixture(scope="module")
def files(room: Path, tiny_gguf: Callable[..., Path]) -> dict[str, Damaged]:
    """Every kind of file whose header is read, by its name."""
    whole = open_checkpoint(room / "whole")

    def adapted() -> object:
        return _weights(with_adapter(whole, room / "adapter"))

    gguf = room / "tiny.gguf"
    shutil.copy(tiny_gguf(), gguf)
    collect(whole, [[1, 2, 3]], "a row").save(room / "statistics.gguf", whole.decoder)
    journal = room / "journal.jsonl"
    asked = {"options": "", "calibration": ""}
    lines = [asked, {"tensor": "model.norm.weight", "sha256": "0" * 64}]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    readers: dict[Path, Callable[[], object]] = {
        room / "adapter" / CONFIG: adapted,
        room / "adapter" / WEIGHTS: adapted,
        gguf: lambda: _weights(open_checkpoint(gguf)),
        room / "statistics.gguf": lambda: read_statistics(room / "statistics.gguf", whole.decoder),
        journal: lambda: Journal.open(journal, NOTHING).written,
    }
    for name in ("config.json", "tokenizer.json", SINGLE):
        readers[room / "whole" / name] = lambda: _weights(open_checkpoint(room / "whole"))
    readers[room / "shards" / INDEX] = lambda: _weights(open_checkpoint(room / "shards"))
    return {path.name: Damaged(path, read) for path, read in readers.items()}


JSON_FILES = ["config.json", "tokenizer.json", INDEX, CONFIG]
HEADERS = {SINGLE: 4000, WEIGHTS: 300, "tiny.gguf": 12_000, "statistics.gguf": 3000}
"""Files that begin with a header, and about how many bytes of it there are."""

ALL = [*JSON_FILES, *HEADERS, "journal.jsonl"]


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25, deadline=None)
@given(noise=st.binary(max_size=300))
def test_noise_is_an_error(files: dict[str, Damaged], name: str, noise: bytes) -> None:
    for damaged in (noise, files[name].original[:24] + noise):
        found = files[name].read(damaged)
        assert found is None or name == "journal.jsonl"


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_read_or_an_error(
    files: dict[str, Damaged], name: str, data: st.DataObject
) -> None:
    damaged = bytearray(files[name].original)
    end = min(len(damaged) - 8, HEADERS.get(name, len(damaged)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, end))
        how = data.draw(st.sampled_from(["byte", "number", "cut", "insert"]))
        if how == "byte":
            damaged[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif how == "number":
            damaged[at : at + 8] = struct.pack("<Q", data.draw(st.sampled_from(HUGE)))
        elif how == "cut":
            del damaged[at : at + data.draw(st.integers(1, 9))]
        else:
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    files[name].read(bytes(damaged))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value, with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 400),
    st.sampled_from([-(2**63), *HUGE, 10**30]),
    st.floats(),
    st.text(max_size=9),
    st.sampled_from(["x" * 300, "../x", "inf", "\ud800", [], {}, [[]], [None], {"a": 1}]),
)


def _mutated(data: st.DataObject, value: Any) -> Any:
    """One value of it replaced by an odd one, taken away, or called otherwise."""
    value = copy.deepcopy(value)
    places = sorted(_places(value), key=lambda place: len(json.dumps(place[0])), reverse=True)
    container, key = places[data.draw(st.integers(0, len(places) - 1), label="place")]
    how = data.draw(st.sampled_from(["replace", "remove", "rename"]))
    if how == "replace":
        container[key] = data.draw(_ODD)
    elif how == "remove":
        del container[key]
    elif isinstance(container, dict):
        container[data.draw(st.text(max_size=9))] = container.pop(key)
    return value


@pytest.mark.parametrize("name", JSON_FILES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_odd_values_are_read_or_an_error(
    files: dict[str, Damaged], name: str, data: st.DataObject
) -> None:
    odd = _mutated(data, json.loads(files[name].original))
    files[name].read(json.dumps(odd).encode())


@pytest.mark.parametrize("name", [SINGLE, WEIGHTS])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_odd_values_in_a_header_are_read_or_an_error(
    files: dict[str, Damaged], name: str, data: st.DataObject
) -> None:
    header, behind = _header(files[name].original)
    odd = json.dumps(_mutated(data, header)).encode()
    files[name].read(struct.pack("<Q", len(odd)) + odd + behind)


def _header(raw: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:end]), raw[end:]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_of_a_safetensors_header_is_an_error_or_changes_nothing(
    files: dict[str, Damaged], data: st.DataObject
) -> None:
    file = files[SINGLE]
    end = 8 + struct.unpack("<Q", file.original[:8])[0]
    _assert_no_flip_goes_unseen(file, data, range(end))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_of_a_ggufs_tensor_list_is_an_error_or_changes_nothing(
    files: dict[str, Damaged], data: st.DataObject
) -> None:
    file = files["tiny.gguf"]
    begin = file.original.index(b"token_embd.weight") - 8
    end = min(tensor.offset for tensor in open_gguf(file.path).tensors.values())
    _assert_no_flip_goes_unseen(file, data, range(begin, end))


def _assert_no_flip_goes_unseen(file: Damaged, data: st.DataObject, where: range) -> None:
    damaged = bytearray(file.original)
    damaged[data.draw(st.sampled_from(where))] ^= 1 << data.draw(st.integers(0, 7))
    found = file.read(bytes(damaged))
    if found is not None:
        np.testing.assert_array_equal(found, file.read(file.original))


@pytest.mark.parametrize("name", [*JSON_FILES, "journal.jsonl"])
@pytest.mark.parametrize("nest", [b"[", b'{"a":'])
def test_json_without_a_bottom(files: dict[str, Damaged], name: str, nest: bytes) -> None:
    for deep in (nest * 200_000, b'{"x":' + nest * 200_000, b'{"architectures":' + b"[" * 9999):
        assert files[name].read(deep + b"\n") is None


def test_a_header_without_a_bottom(files: dict[str, Damaged]) -> None:
    deep = b"[" * 200_000
    assert files[SINGLE].read(struct.pack("<Q", len(deep)) + deep) is None


_ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": _ENTRY, "b": _ENTRY | {"data_offsets": [8, 16]}, "size": 20},  # more than is told of
        {"a": _ENTRY, "b": _ENTRY | {"data_offsets": [12, 20]}, "size": 20},  # a gap
        {"a": _ENTRY, "b": _ENTRY | {"data_offsets": [4, 12]}, "size": 12},  # an overlap
        {"a": _ENTRY, "b": _ENTRY, "size": 8},  # the same place
        {"a": _ENTRY | {"data_offsets": [8, 16]}, "size": 16},
        {"a": _ENTRY | {"shape": [-1, -2]}, "size": 8},
        {"a": _ENTRY | {"data_offsets": [-8, 0]}, "size": 0},
        {"a": _ENTRY | {"shape": [2**62, 4]}, "size": 8},
        {"a": _ENTRY | {"shape": [2**40] * 9}, "size": 8},
    ],
)
def test_tensors_must_fill_a_safetensors_file(tmp_path: Path, header: dict[str, Any]) -> None:
    data = bytes(header.pop("size"))
    raw = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        read_tensors(tmp_path / "x.safetensors")


def test_a_name_that_stands_twice(tmp_path: Path) -> None:
    entry = json.dumps(_ENTRY)
    raw = f'{{"a": {entry}, "a": {entry}}}'.encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(8))
    with pytest.raises(CheckpointError, match="stands twice"):
        read_tensors(tmp_path / "x.safetensors")


def _behind(raw: bytes, text: bytes) -> int:
    return raw.index(text) + len(text)


@pytest.mark.parametrize("claim", HUGE)
@pytest.mark.parametrize(
    "place",
    [
        lambda raw: 8,  # tensors
        lambda raw: 16,  # keys
        lambda raw: 24,  # the length of the first key
        lambda raw: _behind(raw, b"tokenizer.ggml.tokens") + 8,
        lambda raw: _behind(raw, b"tokenizer.ggml.token_type") + 8,
        lambda raw: raw.index(b"token_embd.weight") - 8,
        lambda raw: _behind(raw, b"token_embd.weight"),  # dimensions, and the first of them
        lambda raw: _behind(raw, b"token_embd.weight") + 4,
        lambda raw: _behind(raw, b"token_embd.weight") + 12,
        lambda raw: _behind(raw, b"token_embd.weight") + 24,  # the offset
    ],
)
def test_a_gguf_that_claims_too_much(
    files: dict[str, Damaged], claim: int, place: Callable[[bytes], int]
) -> None:
    damaged = bytearray(files["tiny.gguf"].original)
    at = place(bytes(damaged))
    damaged[at : at + 8] = struct.pack("<Q", claim)
    assert files["tiny.gguf"].read(bytes(damaged)) is None


def test_a_journal_of_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    asked = '{"options": "", "calibration": ""}'
    path.write_text(f'{asked}\n{{"tensor": "x", "sha256": "short"}}\n')
    with pytest.raises(ExportError, match=r"is damaged.*leave --resume out"):
        Journal.open(path, NOTHING)
