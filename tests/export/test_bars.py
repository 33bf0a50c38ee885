"""What an export tells of how far it is."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from t1_edge_export.bars import Progress
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.cli.talk import bars_in_bytes
from t1_edge_export.contracts import find_contract
from t1_edge_export.decoder import linear_layers, weight_count
from t1_edge_export.pipeline import Request, export
from t1_edge_export.precision import Budget
from t1_edge_export.quantize.calibration import Kind, find_quantizer
from t1_edge_export.trial import BUDGETS
from t1_edge_export.vocabulary import with_tokens
from tiny import TINY_CONTRACT, Tiny

TEXTS = '{"query": "why does the moon shine", "thought": "sun light"}\n{"document": "It does."}\n'


@pytest.mark.parametrize("kind", ["search", "gptq"])
def test_every_long_step_has_a_bar_that_is_filled(
    tiny: Callable[..., Tiny], tmp_path: Path, kind: Kind
) -> None:
    checkpoint = with_tokens(open_checkpoint(tiny("llama").folder), TINY_CONTRACT)
    passes: dict[str, int] = {}
    done = Counter[str]()

    @contextmanager
    def bars(title: str, count: int) -> Iterator[Progress]:
        assert title not in passes
        passes[title] = count
        yield lambda weights: done.update({title: weights})

    (tmp_path / "texts.jsonl").write_text(TEXTS)
    calibration = str(tmp_path / "texts.jsonl")
    quantizer = find_quantizer(kind, calibration, checkpoint, TINY_CONTRACT, bars=bars)
    said: list[str] = []
    request = Request(
        name="tiny",
        destination=tmp_path / "build",
        contract=TINY_CONTRACT,
        quantizer=quantizer,
        budget=Budget(bits=6),
        allow_drift=True,
    )
    export(checkpoint, request, say=said.append, bars=bars)
    assert list(passes) == ["collecting", "measuring", "quantizing", "thinking", "reading"]
    linear = sum(spec.size for spec in linear_layers(checkpoint.decoder))
    assert done["collecting"] == done["measuring"] == done["reading"] == linear
    assert done["quantizing"] == weight_count(checkpoint.decoder)
    assert done["thinking"] % linear == 0
    assert linear <= done["thinking"] <= BUDGETS[-1] * linear
    assert [line for line in said if line.startswith("verifying")] == [
        "verifying what was written for onnx",
        "verifying what was written for gguf",
    ]


def test_bars_count_bytes_as_they_are_stored_and_end_full(
    tiny: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = with_tokens(open_checkpoint(tiny("llama").folder), find_contract("chat"))
    told: list[int] = []

    @contextmanager
    def progress(total: int, label: str, *, in_bytes: bool) -> Iterator[Callable[[int], None]]:
        told.append(total)
        yield told.append

    monkeypatch.setattr("t1_edge_export.cli.talk.progress", progress)
    half = weight_count(checkpoint.decoder) // 2
    with bars_in_bytes(checkpoint)("thinking", 3) as passed:
        passed(half)
        passed(half)
    total, first, second, rest = told
    assert total == 3 * checkpoint.stored_bytes == first + second + rest
    assert first == pytest.approx(checkpoint.stored_bytes / 2, rel=1e-3)
