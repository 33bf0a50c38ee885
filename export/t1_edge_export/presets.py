"""Contracts that come with t1-edge, by name."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from t1_edge.contract import Contract
from t1_edge.errors import ContractError

# For an instruct model that was never trained to embed: its thought goes on with a list of keywords
# that the turn has begun, and its vector is whatever it holds at a token that it has never seen.
_CHAT: Final = Contract(
    query="<|im_start|>user\nList keywords of a text that answers this question: {text}<|im_end|>\n"
    "<|im_start|>assistant\nKeywords:",
    document="{text}\n\nKeywords:",
    stop=("<|im_end|>", "<|endoftext|>"),
)

# What nano was trained on: short, so that little is read twice. Its thoughts help BM25 and not its
# vector (docs/nano.md), so that it thinks only when asked to.
_NANO: Final = Contract(
    query="Query: {text}\n",
    document="Document: {text}\n",
    stop=("<|im_end|>", "<|endoftext|>"),
    distinct=True,
    budget=0,
)

PRESETS: Final[Mapping[str, Contract]] = {"chat": _CHAT, "nano": _NANO}


def find_contract(name_or_path: str) -> Contract:
    """A contract by its preset's name, or from a JSON file of its fields.

    Raises:
        ContractError: If there is neither, or the file is not a contract.
    """
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    path = Path(name_or_path)
    if not os.path.isfile(path):  # false for a path that is too long, where Path raises
        known = ", ".join(PRESETS)
        raise ContractError(f"no contract {name_or_path!r}: presets are {known}; or give a file")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Contract)
    except msgspec.MsgspecError as e:
        raise ContractError(f"{path} is no contract: {e}") from e
