"""A tokenizer rebuilt from a GGUF gives the ids of llama.cpp's own, and survives the way back."""

import inspect
import json
import random
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import pytest

import t1_edge.build
from t1_edge.build import Build
from t1_edge.errors import CheckpointError, ExportError
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.gguf_checkpoint import GGUFCheckpoint
from t1_edge_export.gguf_tokenizer import GGUFTokenizer, gguf_tokenizer
from t1_edge_export.gguf_tokenizer import tokenizer_json as rebuild
from t1_edge_export.tokenizer_parity import differing_texts
from tiny import KNOWN, Tiny, tokenizer_json

# A sentence or a few words in each of many scripts, and what else cuts text in odd places.
SCRIPTS = (
    "The quick brown fox jumps over the lazy dog, doesn't it? I'LL SAY; we've, they'd.",
    "Πότε θα έρθει το καλοκαίρι;",
    "Сколько стоит этот билет до Москвы?",
    "מתי יוצאת הרכבת הבאה לחיפה?",
    "متى يغادر القطار التالي إلى دمشق؟ السعر ١٢٣ ريالاً",
    "यह किताब कितने की है? क़ीमत ४५६ रुपये",
    "இந்த ஊரில் மழை எப்போது பெய்யும்?",
    "এই শহরের নাম কী?",
    "รถไฟขบวนต่อไปออกกี่โมง",
    "ຂ້ອຍມັກກິນເຂົ້າ",
    "ဒီနေ့ ရာသီဥတု ဘယ်လိုလဲ",
    "このりんごはいくらですか。カタカナも混ぜる。",
    "今天的天气怎么样?三百二十一",
    "臺灣的夏天很熱。",
    "오늘 날씨가 어떻습니까?",
    "რა ღირს ეს წიგნი?",
    "Որքա՞ն արժե այս գիրքը",
    "ይህ መጽሐፍ ስንት ነው?",
    "ང་ཁྱེད་རང་ལ་དགའ་པོ་ཡོད།",
    "ഈ പുസ്തകത്തിന് എത്ര വിലയുണ്ട്?",
    "ఈ పుస్తకం ధర ఎంత?",
    "ಈ ಪುಸ್ತಕದ ಬೆಲೆ ಎಷ್ಟು?",
    "ਇਹ ਕਿਤਾਬ ਕਿੰਨੇ ਦੀ ਹੈ?",
    "មេឃភ្លៀងថ្ងៃនេះ",
    "Größenwahn, naïveté, Øresund, łódź, İstanbul, ǅ, ﬁligree",
    "e\u0301 versus \u00e9, n\u0303, Z\u0335\u0321\u0321a\u0334l\u0337g\u0336o",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ☺️ 🇩🇪 1️⃣",
    "٠١٢٣ ०१२ ๐๑๒ ０１２ ²³ ½ ⅷ Ⅻ ①",
    "a\u00a0b\u2003c\u200bd\u3000e\ufefff",
    "line\r\nline\rline\n\n\n   line\t\ttab \t mixed   ",
    "    four\n        eight\n\ttab\n  \n trailing   ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 𓀀𓀁 𐍈",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β → β",
    "<|im_start|>user <think> </think> <emb_token> <|endoftext|>",
    "x=1;y=22;z=333;w=4444;v=55555 3.14159 1,000,000 0xFF 1e-9",
    "\x00\x01\x1f\x7f\x80\x9f",
    "snake_case camelCase kebab-case SCREAMING_CASE __dunder__ $var @at #tag",
)


def _texts() -> list[str]:
    """1,000 real texts: paragraphs, lines of source, and mixtures of scripts."""
    chosen = random.Random(0)
    paragraphs = [part for text in topics.values() for part in text.split("\n\n") if part.strip()]
    source = inspect.getsource(inspect).split("\n\n")
    texts = list(SCRIPTS) + chosen.sample(paragraphs, 600) + chosen.sample(source, 150)
    while len(texts) < 1000:
        texts.append(" ".join(chosen.sample(SCRIPTS, 3)) + str(chosen.random()))
    return texts


