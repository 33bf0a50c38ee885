"""Which quantizer rounds, and what it is fitted to: a matrix, or texts of the shape a T1 meets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from t1_edge.build import Decoder
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
    gptq_memory,
    weighted,
)
from t1_edge_export.quantize.statistics import Statistics, collect, read_statistics

Kind = Literal["search", "gptq", "rtn"]

DEFAULT_TEXTS: Final = Path(__file__).parent.parent / "data" / "calibration.jsonl"
"""Queries with thoughts and documents, many subjects and some languages, written for t1-edge."""

_MATRIX_SUFFIX: Final = ".gguf"
"""How the name of an importance matrix ends; anything else is texts."""


_Source = Literal["texts", "a matrix", "nothing"]
"""What a quantizer may be fitted to; a matrix is of importance, with its statistics."""

_REFUSALS: Final[Mapping[tuple[Kind, _Source], str]] = {
    **dict.fromkeys(
        [("gptq", "a matrix"), ("gptq", "nothing")],
        "gptq needs texts: give --calibration default or a .jsonl file, or --quantizer search",
    ),
    **dict.fromkeys(
        [("rtn", "texts"), ("rtn", "a matrix")],
        "rtn is fitted to nothing: leave --calibration out",
    ),
}
"""What does not go together, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How an export rounds: what a quantizer is fitted to, read and checked; nothing ran over it.

    Attributes:
        kind: The search for scales, GPTQ, or plain rounding.
        statistics: Of an importance matrix; None without one.
        rows: Token rows of texts, each ending in `<emb_token>`; none without texts.
        dataset: What the rows are, for people to read.
        save: Where to write the statistics that are collected over rows, as an importance matrix.

    Raises:
        ExportError: If the quantizer is not fitted to what is given.
    """

    kind: Kind = "search"
    statistics: Statistics | None = None
    rows: Sequence[tuple[int, ...]] = ()
    dataset: str = ""
    save: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what a quantizer would not be fitted to."""
        if self.statistics is not None and self.rows:
            raise ExportError("nothing is fitted to texts and a matrix at once")
        matrix: _Source = "nothing" if self.statistics is None else "a matrix"
        _refuse(self.kind, "texts" if self.rows else matrix, self.save)

    @property
    def chosen(self) -> bool:
        """Whether anything but the search was asked for, or that has something to weigh with."""
        return self.kind != "search" or self.statistics is not None or bool(self.rows)

    @property
    def packs(self) -> bool:
        """Whether the quantizer will round to llama.cpp's own block formats."""
        return self.kind == "search"

    @property
    def tokens(self) -> int:
        """How many pass through the float weights."""
        return sum(map(len, self.rows))

    def quantizer_memory(self, decoder: Decoder) -> int:
        """Bytes that the quantizer will have resident while layers are quantized."""
        return gptq_memory(decoder) if self.kind == "gptq" else 0

    def fit(
        self,
        checkpoint: Checkpoint,
        *,
        say: Callable[[str], None] = lambda text: None,
        bars: Bars = no_bars,
    ) -> Quantizer:
        """The quantizer; the search over texts collects statistics now, GPTQ as it goes.

        Args:
            checkpoint: What is exported, with the contract's tokens.
            say: Called with a line of talk before something that takes long.
            bars: Shows how far it is.

        Raises:
            CheckpointError: If a tensor cannot be read.
            ExportError: If memory is too small, or the statistics cannot be saved.
        """
        if self.kind == "rtn":
            return ROUNDING
        if self.kind == "gptq":
            return compensated(checkpoint, self.rows, self.dataset, say=say, bars=bars)
        if self.statistics is not None:
            return weighted(self.statistics, checkpoint.decoder)
        if not self.rows:
            return SEARCH
        found = collect(checkpoint, self.rows, self.dataset, say=say, bars=bars)
        if self.save:
            found.save(self.save, checkpoint.decoder)
        return weighted(found, checkpoint.decoder)


def read_calibration(
    kind: Kind,
    calibration: str | None,
    checkpoint: Checkpoint,
    contract: Contract,
    *,
    save: Path | None = None,
) -> Calibration:
    """Read what an export is asked to calibrate with.

    Args:
        kind: The search for scales, GPTQ, or plain rounding.
        calibration: "none", "default" (texts that ship), an importance matrix (.gguf), or texts
            (see `read_rows`). None is "default", and "none" for plain rounding.
        checkpoint: What is exported, with the contract's tokens.
        contract: What makes rows of texts.
        save: Where to write the statistics that are collected.

    Raises:
        CheckpointError: If a file is damaged, or of another model.
        ExportError: If the calibration is not one of the quantizer's, or nothing is collected that
            could be saved.
        InputError: If a text holds a lone surrogate.
        MissingExtraError: If the gguf package is not installed, which reads a matrix.
    """
    calibration = calibration or ("none" if kind == "rtn" else "default")
    source = _source(calibration)
    _refuse(kind, source, save)  # before anything is read
    if source == "nothing":
        return Calibration(kind=kind)
    if source == "a matrix":
        statistics = read_statistics(Path(calibration), checkpoint.decoder)
        return Calibration(kind=kind, statistics=statistics)
    path = _texts(calibration)
    rows = read_rows(path, Codec(contract, TextTokenizer(checkpoint.tokenizer)))
    dataset = f"{len(rows)} rows of {path.name}"
    return Calibration(kind=kind, rows=rows, dataset=dataset, save=save)


def _refuse(kind: Kind, source: _Source, save: Path | None) -> None:
    """Refuse what a quantizer is not fitted to, and to save what it does not collect."""
    if refusal := _REFUSALS.get((kind, source)):
        raise ExportError(refusal)
    if save and (kind, source) != ("search", "texts"):
        raise ExportError(
            "statistics are collected by the search over texts alone: none to save without "
            "--quantizer search and texts"
        )


def _source(calibration: str) -> _Source:
    if calibration == "none":
        return "nothing"
    return "a matrix" if calibration.endswith(_MATRIX_SUFFIX) else "texts"


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
