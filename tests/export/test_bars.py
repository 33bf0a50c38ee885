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
from t1_edge_export.decoder import linear_weight_count, weight_count
from t1_edge_export.pipeline import export
from t1_edge_export.precision import Budget
from t1_edge_export.quantize.calibration import Kind, read_calibration
from t1_edge_export.request import Request
from t1_edge_export.trial import BUDGETS
from t1_edge_export.vocabulary import with_tokens
from tiny import TINY_CONTRACT, Tiny

TEXTS = '{"query": "why does the moon shine", "thought": "sun light"}\n{"document": "It does."}\n'


@pytest.mark.parametrize("kind", ["search", "gptq"])
def test_every_long_step_has_a_bar_that_is_filled(
    tiny: Callable[..., Tiny], tmp_path: Path, kind: Kind
) -> None:
    checkpoint = with_tokens(open_checkpoint(tiny("llama").folder), TINY_CONTRACT)
    totals: dict[str, int] = {}
    done = Counter[str]()

    @contextmanager
    def bars(title: str, weights: int) -> Iterator[Progress]:
        assert title not in totals
        totals[title] = weights
        yield lambda weights: done.update({title: weights})

    (tmp_path / "texts.jsonl").write_text(TEXTS)
    calibration = str(tmp_path / "texts.jsonl")
    said: list[str] = []
    request = Request(
        name="tiny",
        destination=tmp_path / "build",
        contract=TINY_CONTRACT,
        calibration=read_calibration(kind, calibration, checkpoint, TINY_CONTRACT),
        budget=Budget(bits=6),
        documents=True,
        allow_drift=True,
    )
    export(checkpoint, request, say=said.append, bars=bars)
    # GPTQ collects nothing that it is fitted to, so that its statistics come when they are wanted.
    first = ["collecting", "hashing"] if kind == "search" else ["hashing", "collecting"]
    stages = [*first, "measuring", "quantizing", "writing", "thinking", "reading"]
    assert list(totals) == stages
    for title in set(stages) - {"thinking"}:  # thoughts may end early
        assert done[title] == totals[title]
    linear = linear_weight_count(checkpoint.decoder)
    assert totals["reading"] == linear
    assert totals["quantizing"] == totals["hashing"] == weight_count(checkpoint.decoder)
    assert totals["thinking"] == BUDGETS[-1] * linear
    assert done["thinking"] % linear == 0
    assert linear <= done["thinking"] <= totals["thinking"]
    assert said == [
        "collecting statistics over 2 rows of texts.jsonl, 52 tokens",
        "measuring what 4 bits cost each linear layer",
        "writing onnx and gguf",
        "writing what reads documents",
        "asking the float reference for golden vectors",
        "comparing llama.cpp's tokenizer with tokenizer.json",
        "verifying what was written for onnx",
        "verifying what was written for gguf",
        "verifying what was written for documents",
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
    count = weight_count(checkpoint.decoder)
    half = count // 2
    with bars_in_bytes(checkpoint)("thinking", 3 * count) as passed:
        passed(half)
        passed(half)
    total, first, second, rest = told
    assert total == 3 * checkpoint.stored_bytes == first + second + rest
    assert first == pytest.approx(checkpoint.stored_bytes / 2, rel=1e-3)
