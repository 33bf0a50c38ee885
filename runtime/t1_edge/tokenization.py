"""Text to token ids and back, over a build's tokenizer.json.

Special tokens in *user text* are plain text. The file's added tokens are therefore taken out of
the tokenizer that reads text, and are known only as names with an id: a document that spells
`<emb_token>` gives the ordinary pieces of those characters.
"""

import json
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from t1_edge.errors import BuildError, ContractError, InputError


class TextTokenizer:
    """A tokenizer.json, split into a reader of plain text and a table of special tokens.

    Args:
        definition: The text of a tokenizer.json (format of the `tokenizers` library).

    Raises:
        BuildError: If it is not one.
    """

    def __init__(self, definition: str) -> None:
        try:
            parts = json.loads(definition)
            self._specials = {t["content"]: int(t["id"]) for t in parts["added_tokens"]}
            self._named = {id: token for token, id in self._specials.items()}
            nothing = {"post_processor": None, "truncation": None, "padding": None}
            self._plain = Tokenizer.from_str(json.dumps(parts | nothing | {"added_tokens": []}))
        except Exception as e:  # the library raises bare Exception
            raise BuildError(f"not a tokenizer.json that can be read: {e}") from e
        longest_first = sorted(self._specials, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @classmethod
    def from_file(cls, path: Path) -> "TextTokenizer":
        """Read a tokenizer.json.

        Raises:
            BuildError: If it cannot be read, or is not one.
        """
        try:
            return cls(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, BuildError) as e:
            raise BuildError(f"{path}: {e}") from e

    def special(self, token: str) -> int:
        """Id of a special token.

        Raises:
            ContractError: If the tokenizer has no such special token.
        """
        if token not in self._specials:
            raise ContractError(f"the tokenizer has no special token {token!r}")
        return self._specials[token]

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text in which no sequence of characters is special."""
        return list(self._encode(text).ids)

    def token_ends(self, text: str) -> list[int]:
        """Where each token of a plain text ends, in characters from its start."""
        return [end for _, end in self._encode(text).offsets]

    def split_specials(self, template: str) -> list[int | str]:
        """Cut a template at the special tokens spelled in it: ids, and stretches of plain text."""
        pieces: list[int | str] = []
        at = 0
        for match in self._special_pattern.finditer(template):
            pieces += [template[at : match.start()], self._specials[match.group()]]
            at = match.end()
        pieces.append(template[at:])
        return [piece for piece in pieces if piece != ""]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special ones spelled out; what is no token's id is left out.

        Ids are the file's: the library gives added tokens others where there are gaps.
        """
        named = [self._named.get(token) or self._plain.id_to_token(token) for token in tokens]
        known = [token for token in named if token is not None]
        if not known:
            return ""
        decoder = self._plain.decoder
        return " ".join(known) if decoder is None else str(decoder.decode(known))

    def _encode(self, text: str) -> Encoding:
        return self._plain.encode(text, add_special_tokens=False)


def common_beginning(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The token ids that all rows begin with."""
    columns = zip(*rows, strict=False)
    return tuple(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))


def check_text(text: str) -> None:
    """Whether a caller's text can be encoded at all.

    Raises:
        InputError: If it is no str, or holds a lone surrogate, which UTF-8 cannot carry.
    """
    if not isinstance(text, str):
        raise InputError(f"a text must be a str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise InputError(
            f"the text has a lone surrogate (U+{ord(text[e.start]):04X}) at character {e.start}; "
            "replace or remove it"
        ) from e


def check_texts(texts: Sequence[str], batch_size: int | None = None) -> None:
    """Whether a caller's texts are several, and run in batches of something.

    Raises:
        InputError: If they are one string, which is a sequence of strings too, its letters; or the
            batch size is below 1.
    """
    if isinstance(texts, str):
        raise InputError("texts is one string, and each letter would be a text: give [text]")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, not {batch_size}")
