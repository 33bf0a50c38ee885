"""Float weights from folders and GGUF files, whole, in shards, and damaged."""

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t1_edge.errors import CacheError, CheckpointError
from t1_edge_export.checkpoint import find_checkpoint, open_checkpoint
from t1_edge_export.decoder import HEAD, tensors
from t1_edge_export.gguf_checkpoint import GGUFCheckpoint, gguf_names
from t1_edge_export.gguf_tokenizer import gguf_tokenizer
from tiny import Family, Tiny

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tiny: Callable[..., Tiny], tmp_path: Path) -> Path:
    """A tiny Llama of the test's own, to be damaged."""
    shutil.copytree(tiny("llama").folder, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tiny: Callable[..., Tiny], tmp_path: Path) -> Path:
    shutil.copytree(tiny("llama", shard="60KB").folder, tmp_path / "model")
    return tmp_path / "model"


_ONES = np.ones(64, np.float32)


@pytest.fixture
def tiny_gguf(tiny: Callable[..., Tiny], tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny Llama as other programs might: tiny_gguf(keys, tensors of its own)."""
    import gguf

    checkpoint = open_checkpoint(tiny("llama").folder)
    decoder, tokenizer = checkpoint.decoder, gguf_tokenizer(checkpoint.tokenizer, 384)

    def make(keys: Mapping[str, Any] = {}, extra: Mapping[str, Any] = {}) -> Path:
        writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
        plain = {
            "llama.context_length": decoder.positions,
            "llama.embedding_length": decoder.hidden,
            "llama.block_count": decoder.layers,
            "llama.feed_forward_length": decoder.intermediate,
            "llama.attention.head_count": decoder.heads,
            "llama.attention.head_count_kv": decoder.kv_heads,
            "llama.attention.layer_norm_rms_epsilon": decoder.norm_epsilon,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": tokenizer.pre,
            "tokenizer.ggml.tokens": tokenizer.tokens,
            "tokenizer.ggml.token_type": tokenizer.token_types,
            "tokenizer.ggml.merges": tokenizer.merges,
        }
        for key, value in (plain | dict(keys)).items():
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
        for spec in tensors(decoder):
            stored = gguf_names(decoder)[spec.name]
            writer.add_tensor(stored, checkpoint.rows(spec.name, 0, spec.shape[0]))
        for name, weights in extra.items():
            writer.add_tensor(name, weights)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "tiny.gguf"

    return make


@pytest.mark.parametrize("shard", ["1GB", "60KB"])
@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen3", False)])
def test_rows_are_transformers_rows(
    tiny: Callable[..., Tiny], family: Family, tied: bool, shard: str
) -> None:
    made = tiny(family, tied=tied, shard=shard)
    assert (made.folder / INDEX).exists() == (shard == "60KB")
    checkpoint = open_checkpoint(made.folder)
    assert checkpoint.decoder.tied == tied
    weights = made.model.state_dict()
    for spec in tensors(checkpoint.decoder):
        expected = weights[spec.name].numpy()
        middle = spec.shape[0] // 2
        np.testing.assert_array_equal(checkpoint.rows(spec.name, 0, spec.shape[0]), expected)
        np.testing.assert_array_equal(
            checkpoint.rows(spec.name, middle, middle + 3), expected[middle : middle + 3]
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_exactly(
    tiny: Callable[..., Tiny], tmp_path: Path, dtype: str
) -> None:
    import copy

    import torch

    made = tiny("qwen3")
    half = copy.deepcopy(made.model).to(getattr(torch, dtype))
    half.save_pretrained(tmp_path)
    shutil.copy(made.folder / "tokenizer.json", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    for spec in tensors(checkpoint.decoder):
        expected = half.state_dict()[spec.name].float().numpy()
        np.testing.assert_array_equal(checkpoint.rows(spec.name, 0, spec.shape[0]), expected)


def test_an_encoder_saved_without_its_head_is_read(
    tiny: Callable[..., Tiny], tmp_path: Path
) -> None:
    made = tiny("qwen3", tied=True)
    made.model.model.save_pretrained(tmp_path)
    whole, headless = open_checkpoint(made.folder), open_checkpoint(tmp_path)
    for spec in tensors(whole.decoder):
        np.testing.assert_array_equal(
            headless.rows(spec.name, 0, spec.shape[0]), whole.rows(spec.name, 0, spec.shape[0])
        )


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\nText", "mit"),
        ('---\nlanguage: en\nlicense: "apache-2.0"\n---\n', "apache-2.0"),
        ("---\nlanguage: en\n---\nlicense: see below\n", "unknown"),
        ("---\nlicense:\n- mit\n---\n", "unknown"),
        ("# A model\nlicense: none\n", "unknown"),
    ],
)
def test_the_licence_is_that_of_the_front_matter(folder: Path, card: str, licence: str) -> None:
    (folder / "README.md").write_text(card)
    assert open_checkpoint(folder).source.licence == licence


@pytest.mark.parametrize(
    ("name", "found"),
    [("org/model-1.5", "org/model-1.5"), ("/home/me/model-9", "model"), ("../it", "model")],
)
def test_a_path_is_no_name(folder: Path, name: str, found: str) -> None:
    _config(folder, _name_or_path=name)
    assert open_checkpoint(folder).source.id == found


def test_smollm2_says_where_it_comes_from(smollm2_gguf: Path) -> None:
    checkpoint = GGUFCheckpoint(smollm2_gguf)
    assert checkpoint.source.licence == "apache-2.0"
    assert "Q4_1" in checkpoint.source.note
    assert checkpoint.source.sha256.startswith("b179c952")
    assert checkpoint.decoder.head_dim == 64
    assert checkpoint.decoder.tied


def _config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel; known are LlamaForCausalLM"),
        ({"architectures": None}, r"\(none\)"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_size": "wide"}, "hidden"),
        ({"vocab_size": 999}, r"embed_tokens.weight is \(384, 64\), config.json says \(999, 64\)"),
        ({"num_hidden_layers": 1 << 40}, "layers"),
        ({"num_attention_heads": 0}, "heads"),
        ({"num_attention_heads": 0, "head_dim": None}, r"config\.json"),
        ({"num_hidden_layers": 4}, r"no tensor model\.layers\.3"),
    ],
)
def test_what_is_not_supported_is_named(folder: Path, changes: Any, message: str) -> None:
    _config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_a_config_that_lacks_a_value_is_named(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(CheckpointError, match="'num_attention_heads'"):
        open_checkpoint(folder)


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"\xff"])
def test_a_config_that_is_none_is_named(folder: Path, raw: bytes) -> None:
    (folder / "config.json").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(folder)


def test_a_missing_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        _ = open_checkpoint(folder).tokenizer


def test_a_bias_is_never_dropped(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    name = "model.layers.0.self_attn.q_proj.bias"
    weights = load_file(folder / SINGLE)
    harmless = {HEAD: weights["model.embed_tokens.weight"], "model.rotary_emb.inv_freq": _ONES}
    save_file(weights | harmless, folder / SINGLE)
    open_checkpoint(folder)
    save_file(weights | {name: _ONES}, folder / SINGLE)
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", [HEAD, "nothing"])
def test_a_tensor_that_is_not_there_is_named(
    folder: Path, tiny_gguf: Callable[..., Path], name: str
) -> None:
    for path in (folder, tiny_gguf()):
        with pytest.raises(CheckpointError, match=f"no tensor {name}"):
            open_checkpoint(path).rows(name, 0, 1)


def test_pickles_are_refused(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickles are refused"):
        open_checkpoint(folder)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        open_checkpoint(sharded)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_cannot_lead_outside(sharded: Path, name: str) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside the folder"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_named(sharded: Path, index: str) -> None:
    (sharded / INDEX).write_text(index)
    with pytest.raises(CheckpointError, match=r"index\.json|no tensor"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(folder: Path, value: float) -> None:
    path = folder / SINGLE
    raw = bytearray(path.read_bytes())
    raw[-4:] = struct.pack("<f", value)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds weights that are NaN"):
        _read_all(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_one_clear_error(folder: Path, data: st.DataObject) -> None:
    """Whatever is done to the header, it opens as before or is a CheckpointError."""
    original = (folder / SINGLE).read_bytes()
    header = 8 + struct.unpack("<Q", original[:8])[0]
    damaged = bytearray(original)
    if data.draw(st.booleans(), label="cut"):
        del damaged[data.draw(st.integers(0, len(original) - 1), label="at") :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, header - 1))
            damaged[at] ^= data.draw(st.integers(1, 255))
    (folder / SINGLE).write_bytes(damaged)
    message = str(folder)
    with suppress(CheckpointError):
        try:
            _read_all(folder)
        except CheckpointError as e:
            message = str(e)
            raise
        finally:
            (folder / SINGLE).write_bytes(original)
    assert str(folder) in message


def _read_all(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    for spec in tensors(checkpoint.decoder):
        checkpoint.rows(spec.name, 0, spec.shape[0])


@pytest.mark.parametrize("size", [0, 4, 1000, 5_000_000, 98_000_000])
def test_a_gguf_that_is_cut_off_is_refused(smollm2_gguf: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.gguf"
    with smollm2_gguf.open("rb") as file:
        path.write_bytes(file.read(size))
    with pytest.raises(CheckpointError, match=r"cut\.gguf is not a whole GGUF"):
        GGUFCheckpoint(path)


def test_a_gguf_of_something_else_is_refused(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="mamba"):
        GGUFCheckpoint(path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"llama.attention.head_count": 0}, "head_count is 0"),
        ({"llama.attention.head_count": [4, 4, 4]}, r"head_count is \[4, 4, 4\]"),
        ({"llama.attention.head_count": 8}, "attn_k.weight is"),
        ({"llama.rope.dimension_count": 8}, "a part of each head"),
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling"),
        ({"llama.rope.scaling.factor": 4.0}, "rope scaling"),
        ({"llama.rope.scale_linear": 4.0}, "rope scaling"),
        ({"llama.rope.scaling.factor": [4.0]}, "rope scaling"),
        ({"llama.embedding_length": "wide"}, "'str'"),
        ({"llama.block_count": 1 << 30}, "layers"),
        ({"llama.rope.freq_base": float("nan")}, "rope_theta"),
        ({"tokenizer.ggml.tokens": 3}, "'int'"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer is a 'llama'"),
        ({"tokenizer.ggml.pre": "nobodys"}, "'nobodys'"),
        ({"tokenizer.ggml.pre": 3}, "pre"),
        ({"tokenizer.ggml.merges": [1, 2]}, "merges"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "2 token types"),
    ],
)
def test_what_a_gguf_says_of_itself_is_checked(
    tiny_gguf: Callable[..., Path], keys: Mapping[str, Any], message: str
) -> None:
    open_checkpoint(tiny_gguf({"llama.rope.scaling.factor": 1.0}))
    with pytest.raises(CheckpointError, match=rf"tiny\.gguf.*{message}"):
        _ = open_checkpoint(tiny_gguf(keys)).tokenizer


def test_a_bias_in_a_gguf_is_never_dropped(tiny_gguf: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_q\.bias"):
        open_checkpoint(tiny_gguf(extra={"blk.0.attn_q.bias": _ONES}))


@pytest.mark.parametrize("key", ["tokenizer.ggml.token_type", "tokenizer.ggml.tokens"])
@pytest.mark.parametrize("length", [1 << 20, 1 << 60])
def test_a_list_that_does_not_end_does_not_fill_memory(
    tiny_gguf: Callable[..., Path], key: str, length: int
) -> None:
    path = tiny_gguf()
    damaged = bytearray(path.read_bytes())
    behind_kinds = damaged.index(key.encode()) + len(key) + 8
    damaged[behind_kinds : behind_kinds + 8] = struct.pack("<Q", length)
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="not a whole GGUF file"):
        GGUFCheckpoint(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_gguf_is_one_clear_error(
    tiny_gguf: Callable[..., Path], tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever is done to its keys, it opens or is a CheckpointError that names the file."""
    original = tmp_path / "tiny.gguf"
    damaged = bytearray((original if original.exists() else tiny_gguf()).read_bytes())
    keys = damaged.index(b"tokenizer.ggml.pre")
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, keys + 2000))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    message = str(path)
    try:
        _ = GGUFCheckpoint(path).tokenizer
        _read_all(path)
    except CheckpointError as e:
        message = str(e)
    assert str(path) in message


@pytest.mark.parametrize("name", ["weights.bin", "model.pt"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        open_checkpoint(tmp_path / name)


def test_a_checkpoint_that_was_not_pulled_says_how(own_cache: Path) -> None:
    with pytest.raises(CacheError, match="t1-edge pull NAME"):
        find_checkpoint("smollm2-135m")
