"""Export: what is published, what is refused, and that nothing is left behind."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from stages import stage
from t1_edge.build import GOLDEN, Build
from t1_edge.cli import main
from t1_edge.errors import CheckpointError, ContractError, ExportError, GateError, MissingExtraError
from t1_edge.golden import Golden
from t1_edge.verification import Bounds, Verification
from t1_edge_export import gate, pipeline
from t1_edge_export.checkpoint import Checkpoint, open_checkpoint
from t1_edge_export.decoder import weight_count
from t1_edge_export.gate import BOUNDS, misses
from t1_edge_export.pipeline import export
from t1_edge_export.request import Request
from tiny import TINY_CONTRACT, Tiny


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    return Request(
        name="tiny", destination=tmp_path / "out" / "tiny", contract=TINY_CONTRACT, profile="float"
    )


def _replaced(request: Request, **fields: object) -> Request:
    import dataclasses

    return dataclasses.replace(request, **fields)  # type: ignore[arg-type]


def test_a_build_is_whole(smollm2: Build) -> None:
    held = set(os.listdir(smollm2.path))
    assert held == set(smollm2.manifest.files) | {"t1.json"}
    smollm2.check_hashes()
    card = (smollm2.path / "README.md").read_text(encoding="utf-8")
    assert smollm2.manifest.fingerprint in card
    assert "dequantized" in card
    found = smollm2.manifest.verification
    assert found.tokenizer_texts == 20
    assert 28 <= found.rows <= 36  # thoughts that end early are one row at several budgets
    assert 8 <= found.positions <= 8 * 16
    assert not found.drift_allowed
    assert misses(found) == []


def test_the_gate_was_measured(smollm2: Build) -> None:
    figures = smollm2.manifest.verification.engines
    assert set(figures) == {"onnx", "gguf"}
    for found in figures.values():
        assert 0.9 < found.cosine_min <= found.cosine_p1 < found.cosine_mean < 0.9999
        assert 0.001 < found.divergence_mean < found.divergence_max
        assert [free.budget for free in found.free] == [4, 16]
        short, long = found.free
        assert 0 < long.same <= short.same < 1
        assert 0 < short.agreed < long.agreed < 16
        assert long.cosine_min < long.cosine_mean < 1


def test_weights_too_large_for_their_scales_are_refused(
    tiny: Callable[..., Tiny], request_: Request, tmp_path: Path
) -> None:
    folder = tmp_path / "large"
    shutil.copytree(tiny("llama").folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= np.float32(1e9)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight .* float16"):
        export(open_checkpoint(folder), _replaced(request_, profile="portable"))
    assert not request_.destination.exists()


@pytest.mark.parametrize("formats", [("onnx",), ("gguf",), ("onnx", "gguf")])
def test_formats_are_written_as_asked(
    checkpoint: Checkpoint, request_: Request, formats: tuple[str, ...]
) -> None:
    done: list[int] = []
    build = export(
        checkpoint, _replaced(request_, formats=formats), bars=stage("quantizing", done.append)
    )
    assert build.manifest.formats == formats
    assert ("weights.bin" in build.manifest.files) == ("onnx" in formats)
    assert ("model.gguf" in build.manifest.files) == ("gguf" in formats)
    assert sum(done) == weight_count(build.manifest.decoder)
    cross = build.manifest.verification.cross_engine_min
    assert (cross is None) == (len(formats) == 1)


def test_an_export_repeats_bit_for_bit(checkpoint: Checkpoint, request_: Request) -> None:
    first = export(checkpoint, request_)
    second = export(checkpoint, _replaced(request_, destination=request_.destination / ".." / "b"))
    for name in ("model.onnx", "weights.bin", "model.gguf", "tokenizer.json"):
        assert first.manifest.files[name] == second.manifest.files[name]
    assert first.manifest.fingerprint == second.manifest.fingerprint


def test_one_quantization_one_fingerprint(checkpoint: Checkpoint, request_: Request) -> None:
    both = export(checkpoint, request_).manifest.fingerprint
    alone = _replaced(request_, formats=("gguf",), force=True)
    assert export(checkpoint, alone).manifest.fingerprint == both


def test_a_build_that_stands_there_is_kept(checkpoint: Checkpoint, request_: Request) -> None:
    before = export(checkpoint, request_).manifest
    with pytest.raises(ExportError, match="exists already"):
        export(checkpoint, request_)
    assert Build(request_.destination).manifest == before
    assert export(checkpoint, _replaced(request_, force=True)).manifest == before


def test_the_gate_keeps_a_bad_build_from_being_published(
    checkpoint: Checkpoint, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of noise lose more to four bits than real ones do: an honest miss."""
    noisy = _replaced(request_, profile="portable")
    monkeypatch.setattr(gate, "BOUNDS", {**BOUNDS, "portable": BOUNDS["float"]})
    tensor = r"model\.layers\.\d\.\w+\.\w+\.weight \(\d\d?\.\d% off\)"
    where = rf"furthest from the reference in onnx are the texts '.*tensors {tensor}"
    missed = rf"onnx: mean cosine.*gguf: .*{where}.*--allow-drift"
    with pytest.raises(GateError, match=missed):
        export(checkpoint, noisy)
    assert not request_.destination.parent.exists()
    build = export(checkpoint, _replaced(noisy, allow_drift=True))
    assert build.manifest.verification.drift_allowed
    assert "misses the bounds" in (build.path / "README.md").read_text(encoding="utf-8")


