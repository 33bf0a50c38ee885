"""What a quantizer is fitted to: an importance matrix, or texts of the shape that a T1 meets."""

from pathlib import Path

import msgspec

from t1_edge.contract import Codec, Contract
from t1_edge.errors import CheckpointError, ExportError
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.quantize.quantizer import SEARCH, Quantizer, compensated, weighted
from t1_edge_export.quantize.statistics import collect, read_statistics


def find_quantizer(
    kind: str, calibration: str, checkpoint: Checkpoint, contract: Contract
) -> Quantizer:
    """The quantizer that an export asks for.

    Args:
        kind: "search" or "gptq".
        calibration: "none", an importance matrix (.gguf), or texts (see `read_rows`).
        checkpoint: What is exported, with the contract's tokens.
        contract: What makes rows of texts.

    Raises:
        CheckpointError: If the file is damaged, or of another model.
        ExportError: If GPTQ is asked for without texts.
    """
    path = Path(calibration)
    if kind == "gptq" and (calibration == "none" or path.suffix == ".gguf"):
        raise ExportError("gptq needs texts: give --calibration a .jsonl file")
    if calibration == "none":
        return SEARCH
    if path.suffix == ".gguf":
        return weighted(read_statistics(path, checkpoint.decoder))
    rows = read_rows(path, Codec(contract, TextTokenizer(checkpoint.tokenizer)))
    dataset = f"{len(rows)} rows of {path.name}"
    if kind == "gptq":
        return compensated(checkpoint, rows, dataset)
    return weighted(collect(checkpoint, rows, dataset))


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
    except msgspec.MsgspecError as e:
        raise CheckpointError(
            f'{where} is neither {{"query": ..., "thought": ...}} nor {{"document": ...}}: {e}'
        ) from e
    thought = codec.thought_tokens(found.thought)
    return (*codec.query(found.query).tokens, *thought, codec.close_id, codec.emb_id)
