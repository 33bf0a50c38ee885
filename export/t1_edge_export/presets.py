"""Contracts that come with t1-edge, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from t1_edge.contract import Contract

DEFAULT: Final = "chat"
"""What is taken for a checkpoint that brings no contract."""

_ADDED: Final = ("<think>", "</think>", "<emb_token>")
"""For a checkpoint that knows nothing of embedding."""

# For an instruct model that was never trained to embed: its thought goes on with a list of keywords
# that the turn has begun, and its vector is whatever it holds at a token that it has never seen.
_CHAT: Final = Contract(
    query="<|im_start|>user\nList keywords of a text that answers this question: {text}<|im_end|>\n"
    "<|im_start|>assistant\nKeywords:",
    document="{text}\n\nKeywords:",
    adds=_ADDED,
    stop=("<|im_end|>", "<|endoftext|>"),
)

# What nano was trained on: short, so that little is read twice. Its thoughts help BM25 and not its
# vector (docs/nano.md), so that it thinks only when asked to. The adapter that ships brings the
# rows of the three tokens.
_NANO: Final = Contract(
    query="Query: {text}\n",
    document="Document: {text}\n",
    adds=_ADDED,
    stop=("<|im_end|>", "<|endoftext|>"),
    distinct=True,
    budget=0,
)

PRESETS: Final[Mapping[str, Contract]] = {"chat": _CHAT, "nano": _NANO}


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What is public of a model's contract, where that is not all.

    Attributes:
        model: Whose it is.
        fields: Of a `Contract`, those that are known.
        asks: Those that somebody who can read the model's card has to give. A contract's own
            default stands for none of them: it would be a guess.
        card: Where to read them.
    """

    model: str
    fields: Mapping[str, Any]
    asks: tuple[str, ...]
    card: str


OUTLINES: Final[Mapping[str, Outline]] = {
    # The read-out token is named by the paper's abstract and by the model card, the turn's and the
    # text's end are those of its backbone, Qwen3-4B-Instruct-2507. The prompts are on the card, in
    # a part that we could not read; nor do we know what stands around a thought. The card's 151,670
    # tokens we take for the backbone's 151,669 and <emb_token>, so that nothing may be added.
    "mre-t1": Outline(
        model="ForwardAILabs/MRE-T1",
        fields={"emb_token": "<emb_token>", "stop": ["<|im_end|>", "<|endoftext|>"]},
        asks=("query", "document", "think_open", "think_close"),
        card="https://huggingface.co/ForwardAILabs/MRE-T1",
    ),
}