def test_a_thousand_texts_of_smollm2_are_cut_alike(smollm2_gguf: Path) -> None:
    texts = _texts()
    assert len(texts) == 1000
    assert sum(text.isascii() for text in texts) < 900
    tokenizer = GGUFCheckpoint(smollm2_gguf).tokenizer
    assert differing_texts(smollm2_gguf, tokenizer, texts) == []


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "llama-bpe", "gpt-2"])
def test_every_known_way_of_cutting_is_that_of_llama_cpp(
    smollm2_gguf: Path, tmp_path: Path, pre: str
) -> None:
    """SmolLM2's tokens and merges, cut by each of the names."""
    import gguf

    tokenizer = replace(gguf_tokenizer(GGUFCheckpoint(smollm2_gguf).tokenizer, 49152), pre=pre)
    path = tmp_path / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.token_types)
    writer.add_token_merges(tokenizer.merges)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    texts = [unicodedata.normalize("NFC", text) for text in _texts()]  # llama.cpp does not do it
    assert differing_texts(path, rebuild(tokenizer), texts) == []


def test_a_build_is_cut_alike(smollm2: Build) -> None:
    path = smollm2.file(t1_edge.build.GGUF_MODEL)
    tokenizer = smollm2.file(t1_edge.build.TOKENIZER).read_text(encoding="utf-8")
    assert differing_texts(path, tokenizer, _texts()) == []


def test_digits_stand_alone(smollm2_gguf: Path) -> None:
    tokenizer = TextTokenizer(GGUFCheckpoint(smollm2_gguf).tokenizer)
    assert len(tokenizer.encode_plain("2026")) == 4


def test_text_survives_the_tokenizer(smollm2: Build) -> None:
    tokenizer = TextTokenizer.from_file(smollm2.file(t1_edge.build.TOKENIZER))
    for text in SCRIPTS:
        assert tokenizer.decode(tokenizer.encode_plain(text)) == text


def test_the_way_there_and_back(tiny: Callable[..., Tiny]) -> None:
    definition = tokenizer_json()
    found = gguf_tokenizer(definition, 384)
    assert found.pre == "smollm"
    assert len(found.tokens) == len(found.token_types) == 384
    assert found.tokens[-1] == "[PAD383]"
    again, original = TextTokenizer(rebuild(found)), TextTokenizer(definition)
    for text in SCRIPTS:
        assert again.encode_plain(text) == original.encode_plain(text)
    assert again.special("<|im_end|>") == original.special("<|im_end|>")


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "llama-bpe", "gpt-2"])
def test_every_known_way_of_cutting_is_recognised_again(pre: str) -> None:
    definition = rebuild(_small(pre))
    TextTokenizer(definition).encode_plain("ab 12")
    assert gguf_tokenizer(definition, 4).pre == pre


def test_the_published_form_of_gpt_2_is_recognised() -> None:
    """It spells neither `use_regex` nor the model's type out."""
    definition = json.loads(rebuild(_small("gpt-2")))
    definition["pre_tokenizer"].pop("use_regex")
    definition["model"].pop("type")
    assert gguf_tokenizer(json.dumps(definition), 4).pre == "gpt-2"
    TextTokenizer(json.dumps(definition)).encode_plain("ab 12")


def test_padding_of_the_embedding_is_no_token() -> None:
    definition = json.loads(rebuild(gguf_tokenizer(tokenizer_json(), 384)))
    assert len(definition["model"]["vocab"]) == KNOWN


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("pre_tokenizer", None),
        ("normalizer", {"type": "Lowercase"}),
    ],
)
def test_what_llama_cpp_cannot_do_is_named(part: str, value: dict[str, str] | None) -> None:
    definition = json.loads(tokenizer_json()) | {part: value}
    with pytest.raises(ExportError, match=value["type"] if value else "null"):
        gguf_tokenizer(json.dumps(definition), 384)


def test_an_unknown_way_of_cutting_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"'nobodys'.*smollm"):
        rebuild(_small("nobodys"))


def test_an_embedding_too_small_for_the_tokenizer_is_named() -> None:
    with pytest.raises(ExportError, match=f"{KNOWN} ids, the embedding only {KNOWN - 1} rows"):
        gguf_tokenizer(tokenizer_json(), KNOWN - 1)


def test_tokens_without_a_type_are_named() -> None:
    with pytest.raises(CheckpointError, match="4 tokens but 2 token types"):
        rebuild(replace(_small("gpt-2"), token_types=[1, 1]))


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    definition = json.loads(tokenizer_json())
    definition["model"]["type"] = "WordPiece"
    with pytest.raises(ExportError, match="WordPiece"):
        gguf_tokenizer(json.dumps(definition), 384)


def _small(pre: str) -> GGUFTokenizer:
    tokens = ["a", "b", "ab", "<end>"]
    return GGUFTokenizer(pre=pre, tokens=tokens, token_types=[1, 1, 1, 3], merges=["a b"])
