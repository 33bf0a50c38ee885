"""What comes back from an encoder."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from t1_edge.engines.base import EngineInfo, Float32Array
from t1_edge.thinking import StopReason


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What a query's passes over the weights took, in seconds; its batch's where several ran.

    Cutting text into tokens, and waiting for a turn, are not counted.

    Attributes:
        prefill: Reading the query, up to the first logits. 0 with budget 0, or past a deadline.
        thinking: Writing the thought, the first logits not included.
        embedding: Closing the thought and reading the vector; reading the query too with budget 0,
            past a deadline, or with a given thought.
        total: All three.
    """

    prefill: float
    thinking: float
    embedding: float
    total: float


@dataclass(frozen=True, kw_only=True)
class QueryEmbedding:
    """A query's vector, and how it came about.

    Attributes:
        vector: float32 [d], L2-normalised.
        thought: What the model wrote, or the caller, as text, white space included.
        thought_tokens: The same as token ids.
        stopped_by: What ended the thought.
        truncated: Whether the text was cut to the contract's `max_query_tokens`.
        prompt_tokens: Tokens of the query row before the thought.
        timings: Where the time went.
        engine: What ran, and on which device.
        cached: Whether it was kept from an earlier time: timings are 0 then.
    """

    vector: Float32Array = field(repr=False)
    thought: str
    thought_tokens: tuple[int, ...]
    stopped_by: StopReason
    truncated: bool
    prompt_tokens: int
    timings: Timings
    engine: EngineInfo
    cached: bool = False


@dataclass(frozen=True, kw_only=True)
class DocumentEmbeddings:
    """Documents' vectors, and what was cut.

    Attributes:
        vectors: float32 [n, d], L2-normalised rows in the order of the texts.
        truncated: bool [n], whether a text was cut to the contract's `max_document_tokens`.
        tokens: int32 [n], length of each row, `emb_token` included.
        seconds: From the call to the vectors.
        engine: What ran, and on which device.
    """

    vectors: Float32Array = field(repr=False)
    truncated: NDArray[np.bool_]
    tokens: NDArray[np.int32]
    seconds: float
    engine: EngineInfo
