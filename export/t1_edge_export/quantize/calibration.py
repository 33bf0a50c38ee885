"""What a quantizer is fitted to: an importance matrix, or texts of the shape that a T1 meets."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from t1_edge.contract import Codec, Contract
from t1_edge.errors import CheckpointError, ExportError
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.bars import Bars, no_bars
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.quantize.quantizer import (
    ROUNDING,
    SEARCH,
    Quantizer,
    compensated,
    weighted,
)
from t1_edge_export.quantize.statistics import collect, read_statistics

Kind = Literal["search", "gptq", "rtn"]

DEFAULT_TEXTS: Final = Path(__file__).parent.parent / "data" / "calibration.jsonl"
"""Queries with thoughts and documents, many subjects and some languages, written for t1-edge."""

_MATRIX_SUFFIX: Final = ".gguf"
"""How the name of an importance matrix ends; anything else is texts."""


def find_quantizer(
    kind: Kind,
    calibration: str | None,
    checkpoint: Checkpoint,
    contract: Contract,
    *,
    save: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    bars: Bars = no_bars,
) -> Quantizer:
    """The quantizer that an export asks for.

    Args:
        kind: The search for scales, GPTQ, or plain rounding.
        calibration: "none", "default" (texts that ship), an importance matrix (.gguf), or texts
            (see `read_rows`). None is "default", and "none" for plain rounding.
        checkpoint: What is exported, with the contract's tokens.
        contract: What makes rows of texts.
        save: Where to write the statistics that are collected, as an importance matrix.
        say: Called with a line of talk before something that takes long.
        bars: Shows how far it is.

    Raises:
        CheckpointError: If a file is damaged, or of another model.
        ExportError: If the calibration is not one of the quantizer's, nothing is collected that
            could be saved, or it cannot be saved.
    """
    calibration = _asked(kind, calibration, save)
    if calibration == "none":
        return ROUNDING if kind == "rtn" else SEARCH
    if calibration.endswith(_MATRIX_SUFFIX):
        return weighted(read_statistics(Path(calibration), checkpoint.decoder), checkpoint.decoder)
    path = _texts(calibration)
    rows = read_rows(path, Codec(contract, TextTokenizer(checkpoint.tokenizer)))
    dataset = f"{len(rows)} rows of {path.name}"
    if kind == "gptq":
        return compensated(checkpoint, rows, dataset, say=say, bars=bars)
    statistics = collect(checkpoint, rows, dataset, say=say, bars=bars)
    if save:
        statistics.save(save, checkpoint.decoder)
    return weighted(statistics, checkpoint.decoder)


def calibration_tokens(
    kind: Kind,
    calibration: str | None,
    checkpoint: Checkpoint,
    contract: Contract,
    *,
    save: Path | None = None,
) -> int:
    """How many tokens an export would pass through the float weights first; 0 without texts.

    What `find_quantizer` would refuse is refused.

    Args:
        kind: See `find_quantizer`, as the rest.
        calibration: Likewise.
        checkpoint: Likewise.
        contract: Likewise.
        save: Likewise.

    Raises:
        CheckpointError: If a file is damaged, or of another model.
        ExportError: If the calibration is not one of the quantizer's, or nothing is collected that
            could be saved.
        InputError: If a text holds a lone surrogate.
        MissingExtraError: If the gguf package is not installed, which reads a matrix.
    """
    calibration = _asked(kind, calibration, save)
    if calibration == "none":
        return 0
    if calibration.endswith(_MATRIX_SUFFIX):
        read_statistics(Path(calibration), checkpoint.decoder)
        return 0
    codec = Codec(contract, TextTokenizer(checkpoint.tokenizer))
    return sum(map(len, read_rows(_texts(calibration), codec)))


def _asked(kind: Kind, calibration: str | None, save: Path | None) -> str:
    """What is asked for, or what a quantizer is fitted to where nobody says; if it can be."""
    asked = calibration or ("none" if kind == "rtn" else "default")
    texts = asked != "none" and not asked.endswith(_MATRIX_SUFFIX)
    if kind == "rtn" and asked != "none":
        raise ExportError("rtn is fitted to nothing: leave --calibration out")
    if kind == "gptq" and not texts:
        raise ExportError(
            "gptq needs texts: give --calibration default or a .jsonl file, or --quantizer search"
        )
    if save and not (kind == "search" and texts):
        raise ExportError(
            "statistics are collected by the search over texts alone: none to save without "
            "--quantizer search and texts"
        )
    return asked


def _texts(calibration: str) -> Path:
    return DEFAULT_TEXTS if calibration == "default" else Path(calibration)


class _Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    query: str
    thought: str = ""


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    document: str


def read_rows(path: Path, codec: Codec) -> list[tuple[int, ...]]:
    """Token rows of a JSON-lines file, each ending in `<emb_token>`.

    Args:
        path: Every line is {"query": ..., "thought": ...}, the thought optional, or
            {"document": ...}. Texts over the contract's limits are cut to them.
        codec: The contract, bound to the checkpoint's tokenizer.

    Raises:
        CheckpointError: If the file cannot be read, a line is something else, or it has none.
        InputError: If a text holds a lone surrogate.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror or e}") from e
    if not lines:
        raise CheckpointError(f"{path} has no lines to calibrate with")
    return [_row(line, f"{path}:{number}", codec) for number, line in enumerate(lines, 1)]


def _row(line: bytes, where: str, codec: Codec) -> tuple[int, ...]:
    try:
        fields = msgspec.json.decode(line, type=dict[str, str])
        if "document" in fields:
            document = msgspec.convert(fields, _Document)
            return (*codec.document(document.document).tokens, codec.emb_id)
        found = msgspec.convert(fields, _Query)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise CheckpointError(
            f'{where} is neither {{"query": ..., "thought": ...}} nor {{"document": ...}}: {e}'
        ) from e
    thought = codec.thought_tokens(found.thought)
    return (*codec.query(found.query).tokens, *thought, *codec.ending)
