"""Whether llama.cpp's tokenizer, on a GGUF that was written, gives the ids of tokenizer.json."""

import ctypes
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from t1_edge.engines import llama_log
from t1_edge.errors import EngineError, MissingExtraError
from t1_edge.tokenization import TextTokenizer


def differing_texts(model: Path, tokenizer: str, texts: Sequence[str]) -> list[str]:
    """The texts to which the two tokenizers give different ids, special tokens being plain text.

    Args:
        model: A GGUF; only its vocabulary is read.
        tokenizer: The text of tokenizer.json.
        texts: What to compare on.

    Raises:
        EngineError: If llama.cpp cannot open the file.
        MissingExtraError: If llama-cpp-python is not installed.
    """
    try:
        import llama_cpp
    except ImportError as e:
        raise MissingExtraError("llama-cpp-python", "gguf") from e
    llama_log.collect(llama_cpp)
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    ours = TextTokenizer(tokenizer)
    with ExitStack() as stack:
        loaded = llama_cpp.llama_model_load_from_file(str(model).encode(), parameters)
        if not loaded:
            raise EngineError(
                f"llama.cpp cannot read the vocabulary of {model}: {llama_log.last_words()}"
            )
        stack.callback(llama_cpp.llama_model_free, loaded)
        vocabulary = llama_cpp.llama_model_get_vocab(loaded)
        return [text for text in texts if ours.encode_plain(text) != _tokenize(vocabulary, text)]


def _tokenize(vocabulary: Any, text: str) -> list[int]:
    """Ids by llama.cpp: no special token added, none recognised in the text."""
    import llama_cpp

    raw = text.encode()
    room = len(raw) + 1  # a byte-level token covers at least one byte
    ids = (ctypes.c_int32 * room)()
    count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), ids, room, False, False)
    return list(ids[:count])
