"""An engine's trial in a process of its own.

What an engine takes in memory is given back when it ends, and a library that crashes takes no
export with it.
"""

import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import numpy as np

from t1_edge.build import TOKENIZER, Decoder, Format
from t1_edge.contract import Codec
from t1_edge.engines.base import Float32Array
from t1_edge.engines.opening import open_documents, open_format
from t1_edge.errors import EngineError, KilledError, T1Error
from t1_edge.golden import run_rows
from t1_edge.processes import how_ended, run_module
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.trial import Answers, Trial, ask

_Answered = TypeVar("_Answered")


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    directory: str
    what: Format | Literal["documents"]
    decoder: Decoder
    exact: bool
    trial: Trial


def ask_format(
    directory: Path, format: Format, decoder: Decoder, trial: Trial, *, exact: bool, scratch: Path
) -> Answers:
    """Let the engine of a format answer.

    Args:
        directory: Where the files are, tokenizer.json among them.
        format: Which of them.
        decoder: The shape of the model.
        trial: The questions.
        exact: See `t1_edge.engines.opening.open_format`.
        scratch: A directory for what the processes tell each other.

    Raises:
        EngineError: If the engine cannot open the files, or fails.
        KilledError: If its process is killed.
    """
    request = _Request(
        directory=str(directory), what=format, decoder=decoder, exact=exact, trial=trial
    )
    return _ask(request, scratch, Answers.load)


def ask_documents(
    directory: Path, decoder: Decoder, trial: Trial, *, scratch: Path
) -> Float32Array:
    """Let the graph for documents read those of a trial.

    Args:
        directory: Where the files are, tokenizer.json among them.
        decoder: The shape of the model.
        trial: The questions.
        scratch: A directory for what the processes tell each other.

    Returns:
        Vectors of `Trial.documents`, float32 [documents, d], L2-normalised.

    Raises:
        EngineError: If ONNX Runtime cannot open the files, or fails.
        KilledError: If its process is killed.
    """
    request = _Request(
        directory=str(directory), what="documents", decoder=decoder, exact=False, trial=trial
    )
    return _ask(request, scratch, np.load)


def _ask(request: _Request, scratch: Path, load: Callable[[Path], _Answered]) -> _Answered:
    """What the process of its own answers."""
    # A folder of its own: the process of an export that was killed may still be writing.
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        asked, answered, refused = (
            Path(folder, name) for name in ("asked.json", "answers.npz", "refused")
        )
        asked.write_bytes(msgspec.json.encode(request))
        files = [str(path) for path in (asked, answered, refused)]
        done = run_module("t1_edge_export.trial_process", files)
        if refused.exists():
            why = refused.read_text(encoding="utf-8")
            raise EngineError(f"{request.what} cannot be verified: {why}")
        if done.returncode:
            how = how_ended(done.returncode, done.stderr)
            kind = KilledError if done.returncode == -signal.SIGKILL else EngineError
            raise kind(f"{request.what} cannot be verified: its engine {how}")
        return load(answered)


def _answer(asked: Path, answered: Path) -> None:
    """What the process of its own does."""
    request = msgspec.json.decode(asked.read_bytes(), type=_Request)
    directory, trial = Path(request.directory), request.trial
    if request.what == "documents":
        with closing(open_documents(directory, request.decoder)) as engine:
            vectors = run_rows(engine, trial.documents)
        with answered.open("wb") as file:
            np.save(file, vectors)
        return
    tokenizer = (directory / TOKENIZER).read_text(encoding="utf-8")
    codec = Codec(trial.contract, TextTokenizer(tokenizer))
    engine = open_format(directory, request.what, request.decoder, exact=request.exact)
    with closing(engine):
        ask(engine, codec, trial).save(answered)


def _main(asked: Path, answered: Path, refused: Path) -> None:
    try:
        _answer(asked, answered)
    except T1Error as error:
        refused.write_text(str(error), encoding="utf-8")
    except OSError as error:
        refused.write_text(f"{error}; is the disk full?", encoding="utf-8")


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
