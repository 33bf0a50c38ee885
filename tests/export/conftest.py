"""Fixtures of the export room."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from t1_edge.build import Build
from t1_edge.contract import Codec
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.checkpoint import Checkpoint, open_checkpoint
from t1_edge_export.containers import BlockSize
from t1_edge_export.decoder import tensors
from t1_edge_export.gguf_checkpoint import gguf_names
from t1_edge_export.gguf_tokenizer import gguf_tokenizer
from t1_edge_export.pipeline import export
from t1_edge_export.precision import Budget
from t1_edge_export.presets import PRESETS
from t1_edge_export.quantize.calibration import DEFAULT_TEXTS, Calibration, read_rows
from t1_edge_export.quantize.statistics import Statistics, collect
from t1_edge_export.request import Request
from t1_edge_export.vocabulary import with_tokens
from tiny import TINY_CONTRACT, Family, Tiny


@pytest.fixture
def checkpoint(tiny: Callable[..., Tiny]) -> Checkpoint:
    return open_checkpoint(tiny("llama").folder)


@pytest.fixture(scope="session")
def tiny_gguf(
    tiny: Callable[..., Tiny], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Writes the tiny Llama as other programs might: tiny_gguf(keys, tensors of its own)."""
    import gguf

    checkpoint = open_checkpoint(tiny("llama").folder)
    decoder, tokenizer = checkpoint.decoder, gguf_tokenizer(checkpoint.tokenizer, 384)

    def make(keys: Mapping[str, Any] = {}, extra: Mapping[str, Any] = {}) -> Path:
        path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
        writer = gguf.GGUFWriter(path, "llama")
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
        return path

    return make


@pytest.fixture(scope="session")
def tiny_mixed(
    tiny: Callable[..., Tiny], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Build]:
    """Makes builds of tiny decoders within a budget, each once: tiny_mixed(family, budget, blocks).

    The Qwen3 has a head of its own.
    """
    root = tmp_path_factory.mktemp("tiny-mixed")

    @cache
    def build(family: Family, budget: Budget, block_size: BlockSize) -> Build:
        name = f"{family}-{budget.bits}-{budget.size}-{block_size}"
        made = tiny(family, tied=family == "llama", hidden=max(64, block_size))
        request = Request(
            name=name,
            destination=root / name,
            contract=TINY_CONTRACT,
            budget=budget,
            block_size=block_size,
            allow_drift=True,
        )
        return export(open_checkpoint(made.folder), request)

    def make(family: Family, budget: Budget, block_size: BlockSize = 32) -> Build:
        return build(family, budget, block_size)

    return make


@pytest.fixture(scope="session")
def smollm2_statistics(smollm2_gguf: Path) -> Statistics:
    """Of SmolLM2, over some of the texts that ship."""
    contract = PRESETS["chat"]
    checkpoint = with_tokens(open_checkpoint(smollm2_gguf), contract)
    rows = read_rows(DEFAULT_TEXTS, Codec(contract, TextTokenizer(checkpoint.tokenizer)))
    return collect(checkpoint, rows[::9], "some that ship")


@pytest.fixture(scope="session")
def smollm2_at(
    smollm2_gguf: Path, smollm2_statistics: Statistics, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[float], Build]:
    """Makes builds of SmolLM2 within bits, with statistics, each once, in both formats."""
    root = tmp_path_factory.mktemp("smollm2-at")

    @cache
    def build(bits: float) -> Build:
        checkpoint = open_checkpoint(smollm2_gguf)
        request = Request(
            name="smollm2-135m",
            destination=root / f"{bits}",
            contract=PRESETS["chat"],
            calibration=Calibration(statistics=smollm2_statistics),
            budget=Budget(bits=bits),
        )
        return export(checkpoint, request)

    return build
