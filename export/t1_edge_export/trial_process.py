"""An engine's trial in a process of its own.

What an engine takes in memory is given back when it ends, and a library that crashes takes no
export with it.
"""

import sys
import tempfile
from contextlib import closing
from pathlib import Path

import msgspec

from t1_edge.build import TOKENIZER, Decoder, Format
from t1_edge.contract import Codec
from t1_edge.engines.opening import open_format
from t1_edge.errors import EngineError, T1Error
from t1_edge.processes import how_ended, run_module
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.trial import Answers, Trial, ask


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    directory: str
    format: Format
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
        EngineError: If the engine cannot open the files, fails, or is killed.
    """
    request = _Request(
        directory=str(directory), format=format, decoder=decoder, exact=exact, trial=trial
    )
    # A folder of its own: the process of an export that was killed may still be writing.
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        asked, answered, refused = (
            Path(folder, name) for name in ("asked.json", "answers.npz", "refused")
        )
        asked.write_bytes(msgspec.json.encode(request))
        files = [str(path) for path in (asked, answered, refused)]
        done = run_module("t1_edge_export.trial_process", files)
        if refused.exists():
            raise EngineError(f"{format} cannot be verified: {refused.read_text(encoding='utf-8')}")
        if done.returncode:
            how = how_ended(done.returncode, done.stderr)
            raise EngineError(f"{format} cannot be verified: its engine {how}")
        return Answers.load(answered)


def _answer(asked: Path, answered: Path) -> None:
    """What the process of its own does."""
    request = msgspec.json.decode(asked.read_bytes(), type=_Request)
    directory, trial = Path(request.directory), request.trial
    tokenizer = (directory / TOKENIZER).read_text(encoding="utf-8")
    codec = Codec(trial.contract, TextTokenizer(tokenizer))
    engine = open_format(directory, request.format, request.decoder, exact=request.exact)
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
