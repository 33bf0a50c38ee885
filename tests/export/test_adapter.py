"""LoRA adapters, against PEFT's own merge."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file

from t1_edge.cli import main
from t1_edge.errors import CheckpointError
from t1_edge_export.adapter import CONFIG, WEIGHTS, with_adapter
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.decoder import EMBEDDING, HEAD, tensors
from tiny import Family, Tiny

_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _train(made: Tiny, folder: Path, **settings: Any) -> Any:
    """A random adapter, saved by PEFT; returns the model that PEFT merges it into."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=_LINEAR, **settings)
    adapted = get_peft_model(copy.deepcopy(made.model), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted.merge_and_unload()


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen3", True), ("qwen3", False)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"layers_to_transform": [1]},
        {"trainable_token_indices": {"embed_tokens": [380, 7]}},
    ],
)
def test_merged_rows_are_pefts(
    tiny: Callable[..., Tiny], tmp_path: Path, family: Family, tied: bool, settings: Any
) -> None:
    made = tiny(family, tied=tied)
    merged = _train(made, tmp_path / "adapter", **settings).state_dict()
    checkpoint = with_adapter(open_checkpoint(made.folder), tmp_path / "adapter")
    changed = 0
    for spec in tensors(checkpoint.decoder):
        expected = merged[spec.name].numpy()
        changed += not np.array_equal(expected, made.model.state_dict()[spec.name].numpy())
        middle = spec.shape[0] // 2
        np.testing.assert_allclose(
            checkpoint.rows(spec.name, 0, middle), expected[:middle], atol=1e-6
        )
        np.testing.assert_allclose(
            checkpoint.rows(spec.name, middle, spec.shape[0]), expected[middle:], atol=1e-6
        )
    assert changed >= 7


def test_an_untied_head_has_rows_of_its_own(tiny: Callable[..., Tiny], tmp_path: Path) -> None:
    made = tiny("llama", tied=False)
    tokens = {"embed_tokens": [380], "lm_head": [381, 2]}
    merged = _train(made, tmp_path / "adapter", trainable_token_indices=tokens).state_dict()
    checkpoint = with_adapter(open_checkpoint(made.folder), tmp_path / "adapter")
    for name in (EMBEDDING, HEAD):
        np.testing.assert_array_equal(checkpoint.rows(name, 0, 384), merged[name].numpy())


@pytest.fixture
def adapter(tiny: Callable[..., Tiny], tmp_path: Path) -> Path:
    _train(tiny("llama"), tmp_path / "adapter", trainable_token_indices={"embed_tokens": [380]})
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"r": 8}, "another model"),
        ({"trainable_token_indices": {"embed_tokens": [384]}}, "token 384"),
        ({"trainable_token_indices": None}, "trainable_tokens_delta"),
        ({"trainable_token_indices": {"embed_tokens": [380], "norm": [1]}}, "norm"),
        ({"r": 0}, r"adapter_config\.json is damaged"),
        ({"trainable_token_indices": {"embed_tokens": []}}, r"adapter_config\.json is damaged"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"r": "four"}, r"adapter_config\.json is damaged"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_named(
    tiny: Callable[..., Tiny], adapter: Path, changes: Any, message: str
) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=message):
        with_adapter(open_checkpoint(tiny("llama").folder), adapter)


def test_a_factor_of_nothing_is_not_dropped(tiny: Callable[..., Tiny], adapter: Path) -> None:
    weights = load_file(adapter / WEIGHTS)
    save_file(
        weights | {"base_model.model.classifier.lora_A.weight": np.ones(3, np.float32)},
        adapter / WEIGHTS,
    )
    with pytest.raises(CheckpointError, match="classifier"):
        with_adapter(open_checkpoint(tiny("llama").folder), adapter)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(tiny: Callable[..., Tiny], adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        with_adapter(open_checkpoint(tiny("llama").folder), adapter)


def test_the_source_names_both(tiny: Callable[..., Tiny], adapter: Path, tmp_path: Path) -> None:
    base = open_checkpoint(tiny("llama").folder)
    shutil.copytree(adapter, tmp_path / "other")
    merged = with_adapter(base, adapter)
    assert merged.source().id == merged.origin.id == f"{base.origin.id} + adapter"
    assert merged.source().sha256 != base.source().sha256
    assert merged.source().sha256 == with_adapter(base, tmp_path / "other").source().sha256


@pytest.mark.parametrize(
    ("base", "name", "silent"),
    [
        ("", "", True),
        (None, "", True),
        ("{folder}", "", True),
        ("someone/{folder}/", "", True),
        ("/home/somebody/models/Other-Model", "", False),
        ("someone/Other-Model", "other_model", True),
        ("someone/Other-Model", "another-model", False),
    ],
)
def test_another_base_is_said_and_no_error(
    tiny: Callable[..., Tiny], adapter: Path, base: str | None, name: str, silent: bool
) -> None:
    folder = tiny("llama").folder
    config = json.loads((adapter / CONFIG).read_text())
    named = base and base.format(folder=folder.name)
    (adapter / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": named}))
    said: list[str] = []
    with_adapter(open_checkpoint(folder), adapter, name=name, say=said.append)
    assert (said == []) == silent
    assert all(f"names the base {named!r}" in line and folder.name in line for line in said)


def test_the_command_says_that_the_base_is_another(
    tiny: Callable[..., Tiny], adapter: Path, own_cache: Path
) -> None:
    command = ["export", str(tiny("llama").folder), "--contract", "chat", "--dry-run"]
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "a/b"}))
    found = CliRunner().invoke(main, [*command, "--adapter", str(adapter)])
    assert found.exit_code == 0, found.output
    assert "names the base 'a/b'" in found.stderr
