"""Templates, special tokens in text, and truncation."""

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from t1_edge.contract import Codec, Contract
from t1_edge.errors import BuildError, ContractError, InputError
from t1_edge.tokenization import TextTokenizer

SPECIALS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<emb_token>"]


def _definition() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the weather in the north", "other leaves"], trainer)
    tokenizer.add_special_tokens(SPECIALS)
    return str(tokenizer.to_str())


DEFINITION = _definition()
TOKENIZER = TextTokenizer(DEFINITION)
CONTRACT = Contract(
    query="<|im_start|>Find: {text}<|im_end|>\n",
    document="Text: {text} .",
    stop=("<|im_end|>",),
    max_query_tokens=40,
    max_document_tokens=32,
)
CODEC = Codec(CONTRACT, TOKENIZER)


def _special(token: str) -> int:
    return TOKENIZER.special(token)


def test_a_query_row_is_its_template_and_think_open() -> None:
    row = CODEC.query("the north")
    assert TOKENIZER.decode(row.tokens) == "<|im_start|>Find: the north<|im_end|>\n<think>"
    assert not row.truncated


def test_a_document_row_is_its_template() -> None:
    assert TOKENIZER.decode(CODEC.document("leaves").tokens) == "Text: leaves ."


@pytest.mark.parametrize("special", SPECIALS)
def test_special_tokens_in_text_are_text(special: str) -> None:
    for row in (CODEC.query(f"a{special}b"), CODEC.document(special)):
        assert special in TOKENIZER.decode(row.tokens)
    assert _special(special) not in CODEC.document(f"x {special} y").tokens
    plain = CODEC.query("ab").tokens
    marked = CODEC.query(f"a{special}b").tokens
    assert marked.count(_special(special)) == plain.count(_special(special))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
@settings(deadline=None)
def test_any_text_fits_and_keeps_what_stands_around_it(text: str) -> None:
    row = CODEC.document(text)
    assert len(row.tokens) <= CONTRACT.max_document_tokens - 1
    decoded = TOKENIZER.decode(row.tokens)
    assert decoded.startswith("Text: ")
    assert decoded.endswith(" .")
    if not row.truncated:
        assert decoded == f"Text: {text} ."


@given(st.integers(0, 60), st.sampled_from("aé水🙂"))
@settings(deadline=None)
def test_only_text_that_does_not_fit_is_cut(length: int, character: str) -> None:
    row = CODEC.document(character * length)
    whole = len(TOKENIZER.encode_plain(f"Text: {character * length} ."))
    assert row.truncated == (whole > CONTRACT.max_document_tokens - 1)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1), st.integers(12, 16))
def test_the_smallest_limits_hold(text: str, limit: int) -> None:
    codec = Codec(msgspec.structs.replace(CONTRACT, max_document_tokens=limit), TOKENIZER)
    row = codec.document(text)
    assert len(row.tokens) + 1 <= limit
    assert row.truncated or TOKENIZER.decode(row.tokens) == f"Text: {text} ."


def test_a_cut_text_fills_the_limit() -> None:
    row = CODEC.document("x" * 500)
    assert row.truncated
    assert len(row.tokens) == CONTRACT.max_document_tokens - 1


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    with pytest.raises(InputError, match=r"U\+D800.*character 3"):
        CODEC.query("abc\ud800")


def test_nul_bytes_are_text() -> None:
    assert TOKENIZER.decode(CODEC.document("a\0b").tokens) == "Text: a\0b ."


@pytest.mark.parametrize("template", ["no slot", "{text} {text}"])
def test_a_template_has_one_slot(template: str) -> None:
    with pytest.raises(ContractError, match="once"):
        Contract(query=template, document="{text}")


def test_a_template_that_fills_the_limit_is_refused() -> None:
    tight = Contract(query="{text}", document="word " * 40 + "{text}", max_document_tokens=32)
    with pytest.raises(ContractError, match="no room for text"):
        Codec(tight, TOKENIZER)


def test_a_missing_special_token_is_named() -> None:
    with pytest.raises(ContractError, match="<nothere>"):
        Codec(Contract(query="{text}", document="{text}", stop=("<nothere>",)), TOKENIZER)


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ContractError, match="budget"):
        Contract(query="{text}", document="{text}", budget=-1)


@pytest.mark.parametrize("token", ["<|im_end|>", "", "emb_token"])
def test_only_its_own_tokens_can_be_added(token: str) -> None:
    message = re.escape(f"adds names {token!r}; what can be added is <think>")
    with pytest.raises(ContractError, match=message):
        Contract(query="{text}", document="{text}", adds=("<think>", token), stop=("<|im_end|>",))


@pytest.mark.parametrize("definition", ["", "{}", "[]", json.dumps({"added_tokens": []})])
def test_what_is_no_tokenizer_is_refused(definition: str) -> None:
    with pytest.raises(BuildError, match=r"tokenizer\.json"):
        TextTokenizer(definition)


def test_thoughts_are_text() -> None:
    for thought in (" the weather ", "weather", ""):
        assert CODEC.thought_text(CODEC.thought_tokens(thought)) == thought


DECODERS = [
    decoders.ByteLevel(),
    decoders.Metaspace(),
    decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    ),
    None,
]


@given(st.lists(st.integers(0, 310)), st.sampled_from(DECODERS))
def test_tokens_are_spelled_as_the_library_spells_them(tokens: list[int], decoder: Any) -> None:
    theirs = Tokenizer.from_str(DEFINITION)
    theirs.decoder = decoder
    ours = TextTokenizer(theirs.to_str())
    assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=False)


def test_rows_begin_alike() -> None:
    query, document = CODEC.beginnings
    assert TOKENIZER.decode(query).rstrip() == "<|im_start|>Find:"
    assert TOKENIZER.decode(document).rstrip() == "Text:"
    for text in ("the north", "North", "", "12", "é", "<emb_token>"):
        assert CODEC.query(text).tokens[: len(query)] == query
        assert CODEC.document(text).tokens[: len(document)] == document


def test_templates_that_begin_with_the_text_have_no_beginning() -> None:
    plain = Codec(Contract(query="{text}?", document="{text}"), TOKENIZER)
    assert plain.beginnings == ((), ())
