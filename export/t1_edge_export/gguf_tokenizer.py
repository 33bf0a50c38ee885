"""Tokenizers between GGUF metadata and tokenizer.json.

A GGUF does not say how text is cut into words, it names it: `tokenizer.ggml.pre`. The names below
are those of byte-level BPE tokenizers, with the cutting that the published tokenizer.json of each
family spells out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from t1_edge.errors import CheckpointError, ExportError

NORMAL: Final = 1
CONTROL: Final = 3
USER_DEFINED: Final = 4
UNUSED: Final = 5

_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True)
class GGUFTokenizer:
    """What a GGUF says of a byte-level BPE tokenizer.

    Attributes:
        pre: Name of how text is cut into words.
        tokens: Spelling of each id, in the byte alphabet of GPT-2.
        token_types: llama.cpp's type of each id: 1 normal, 3 control, 4 user-defined, 5 unused.
        merges: "left right", the first to be applied first.
    """

    pre: str
    tokens: Sequence[str]
    token_types: Sequence[int]
    merges: Sequence[str]


def _byte_level(*, cuts_words: bool) -> dict[str, Any]:
    flags = {"add_prefix_space": False, "trim_offsets": True, "use_regex": cuts_words}
    return {"type": "ByteLevel"} | flags


def _split(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(cuts_words=False)]}


def _digits() -> dict[str, Any]:
    digits = {"type": "Digits", "individual_digits": True}
    return {"type": "Sequence", "pretokenizers": [digits, _byte_level(cuts_words=True)]}


_PRE_TOKENIZERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "smollm": _digits(),
    "qwen2": _split(_WORDS % ""),
    "llama-bpe": _split(_WORDS % "{1,3}"),
    "gpt-2": _byte_level(cuts_words=True),
}


def tokenizer_json(tokenizer: GGUFTokenizer) -> str:
    """The text of a tokenizer.json that cuts and merges as the GGUF says.

    Raises:
        CheckpointError: If the way of cutting text has an unknown name, or tokens lack a type.
    """
    if len(tokenizer.tokens) != len(tokenizer.token_types):
        counts = f"{len(tokenizer.tokens)} tokens but {len(tokenizer.token_types)} token types"
        raise CheckpointError(f"the tokenizer has {counts}")
    if tokenizer.pre not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        raise CheckpointError(f"unknown pre-tokenizer {tokenizer.pre!r}; known are {known}")
    pre = _PRE_TOKENIZERS[tokenizer.pre]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added_tokens(tokenizer),
            "normalizer": {"type": "NFC"} if tokenizer.pre == "qwen2" else None,
            "pre_tokenizer": _with_invert(pre),
            "post_processor": None,
            "decoder": _byte_level(cuts_words=True),
            "model": _bpe(tokenizer),
        },
        ensure_ascii=False,
    )


def gguf_tokenizer(definition: str, vocabulary: int) -> GGUFTokenizer:
    """What a GGUF has to say of a tokenizer.json.

    Args:
        definition: The text of a tokenizer.json.
        vocabulary: Rows of the model's embedding; ids without a token become unused ones.

    Raises:
        ExportError: If it is not a byte-level BPE whose way of cutting text has a name, is damaged,
            or has more ids than the embedding has rows.
    """
    try:
        return _translated(json.loads(definition), vocabulary)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as e:
        raise ExportError(f"the tokenizer.json is damaged, or of an unknown kind: {e!r}") from e


def _translated(parts: Mapping[str, Any], vocabulary: int) -> GGUFTokenizer:
    model = parts["model"]
    kind = model.get("type", "BPE" if "merges" in model else "(unnamed)")  # older files name none
    if kind != "BPE":
        raise ExportError(f"the tokenizer is a {kind}, GGUF builds need BPE")
    pre = _name_of(parts.get("pre_tokenizer"))
    _check_normalizer(parts.get("normalizer"))
    size = 1 + max([*model["vocab"].values(), *(t["id"] for t in parts["added_tokens"])])
    if size > vocabulary:
        raise ExportError(f"the tokenizer has {size} ids, the embedding only {vocabulary} rows")
    tokens = [f"[PAD{at}]" for at in range(vocabulary)]
    types = [UNUSED] * vocabulary
    for token, at in model["vocab"].items():
        tokens[at], types[at] = token, NORMAL
    for added in parts["added_tokens"]:
        at = added["id"]
        tokens[at], types[at] = added["content"], CONTROL if added["special"] else USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return GGUFTokenizer(pre=pre, tokens=tokens, token_types=types, merges=merges)


def added_token(at: int, token: str, *, special: bool) -> dict[str, Any]:
    """An entry of tokenizer.json's `added_tokens`: matched exactly as it is spelled."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": at, "content": token, **flags, "special": special}


def _added_tokens(tokenizer: GGUFTokenizer) -> list[dict[str, Any]]:
    return [
        added_token(at, token, special=kind == CONTROL)
        for at, (token, kind) in enumerate(
            zip(tokenizer.tokens, tokenizer.token_types, strict=True)
        )
        if kind in (CONTROL, USER_DEFINED)
    ]


def _bpe(tokenizer: GGUFTokenizer) -> dict[str, Any]:
    # Unused ids at the end are an embedding's padding; a new token may take the first of them.
    used = [at for at, kind in enumerate(tokenizer.token_types) if kind != UNUSED]
    tokens = tokenizer.tokens[: max(used, default=-1) + 1]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": tokenizer.pre == "llama-bpe",
        "vocab": {token: at for at, token in enumerate(tokens)},
        "merges": [merge.split(" ", 1) for merge in tokenizer.merges],
    }


def _name_of(pre_tokenizer: Mapping[str, Any] | None) -> str:
    wanted = _without_defaults(pre_tokenizer or {})
    for name, known in _PRE_TOKENIZERS.items():
        if wanted == _without_defaults(known):
            return name
    raise ExportError(
        "llama.cpp has no name that is known here for this way of cutting text: "
        f"{json.dumps(pre_tokenizer)}; export with --format onnx"
    )


def _check_normalizer(normalizer: Mapping[str, Any] | None) -> None:
    """llama.cpp normalises nothing. NFC, which leaves nearly every text as it is, is let pass."""
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise ExportError(
            f"llama.cpp does not normalise text, the tokenizer does: {json.dumps(normalizer)}; "
            "export with --format onnx"
        )


def _with_invert(part: Mapping[str, Any]) -> dict[str, Any]:
    """As the tokenizers library writes it: a Split says whether it is inverted."""
    full = dict(part)
    if full["type"] == "Split":
        full["invert"] = False
    if "pretokenizers" in full:
        full["pretokenizers"] = [_with_invert(inner) for inner in full["pretokenizers"]]
    return full


def _without_defaults(part: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the cut: offsets are left out, and flags at their defaults.

    The published files of older tokenizers (GPT-2's) do not spell `use_regex` out.
    """
    bare = {key: value for key, value in part.items() if key not in ("trim_offsets", "invert")}
    if bare.get("use_regex") is True:
        del bare["use_regex"]
    if "pretokenizers" in bare:
        bare["pretokenizers"] = [_without_defaults(inner) for inner in bare["pretokenizers"]]
    return bare
