"""What `t1-edge export --calibration` reads, and what it refuses."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from t1_edge.build import Build
from t1_edge.cli import main
from t1_edge.contract import Codec
from t1_edge.errors import CheckpointError, ExportError
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.checkpoint import open_checkpoint
from t1_edge_export.quantize.calibration import (
    DEFAULT_TEXTS,
    Calibration,
    read_calibration,
    read_rows,
)
from t1_edge_export.quantize.statistics import Statistics
from t1_edge_export.vocabulary import with_tokens
from tiny import TINY_CONTRACT, Tiny

NOTHING = Statistics(importance={}, tokens=0, dataset="")

TEXTS = b"""{"query": "why do leaves turn red", "thought": "autumn"}
{"document": "Chlorophyll breaks down."}
{"query": "no thought"}
"""


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(TEXTS)
    return path


@pytest.fixture
def codec(tiny: Callable[..., Tiny]) -> Codec:
    checkpoint = with_tokens(open_checkpoint(tiny("llama").folder), TINY_CONTRACT)
    return Codec(TINY_CONTRACT, TextTokenizer(checkpoint.tokenizer))


def test_rows_are_what_an_encoder_makes(texts: Path, codec: Codec) -> None:
    thought = codec.thought_tokens("autumn")
    end = (codec.close_id, codec.emb_id)
    assert read_rows(texts, codec) == [
        (*codec.query("why do leaves turn red").tokens, *thought, *end),
        (*codec.document("Chlorophyll breaks down.").tokens, codec.emb_id),
        (*codec.query("no thought").tokens, *end),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no lines"),
        (b'{"text": "a"}\n', "texts.jsonl:1 is neither"),
        (TEXTS + b'{"document": "a", "thought": "b"}\n', "texts.jsonl:4 is neither"),
        (b'{"document": 3}\n', "texts.jsonl:1 is neither"),
        (b'{"document": "cut\n', "texts.jsonl:1 is neither"),
        (b"\xff\xfe\n", "texts.jsonl:1 is neither"),
    ],
)
def test_other_lines_are_refused(content: bytes, message: str, texts: Path, codec: Codec) -> None:
    texts.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_rows(texts, codec)


def test_a_missing_file_is_named(tmp_path: Path, codec: Codec) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*nowhere\.jsonl"):
        read_rows(tmp_path / "nowhere.jsonl", codec)


@pytest.mark.parametrize("calibration", ["none", "matrix.gguf"])
def test_gptq_wants_texts(calibration: str, tiny: Callable[..., Tiny]) -> None:
    checkpoint = open_checkpoint(tiny("llama").folder)
    with pytest.raises(ExportError, match=r"\.jsonl"):
        read_calibration("gptq", calibration, checkpoint, TINY_CONTRACT)


@pytest.fixture
def export(tiny: Callable[..., Tiny], texts: Path, tmp_path: Path) -> Callable[..., Build]:
    contract = tmp_path / "contract.json"
    contract.write_bytes(msgspec.json.encode(TINY_CONTRACT))

    def run(name: str, *options: str) -> Build:
        arguments = ["export", str(tiny("llama").folder), "--contract", str(contract)]
        arguments += ["--output", str(tmp_path / name), "--format", "onnx", "--allow-drift"]
        found = CliRunner().invoke(main, [*arguments, "--calibration", str(texts), *options])
        assert found.exit_code == 0, found.output
        return Build(tmp_path / name)

    return run


def test_texts_weigh_or_compensate(export: Callable[..., Build]) -> None:
    weighed, compensated = export("a"), export("b", "--quantizer", "gptq")
    assert re.fullmatch(
        r"importance [0-9a-f]{12}, channels smoothed: 3 rows of texts\.jsonl",
        weighed.manifest.calibration,
    )
    assert compensated.manifest.calibration == "GPTQ 52bc6648bfe0: 3 rows of texts.jsonl"
    cosines = [
        build.manifest.verification.engines["onnx"].cosine_mean for build in (weighed, compensated)
    ]
    assert 0.5 < cosines[0] < 1
    assert 0.5 < cosines[1] < 1


def test_texts_ship_and_are_what_is_fitted_to(tiny: Callable[..., Tiny], codec: Codec) -> None:
    rows = read_rows(DEFAULT_TEXTS, codec)
    assert len(rows) == 140
    checkpoint = with_tokens(open_checkpoint(tiny("llama").folder), TINY_CONTRACT)
    found = read_calibration("search", None, checkpoint, TINY_CONTRACT)
    assert found.tokens == sum(map(len, rows))
    assert found.fit(checkpoint).calibration.endswith("140 rows of calibration.jsonl")
    nothing = read_calibration("search", "none", checkpoint, TINY_CONTRACT)
    assert nothing.tokens == 0
    assert nothing.quantizer_memory(checkpoint.decoder) == 0
    gptq = read_calibration("gptq", None, checkpoint, TINY_CONTRACT)
    widths = {64, 128}  # of the tiny model's inputs: Gram matrices, and the widest's factor
    planned = gptq.quantizer_memory(checkpoint.decoder)
    assert planned == 4 * sum(width**2 for width in widths) + 28 * max(widths) ** 2
    assert nothing.fit(checkpoint).calibration == ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "gptq"}, "gptq needs texts"),
        ({"kind": "gptq", "statistics": NOTHING}, "gptq needs texts"),
        ({"kind": "rtn", "rows": [(1, 2)]}, "rtn is fitted to nothing"),
        ({"kind": "rtn", "statistics": NOTHING}, "rtn is fitted to nothing"),
        ({"rows": [(1, 2)], "statistics": NOTHING}, "a matrix at once"),
        ({"save": Path("x.gguf")}, "none to save"),
        ({"statistics": NOTHING, "save": Path("x.gguf")}, "none to save"),
        ({"kind": "gptq", "rows": [(1, 2)], "save": Path("x.gguf")}, "none to save"),
    ],
)
def test_what_no_quantizer_is_fitted_to_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        Calibration(**wrong)


def test_what_was_collected_is_saved_and_read_again(
    export: Callable[..., Build], tmp_path: Path
) -> None:
    saved = tmp_path / "s.gguf"
    first = export("a", "--save-statistics", str(saved))
    again = export("b", "--calibration", str(saved))
    assert first.manifest.calibration == again.manifest.calibration
    assert first.manifest.fingerprint == again.manifest.fingerprint


def test_plain_rounding_is_fitted_to_nothing(export: Callable[..., Build]) -> None:
    build = export("a", "--calibration", "none", "--quantizer", "rtn")
    assert build.manifest.calibration == "plain rounding"
    assert build.manifest.fingerprint != export("b").manifest.fingerprint


@pytest.mark.parametrize(
    ("kind", "calibration", "message"),
    [
        ("rtn", "default", "leave --calibration out"),
        ("gptq", None, "none to save"),
        ("search", "none", "none to save"),
        ("search", "some.gguf", "none to save"),
    ],
)
def test_what_does_not_go_together_is_refused(
    kind: Any, calibration: str | None, message: str, tiny: Callable[..., Tiny], tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny("llama").folder)
    with pytest.raises(ExportError, match=message):
        read_calibration(kind, calibration, checkpoint, TINY_CONTRACT, save=tmp_path / "s.gguf")


def test_a_place_that_is_taken_is_refused_before_anything_is_collected(
    export: Callable[..., Build], tiny: Callable[..., Tiny], texts: Path
) -> None:
    build = export("a")
    arguments = ["export", str(tiny("llama").folder), "--output", str(build.path)]
    found = CliRunner().invoke(main, arguments)
    assert (found.exit_code, "--force" in found.output) == (1, True)
    assert "collecting" not in found.output


def test_a_float_build_is_not_calibrated(
    tiny: Callable[..., Tiny], texts: Path, tmp_path: Path
) -> None:
    arguments = ["export", str(tiny("llama").folder), "--output", str(tmp_path / "out")]
    found = CliRunner().invoke(
        main, [*arguments, "--profile", "float", "--calibration", str(texts), "--contract", "nano"]
    )
    assert (found.exit_code, "rounds nothing" in found.output) == (1, True)
    assert not (tmp_path / "out").exists()