def _bounds(**changed: float) -> Bounds:
    return msgspec.structs.replace(BOUNDS["portable"], **changed)


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, 0),
        ({"bounds": _bounds(cosine_mean=0.999)}, 2),
        ({"bounds": _bounds(cosine_min=0.999)}, 2),
        ({"bounds": _bounds(divergence=0.001)}, 2),
        ({"cross_engine_min": 0.5}, 1),
        ({"cross_engine_min": float("nan")}, 1),
        ({"cross_engine_min": None}, 0),
    ],
)
def test_each_bound_is_looked_at(smollm2: Build, changed: dict[str, Any], missed: int) -> None:
    found: Verification = msgspec.structs.replace(smollm2.manifest.verification, **changed)
    assert len(misses(found)) == missed


def test_an_interrupted_export_leaves_no_build(
    checkpoint: Checkpoint, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "set_trial", interrupted)
    with suppress(KeyboardInterrupt):
        export(checkpoint, request_)
    assert os.listdir(request_.destination.parent) == [".tiny.partial"]


def test_an_engine_that_could_not_verify_is_asked_for_first(
    checkpoint: Checkpoint, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t1_edge.engines.opening.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 't1-edge\[cpu\]'"):
        export(checkpoint, request_)
    assert not request_.destination.parent.exists()


def test_a_checkpoint_that_lacks_emb_token_is_refused(
    checkpoint: Checkpoint, request_: Request
) -> None:
    strict = msgspec.structs.replace(TINY_CONTRACT, adds=("<think>", "</think>"))
    with pytest.raises(ContractError, match="has no token '<emb_token>'"):
        export(checkpoint, _replaced(request_, contract=strict))
    assert not request_.destination.parent.exists()


def test_a_width_that_blocks_do_not_divide_is_named(
    request_: Request, tmp_path: Path, tiny: Callable[..., Tiny]
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=64,
        vocab_size=384, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "narrow")
    tokenizer = (tiny("llama").folder / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "narrow" / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    narrow = open_checkpoint(tmp_path / "narrow")
    with pytest.raises(CheckpointError, match=r"is 48 wide.*--profile float"):
        export(narrow, _replaced(request_, profile="portable"))


def test_golden_rows_end_in_the_token_that_embeds(smollm2: Build) -> None:
    golden = Golden.load(smollm2.file(GOLDEN))
    assert {row[-1] for row in golden.rows} == {49154}
    np.testing.assert_allclose(np.linalg.norm(golden.vectors, axis=1), 1, atol=1e-5)
    assert golden.roles.count("document") == 12
    assert set(zip(golden.roles, [thought == "" for thought in golden.thoughts], strict=True)) == {
        ("query", True), ("query", False), ("document", True)
    }  # fmt: skip


def test_the_command_exports(
    tiny: Callable[..., Tiny], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    contract = tmp_path / "contract.json"
    contract.write_bytes(msgspec.json.encode(TINY_CONTRACT))
    folder, output = str(tiny("qwen3").folder), str(tmp_path / "build")
    arguments = ["export", folder, "--output", output, "--contract", str(contract)]
    found = CliRunner().invoke(main, [*arguments, "--profile", "float", "--json"])
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["path"] == output
    assert "verifying" in found.stderr
    assert capfd.readouterr() == ("", "")  # engines say nothing of their own
    again = CliRunner().invoke(main, [*arguments, "--profile", "float"])
    assert again.exit_code == 1
    assert "--force" in again.stderr
