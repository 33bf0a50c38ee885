"""Build directories: what is read, what is refused, and that the format stays what it is."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from t1_edge.build import (
    MANIFEST,
    Build,
    Decoder,
    FileEntry,
    Manifest,
    Source,
    fingerprint,
)
from t1_edge.contract import Contract
from t1_edge.errors import BuildError
from t1_edge.verification import Bounds, EngineFigures, FreeRunning, Verification

GOLDEN_MANIFEST = Path(__file__).parent / "golden_t1.json"

FILES = ("golden.npz", "model.onnx", "tokenizer.json", "weights.bin")

EXAMPLE = Manifest(
    schema=6,
    name="example",
    profile="portable",
    source=Source(
        id="someone/something", revision="12" * 20, sha256="ab" * 32, licence="Apache-2.0"
    ),
    decoder=Decoder(
        family="qwen3",
        hidden=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=32,
        intermediate=128,
        vocabulary=400,
        positions=1024,
        rope_theta=1e6,
        norm_epsilon=1e-6,
        tied=True,
    ),
    contract=Contract(
        query="Q: {text}", document="{text}", adds=("<emb_token>",), stop=("<|im_end|>",)
    ),
    formats=("onnx",),
    encodings={"q8_0": 2, "q4_0": 13, "f32": 9},
    eight_bit=("model.layers.0.self_attn.v_proj.weight",),
    calibration="importance: 256 rows of texts.jsonl",
    files={name: FileEntry(size=3, sha256="cd" * 32) for name in FILES},
    fingerprint="ef" * 16,
    verification=Verification(
        rows=20,
        positions=70,
        tokenizer_texts=0,
        bounds=Bounds(
            cosine_mean=0.95,
            cosine_min=0.9,
            cross_min=0.98,
            divergence=0.1,
            slack=0.01,
            documents_mean=0.98,
            documents_min=0.94,
        ),
        engines={
            "onnx": EngineFigures(
                library="x 1",
                cosine_mean=0.99,
                cosine_p1=0.985,
                cosine_min=0.98,
                divergence_mean=0.05,
                divergence_max=0.2,
                free=(
                    FreeRunning(budget=4, same=0.75, agreed=3.5, cosine_mean=0.97, cosine_min=0.9),
                ),
                floor=0.97,
            )
        },
    ),
    tools={"t1-edge": "0.1.0"},
)


def _write(folder: Path, manifest: bytes) -> Path:
    (folder / MANIFEST).write_bytes(manifest)
    for name in FILES:
        (folder / name).write_bytes(b"abc")
    return folder


def test_the_format_is_the_one_that_was_published() -> None:
    assert EXAMPLE.to_json() == GOLDEN_MANIFEST.read_bytes()
    assert msgspec.json.decode(GOLDEN_MANIFEST.read_bytes(), type=Manifest) == EXAMPLE


def test_a_build_opens(tmp_path: Path) -> None:
    build = Build(_write(tmp_path, EXAMPLE.to_json()))
    assert build.manifest == EXAMPLE


def _changed(**fields: object) -> bytes:
    return json.dumps(json.loads(EXAMPLE.to_json()) | fields).encode()


def _files(more: dict[str, object]) -> bytes:
    return _changed(files=json.loads(EXAMPLE.to_json())["files"] | more)


def _engines(engines: dict[str, object]) -> bytes:
    return _changed(
        verification=json.loads(EXAMPLE.to_json())["verification"] | {"engines": engines}
    )


def _contract(**fields: object) -> bytes:
    return _changed(contract=json.loads(EXAMPLE.to_json())["contract"] | fields)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"", "damaged"),
        (b"[]", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b'{"schema": 6}', "missing required field"),
        (_changed(schema=5), "schema 5, this t1-edge reads 6"),
        (_changed(schema=7), "schema 7, this t1-edge reads 6"),
        (_changed(name=3), r"Expected `str`, got `int` - at `\$.name`"),
        (_changed(profile="other"), "profile"),
        (_changed(surprise=1), "unknown field `surprise`"),
        (_changed(files={"../x": {"size": 1, "sha256": ""}}), "outside the build: '../x'"),
        (_changed(files={"/etc/x": {"size": 1, "sha256": ""}}), "outside the build"),
        (_changed(files={"a\\..\\x": {"size": 1, "sha256": ""}}), "outside the build"),
        (_files({"gone.bin": {"size": 1, "sha256": ""}}), "gone.bin is missing"),
        (_files({"weights.bin": {"size": 9, "sha256": ""}}), "has 3 bytes.* says 9"),
        (_changed(files={}), "does not list golden.npz"),
        (_changed(formats=[]), "names no format"),
        (_changed(formats=["onnx", "gguf"]), "does not list model.gguf"),
        (_engines({}), "no figures of onnx"),
        (_contract(document="no slot"), r"t1\.json is damaged.*document template"),
        (_contract(adds=["<|im_end|>"]), r"t1\.json is damaged: adds names '<\|im_end\|>'"),
    ],
)
def test_what_is_no_build_is_refused(tmp_path: Path, manifest: bytes, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        Build(_write(tmp_path, manifest))


def test_a_folder_without_a_manifest_is_no_build(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no build"):
        Build(tmp_path)


def test_hashes_are_checked_when_asked(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"is damaged: sha256"):
        Build(_write(tmp_path, EXAMPLE.to_json())).check_hashes()


CONTRACT = EXAMPLE.contract


@pytest.mark.parametrize(
    "changed",
    [
        {"weights": "other"},
        {"tokenizer": "other"},
        {"contract": msgspec.structs.replace(CONTRACT, document="> {text}")},
        {"contract": msgspec.structs.replace(CONTRACT, max_document_tokens=99)},
        {"contract": msgspec.structs.replace(CONTRACT, emb_token="<e>", adds=())},
        {"decoder": msgspec.structs.replace(EXAMPLE.decoder, hidden=32)},
        {"decoder": msgspec.structs.replace(EXAMPLE.decoder, rope_theta=1e5)},
        {"decoder": msgspec.structs.replace(EXAMPLE.decoder, heads=8, head_dim=16)},
    ],
)
def test_the_fingerprint_follows_document_vectors(changed: dict[str, object]) -> None:
    given: dict[str, object] = {
        "weights": "w", "tokenizer": "t", "contract": CONTRACT, "decoder": EXAMPLE.decoder,
    }  # fmt: skip
    make: Callable[..., str] = fingerprint
    assert make(**given) != make(**(given | changed))


def test_the_fingerprint_does_not_follow_queries() -> None:
    other = msgspec.structs.replace(CONTRACT, query="? {text}", budget=3)
    decoder = EXAMPLE.decoder
    assert fingerprint("w", "t", CONTRACT, decoder) == fingerprint("w", "t", other, decoder)


def test_a_fingerprint_is_the_one_that_was_published() -> None:
    """Vectors that are kept somewhere are known by it."""
    assert fingerprint("w", "t", CONTRACT, EXAMPLE.decoder) == "f4989713690c787b4f56717165c31df1"


def test_formats_of_one_export_share_a_fingerprint(tiny_build: Callable[..., Build]) -> None:
    build = tiny_build("llama", "portable")
    assert set(build.manifest.formats) == {"onnx", "gguf"}
    assert len(build.manifest.fingerprint) == 32
