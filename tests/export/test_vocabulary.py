"""Tokens that a checkpoint lacks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from t1_edge.build import GGUF_MODEL, Build
from t1_edge.contract import Contract
from t1_edge.errors import CheckpointError, ContractError
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.checkpoint import Checkpoint, open_checkpoint
from t1_edge_export.decoder import EMBEDDING, FINAL_NORM, HEAD
from t1_edge_export.vocabulary import with_tokens
from tiny import KNOWN, Tiny

TOKENS = ("<think>", "</think>", "<emb_token>")
PRESENT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def _contract(tokens: tuple[str, ...], adds: tuple[str, ...] | None = None) -> Contract:
    """A contract with these for its own; all of them may be added, if nothing else is said."""
    opens, closes, embeds = tokens
    return Contract(
        query="{text}", document="{text}", think_open=opens, think_close=closes, emb_token=embeds,
        adds=tokens if adds is None else adds,
    )  # fmt: skip


ALL = _contract(TOKENS)


@pytest.fixture
def padded(tiny: Callable[..., Tiny]) -> Checkpoint:
    """An embedding of 384 rows for fewer tokens, and a head of its own."""
    return open_checkpoint(tiny("qwen3", tied=False).folder)


def test_nothing_missing_is_the_checkpoint_itself(padded: Checkpoint) -> None:
    assert with_tokens(padded, _contract(PRESENT, ())) is padded


def test_padding_becomes_the_new_rows(padded: Checkpoint) -> None:
    found = with_tokens(padded, ALL)
    assert found.decoder == padded.decoder
    tokenizer = TextTokenizer(found.tokenizer)
    assert [tokenizer.special(token) for token in TOKENS] == [KNOWN, KNOWN + 1, KNOWN + 2]
    for name in (EMBEDDING, HEAD):
        original, rows = (c.rows(name, 0, 384) for c in (padded, found))
        mean = original[:KNOWN].mean(axis=0)
        np.testing.assert_allclose(rows[KNOWN : KNOWN + 3], np.tile(mean, (3, 1)), atol=1e-6)
        untouched = np.r_[0:KNOWN, KNOWN + 3 : 384]
        np.testing.assert_array_equal(rows[untouched], original[untouched])


def test_padding_of_a_gguf_becomes_the_new_rows(tiny_build: Callable[..., Build]) -> None:
    """Its padding has names, but is no token: neither counted in the mean nor stepped over."""
    stored = open_checkpoint(tiny_build("llama", "float").file(GGUF_MODEL))
    assert stored.decoder.vocabulary == 384
    found = with_tokens(stored, _contract(("<new>", *TOKENS[1:])))
    assert found.decoder == stored.decoder
    at = KNOWN + len(TOKENS)  # the build has its three
    assert TextTokenizer(found.tokenizer).special("<new>") == at
    mean = stored.rows(EMBEDDING, 0, at).mean(axis=0)
    np.testing.assert_allclose(found.rows(EMBEDDING, at, at + 1)[0], mean, atol=1e-6)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"added_tokens": [], "model": {}}'])
def test_a_damaged_tokenizer_is_named(tiny: Callable[..., Tiny], tmp_path: Path, text: str) -> None:
    shutil.copytree(tiny("llama").folder, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json of model is damaged"):
        with_tokens(open_checkpoint(tmp_path / "model"), ALL)


def test_slabs_are_cut_from_the_same_rows(padded: Checkpoint) -> None:
    found = with_tokens(padded, ALL)
    whole = found.rows(EMBEDDING, 0, 384)
    for start, stop in ((0, 10), (KNOWN - 1, KNOWN + 1), (KNOWN + 1, 384), (KNOWN + 2, KNOWN + 3)):
        np.testing.assert_array_equal(found.rows(EMBEDDING, start, stop), whole[start:stop])


def test_other_tensors_are_left_alone(padded: Checkpoint) -> None:
    found = with_tokens(padded, ALL)
    np.testing.assert_array_equal(found.rows(FINAL_NORM, 0, 64), padded.rows(FINAL_NORM, 0, 64))


def test_a_full_embedding_grows(smollm2_gguf: Path) -> None:
    checkpoint = open_checkpoint(smollm2_gguf)
    found = with_tokens(checkpoint, ALL)
    assert (checkpoint.decoder.vocabulary, found.decoder.vocabulary) == (49152, 49155)
    rows = found.rows(EMBEDDING, 49150, 49155)
    np.testing.assert_array_equal(rows[:2], checkpoint.rows(EMBEDDING, 49150, 49152))
    np.testing.assert_array_equal(rows[2], rows[3])
    assert np.abs(rows[2]).max() > 0


def test_only_what_is_missing_is_added(padded: Checkpoint) -> None:
    once = with_tokens(padded, _contract((TOKENS[0], *PRESENT[1:])))
    twice = with_tokens(once, ALL)
    names = [token["content"] for token in json.loads(twice.tokenizer)["added_tokens"]]
    assert [names.count(token) for token in TOKENS] == [1, 1, 1]
    assert with_tokens(twice, ALL) is twice


@pytest.mark.parametrize("adds", [(), TOKENS[:2], TOKENS[2:]])
def test_what_may_not_be_added_is_refused(padded: Checkpoint, adds: tuple[str, ...]) -> None:
    refused = next(token for token in TOKENS if token not in adds)
    with pytest.raises(ContractError, match=rf'no token {refused!r}.*adds = \["{refused}"\]') as e:
        with_tokens(padded, _contract(TOKENS, adds))
    assert padded.origin.id in str(e.value)


def test_ids_do_not_follow_the_order_of_adds(padded: Checkpoint) -> None:
    turned = with_tokens(padded, _contract(TOKENS, TOKENS[::-1]))
    assert turned.tokenizer == with_tokens(padded, ALL).tokenizer
