"""Fixtures of the export room."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from t1_edge.build import Build
from t1_edge.contract import Codec
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.checkpoint import Checkpoint, open_checkpoint
from t1_edge_export.pipeline import Request, export
from t1_edge_export.precision import Budget
from t1_edge_export.presets import PRESETS
from t1_edge_export.quantize.calibration import DEFAULT_TEXTS, read_rows
from t1_edge_export.quantize.quantizer import weighted
from t1_edge_export.quantize.statistics import Statistics, collect
from t1_edge_export.vocabulary import with_tokens
from tiny import TINY_CONTRACT, Family, Tiny


@pytest.fixture
def checkpoint(tiny: Callable[..., Tiny]) -> Checkpoint:
    return open_checkpoint(tiny("llama").folder)


@pytest.fixture(scope="session")
def tiny_mixed(
    tiny: Callable[..., Tiny], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Family, Budget], Build]:
    """Makes builds of tiny decoders within a budget, each once; the Qwen3 has a head of its own."""
    root = tmp_path_factory.mktemp("tiny-mixed")

    @cache
    def build(family: Family, budget: Budget) -> Build:
        name = f"{family}-{budget.bits}-{budget.size}"
        request = Request(
            name=name,
            destination=root / name,
            contract=TINY_CONTRACT,
            budget=budget,
            allow_drift=True,
        )
        return export(open_checkpoint(tiny(family, tied=family == "llama").folder), request)

    return build


@pytest.fixture(scope="session")
def smollm2_statistics(smollm2_gguf: Path) -> Statistics:
    """Of SmolLM2, over some of the texts that ship."""
    contract = PRESETS["chat"]
    checkpoint = with_tokens(open_checkpoint(smollm2_gguf), contract.added_tokens)
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
        request = Request(
            name="smollm2-135m",
            destination=root / f"{bits}",
            contract=PRESETS["chat"],
            quantizer=weighted(smollm2_statistics),
            budget=Budget(bits=bits),
        )
        return export(open_checkpoint(smollm2_gguf), request)

    return build
