"""The contract: how text becomes tokens and a vector. The only place that knows templates.

A query row is  query template + think_open + thought + think_close + emb_token;
a document row is  document template + emb_token. With budget 0 the thought is empty and nothing
else changes, so that a model sees one format at every budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Final

import msgspec

from t1_edge.errors import ContractError, InputError
from t1_edge.tokenization import TextTokenizer, check_text, common_beginning

_UNLIKE: Final = ("the", "a", "Zebras", "7", "水", "(x)", "\n", "")

SLOT = "{text}"


class Contract(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How text becomes tokens and a vector.

    Attributes:
        query: Template of a query, with one {text}. Special tokens may be spelled out in it.
        document: Template of a document, with one {text}.
        emb_token: The token whose hidden state is the vector.
        think_open: Stands before the thought.
        think_close: Stands after it; a model that writes it has finished thinking.
        adds: Which of these three an export may add to a checkpoint that lacks them.
        stop: Other tokens that end a thought, such as an end of turn.
        distinct: No token stands twice in a thought: for models whose thoughts are keywords, which
            greedy writing would otherwise repeat.
        budget: Most tokens of a thought when the caller does not say.
        max_query_tokens: Longest query row before the thought; the text is cut to fit.
        max_document_tokens: Longest document row, `emb_token` included; the text is cut to fit.
    """

    query: str
    document: str
    emb_token: str = "<emb_token>"
    think_open: str = "<think>"
    think_close: str = "</think>"
    adds: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    distinct: bool = False
    budget: int = 16
    max_query_tokens: int = 512
    max_document_tokens: int = 512

    def __post_init__(self) -> None:
        """Refuse templates without exactly one slot, strange `adds`, and a negative budget."""
        for name, template in (("query", self.query), ("document", self.document)):
            if template.count(SLOT) != 1:
                raise ContractError(f"the {name} template must hold {SLOT} once: {template!r}")
        for token in self.adds:
            if token not in self.own_tokens:
                known = ", ".join(self.own_tokens)
                raise ContractError(f"adds names {token!r}; what can be added is {known}")
        if self.budget < 0:
            raise ContractError(f"budget must be 0 or more, not {self.budget}")

    @property
    def own_tokens(self) -> tuple[str, str, str]:
        """The tokens around a thought and behind a row, in the order in which export adds them."""
        return (self.think_open, self.think_close, self.emb_token)

    def budget_for(self, asked: int | None) -> int:
        """The budget that was asked for, or the contract's if None.

        Raises:
            InputError: If it is negative, or no whole number.
        """
        if asked is None:
            return self.budget
        if not isinstance(asked, Integral) or asked < 0:
            raise InputError(f"budget must be 0 or more tokens, not {asked!r}")
        return int(asked)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of token ids, ready for an engine.

    Attributes:
        tokens: The ids.
        truncated: Whether the text was cut to fit the contract's limit.
    """

    tokens: tuple[int, ...]
    truncated: bool


class Codec:
    """A contract bound to a tokenizer: text to rows, thoughts to text.

    Args:
        contract: Templates, special tokens and limits.
        tokenizer: The build's tokenizer.

    Attributes:
        contract: As given.
        emb_id: Id of `emb_token`.
        open_id: Id of `think_open`.
        close_id: Id of `think_close`.
        stop_ids: Ids of `stop`.

    Raises:
        ContractError: If a special token of the contract is not one token of the tokenizer, or a
            template alone fills its limit.
    """

    def __init__(self, contract: Contract, tokenizer: TextTokenizer) -> None:
        self.contract = contract
        self._tokenizer = tokenizer
        self.emb_id = tokenizer.special(contract.emb_token)
        self.open_id = tokenizer.special(contract.think_open)
        self.close_id = tokenizer.special(contract.think_close)
        self.stop_ids = frozenset(tokenizer.special(token) for token in contract.stop)
        self._query = _Template(contract.query, tokenizer, contract.max_query_tokens)
        self._document = _Template(contract.document, tokenizer, contract.max_document_tokens)

    @property
    def ending(self) -> tuple[int, int]:
        """What a query row ends with behind its thought: think_close, and the vector's token."""
        return (self.close_id, self.emb_id)

    def query(self, text: str) -> Row:
        """The row that a thought continues: the query in its template, and think_open.

        Raises:
            InputError: If the text holds a lone surrogate.
        """
        row = self._query.render(text)
        return Row(tokens=(*row.tokens, self.open_id), truncated=row.truncated)

    def document(self, text: str) -> Row:
        """The row of a document, still without its final emb_token.

        Raises:
            InputError: If the text holds a lone surrogate.
        """
        return self._document.render(text)

    @cached_property
    def beginnings(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What rows of queries, and of documents, begin with, whatever their text is.

        Found in rows of texts that begin unlike: where a template ends and a text begins, tokens
        may reach over. A row whose text begins as none of these may begin otherwise.
        """
        return (
            common_beginning([self.query(text).tokens for text in _UNLIKE]),
            common_beginning([self.document(text).tokens for text in _UNLIKE]),
        )

    def thought_tokens(self, text: str) -> tuple[int, ...]:
        """The ids of a thought that someone wrote; special tokens in it are plain text.

        Raises:
            InputError: If the text holds a lone surrogate.
        """
        check_text(text)
        return tuple(self._tokenizer.encode_plain(text))

    def thought_text(self, tokens: Sequence[int]) -> str:
        """A thought as text, white space included, for `thought_tokens` to give the same ids.

        It does not where the model spelt a word in another way than the tokenizer does.
        """
        return self._tokenizer.decode(tokens)


class _Template:
    """A template as token ids around one stretch of plain text that holds the slot."""

    def __init__(self, template: str, tokenizer: TextTokenizer, limit: int) -> None:
        pieces = tokenizer.split_specials(template)
        at = next(i for i, piece in enumerate(pieces) if isinstance(piece, str) and SLOT in piece)
        stretch = pieces[at]
        assert isinstance(stretch, str)
        self._lead, self._trail = stretch.split(SLOT)
        self._head = _ids(pieces[:at], tokenizer)
        self._tail = _ids(pieces[at + 1 :], tokenizer)
        self._tokenizer = tokenizer
        # One place belongs to think_open, or to emb_token.
        self._room = limit - 1 - len(self._head) - len(self._tail)
        if len(self._stretch("")) >= self._room:
            raise ContractError(f"no room for text: the template {template!r} fills {limit} tokens")

    def render(self, text: str) -> Row:
        check_text(text)
        ids = self._stretch(text)
        truncated = len(ids) > self._room
        if truncated:
            ids = self._shorten(text)
        return Row(tokens=(*self._head, *ids, *self._tail), truncated=truncated)

    def _stretch(self, text: str) -> list[int]:
        return self._tokenizer.encode_plain(self._lead + text + self._trail)

    def _shorten(self, text: str) -> list[int]:
        """Cut the text at a token's end so that it fits together with what stands around it."""
        ends = self._tokenizer.token_ends(self._lead + text)
        keep = min(self._room, len(ends))
        ids = self._stretch("")
        while keep > 0:
            ids = self._stretch(text[: max(0, ends[keep - 1] - len(self._lead))])
            if len(ids) <= self._room:
                break
            # What follows the text takes room too, and a cut may split one token into several.
            keep -= len(ids) - self._room
        else:
            ids = self._stretch("")
        return ids


def _ids(pieces: Sequence[int | str], tokenizer: TextTokenizer) -> tuple[int, ...]:
    ids: list[int] = []
    for piece in pieces:
        ids.extend([piece] if isinstance(piece, int) else tokenizer.encode_plain(piece))
    return tuple(ids)
