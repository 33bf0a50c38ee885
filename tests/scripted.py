"""An encoder over the fake engine, whose next token can be chosen."""

import json
import time
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from t1_edge.contract import Codec
from t1_edge.encoder import Encoder
from t1_edge.engines.fake import FakeEngine, FakeSession
from t1_edge.query_cache import QueryCache
from t1_edge.tokenization import TextTokenizer
from tiny import TINY_CONTRACT, tokenizer_json

Float32Array = NDArray[np.float32]


class ScriptedEngine(FakeEngine):
    """A fake whose next token can be chosen, whose logits can be made to take their time, and which
    counts its sessions."""

    favourite: int | None = None
    delay = 0.0
    sessions = 0

    def start(self, rows: Sequence[Sequence[int]], *, room: int) -> FakeSession:
        self.sessions += 1
        session = super().start(rows, room=room)
        if self.favourite is not None:
            scores = np.zeros((len(rows), len(self.table)), np.float32)
            scores[:, self.favourite] = 1

            def logits() -> Float32Array:
                time.sleep(self.delay)
                return scores

            session.logits = logits  # type: ignore[method-assign]
        return session


def _tokenizer() -> TextTokenizer:
    definition = json.loads(tokenizer_json())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": 390 + at, "content": token, "special": True} | flags
        for at, token in enumerate(TINY_CONTRACT.own_tokens)
    ]
    definition["added_tokens"] += added
    return TextTokenizer(json.dumps(definition))


TOKENIZER = _tokenizer()


def scripted_encoder(
    cache: QueryCache | None = None, **changed: object
) -> tuple[Encoder, ScriptedEngine]:
    """With changes of the contract."""
    engine = ScriptedEngine(vocabulary=400)
    codec = Codec(msgspec.structs.replace(TINY_CONTRACT, **changed), TOKENIZER)
    return Encoder(codec, engine, fingerprint="f", hidden=32, cache=cache), engine
