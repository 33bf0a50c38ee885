"""Float weights from folders, whole, in shards, and damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t1_edge.errors import CacheError, CheckpointError
from t1_edge_export.checkpoint import find_checkpoint, open_checkpoint
from t1_edge_export.decoder import HEAD, tensors
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
    assert open_checkpoint(folder).source().licence == licence


@pytest.mark.parametrize(
    ("name", "found"),
    [("org/model-1.5", "org/model-1.5"), ("/home/me/model-9", "model"), ("../it", "model")],
)
def test_a_path_is_no_name(folder: Path, name: str, found: str) -> None:
    _config(folder, _name_or_path=name)
    assert open_checkpoint(folder).source().id == found


def _config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel; known are LlamaForCausalLM"),
        ({"architectures": None}, r"\(none\)"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"rope_scaling": ["yarn"]}, r"config\.json"),
        ({"rope_theta": "wide"}, r"config\.json"),
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


def test_a_tensor_that_is_not_there_is_named(folder: Path) -> None:
    for name in (HEAD, "nothing"):
        with pytest.raises(CheckpointError, match=f"no tensor {name}"):
            open_checkpoint(folder).rows(name, 0, 1)


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_named(sharded: Path, index: str) -> None:
    (sharded / INDEX).write_text(index)
    with pytest.raises(CheckpointError, match=r"index\.json|no tensor"):
        open_checkpoint(sharded)


def test_a_checkpoint_that_was_not_pulled_says_how(own_cache: Path) -> None:
    with pytest.raises(CacheError, match="t1-edge pull NAME"):
        find_checkpoint("smollm2-135m")
