"""Bad input, through the command: one clear error, exit code 1, and nothing is left behind."""

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from t1_edge.build import Build
from t1_edge.cli import main
from t1_edge_export.adapter import CONFIG, WEIGHTS
from tiny import TINY_CONTRACT, Tiny

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def _held(folder: Path) -> dict[str, bytes | None]:
    """All that is below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def _run(checkpoint: Path, output: Path, *more: str) -> Any:
    contract = checkpoint.parent / "contract.json"
    contract.write_bytes(msgspec.json.encode(TINY_CONTRACT))
    arguments = ["export", str(checkpoint), "--output", str(output), "--contract", str(contract)]
    return CliRunner().invoke(main, [*arguments, "--calibration", "none", "--json", *more])


def _refused(checkpoint: Path, output: Path, *more: str) -> str:
    """Export it, which must fail and leave everything as it was; what was said of it."""
    room = next(path for path in output.parents if path.exists())
    before = _held(room)
    found = _run(checkpoint, output, *more)
    assert found.exit_code == 1, found.output
    assert isinstance(found.exception, SystemExit), found.exception
    assert found.stdout == ""
    *talk, error = str(found.stderr).splitlines()
    assert error.startswith("Error: ")
    assert not [line for line in talk if "Error" in line or "Warning" in line]
    assert _held(room) == before
    return error


@pytest.fixture
def folder(tiny: Callable[..., Tiny], tmp_path: Path) -> Path:
    """A tiny Llama of the test's own, to be damaged."""
    shutil.copytree(tiny("llama").folder, tmp_path / "in" / "model")
    return tmp_path / "in" / "model"


@pytest.fixture
def sharded(tiny: Callable[..., Tiny], tmp_path: Path) -> Path:
    shutil.copytree(tiny("llama", shard="60KB").folder, tmp_path / "in" / "model")
    return tmp_path / "in" / "model"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A place whose folders are not there yet, and must not be there afterwards."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "deep" / "build"


def _cut(folder: Path, size: int) -> None:
    os.truncate(folder / SINGLE, size)


def _flip(folder: Path, at: int, bit: int) -> None:
    damaged = bytearray((folder / SINGLE).read_bytes())
    damaged[at] ^= 1 << bit
    (folder / SINGLE).write_bytes(damaged)


def _config(folder: Path, **changes: Any) -> None:
    _json(folder / "config.json", **changes)


def _json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _last_weight(folder: Path, value: float) -> None:
    """In the final norm, which an export reads last: the other files are written by then."""
    damaged = bytearray((folder / SINGLE).read_bytes())
    damaged[-4:] = struct.pack("<f", value)
    (folder / SINGLE).write_bytes(damaged)


def _pickled(folder: Path, name: str) -> None:
    (folder / SINGLE).unlink()
    (folder / name).write_bytes(pickle.dumps({"model.norm.weight": [1.0]}))


def _narrow(folder: Path) -> None:
    """Keys and values that do not divide the heads, in tensors as well."""
    weights = load_file(folder / SINGLE)
    for name in weights:
        if "k_proj" in name or "v_proj" in name:
            weights[name] = np.ones((48, 64), np.float32)
    save_file(weights, folder / SINGLE)
    _config(folder, num_key_value_heads=3)


def _tokenizer_of_another(folder: Path) -> None:
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["model"]["vocab"]["zebra"] = 1 << 40
    (folder / "tokenizer.json").write_text(json.dumps(definition))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (partial(_cut, size=0), r"model\.safetensors has a damaged header.*fetch it again"),
        (partial(_cut, size=1000), r"model\.safetensors has a damaged header: it is cut off"),
        (partial(_cut, size=100_000), r"model\.safetensors is damaged or cut off.*fetch it again"),
        (partial(_flip, at=0, bit=3), r"model\.safetensors has a damaged header"),
        (partial(_flip, at=6, bit=7), r"model\.safetensors has a damaged header"),
        (partial(_flip, at=100, bit=0), r"model\.safetensors"),
        (partial(_config, architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel; known are Llama"),
        (partial(_config, rope_scaling={"rope_type": "yarn"}), "rope scaling 'yarn'; only plain"),
        (partial(_config, partial_rotary_factor=0.5), r"config\.json rotates a part of each head"),
        (partial(_config, hidden_act="gelu"), "activation 'gelu'; known is silu"),
        (partial(_config, rope_theta="inf"), r"config\.json is damaged: .*rope_theta"),
        (_narrow, r"config\.json asks for 4 heads of 16 over 3"),
        (partial(_last_weight, value=np.nan), r"model\.norm\.weight holds weights that are NaN"),
        (partial(_last_weight, value=-np.inf), r"model\.norm\.weight holds weights that are NaN"),
        (partial(_pickled, name="pytorch_model.bin"), "pickles are refused"),
        (partial(_pickled, name="consolidated.00.pth"), "pickles are refused"),
        (partial(_pickled, name=SINGLE), "this is no safetensors file; fetch it again"),
        (_tokenizer_of_another, r"tokenizer\.json of model has 1099511627777 ids.* another model"),
    ],
)
def test_a_folder_that_is_damaged_or_unknown(
    folder: Path, output: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    error = _refused(folder, output)
    assert re.search(message, error), error


def test_a_shard_that_is_missing(sharded: Path, output: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert f"lacks the shard '{shard.name}'" in _refused(sharded, output)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_cannot_lead_outside(sharded: Path, output: Path, name: str) -> None:
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    _json(sharded / INDEX, weight_map=dict.fromkeys(index, name))
    assert f"names a file outside the folder: {name!r}" in _refused(sharded, output)


@pytest.mark.parametrize("name", ["", "..", "x" * 300, "\0", "\ud800"])
def test_an_index_that_names_what_is_no_file(sharded: Path, output: Path, name: str) -> None:
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    _json(sharded / INDEX, weight_map=dict.fromkeys(index, name))
    assert INDEX in _refused(sharded, output)


def test_a_tensor_in_two_shards(sharded: Path, output: Path) -> None:
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    shutil.copy(first, second)
    error = _refused(sharded, output)
    assert f"stands in {first} and again in {second}" in error


@pytest.mark.parametrize("name", ["weights.bin", "model.pt", "model.safetensors"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, output: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(pickle.dumps(1))
    error = _refused(tmp_path / "in" / name, output)
    assert "is no checkpoint: give a Hugging Face folder" in error


def test_a_folder_that_holds_a_gguf_alone(tmp_path: Path, output: Path) -> None:
    folder = tmp_path / "in" / "folder"
    folder.mkdir(parents=True)
    (folder / "weights.gguf").write_bytes(b"GGUF")
    assert "or a .gguf file, as weights.gguf, which lies there" in _refused(folder, output)


@pytest.mark.parametrize("size", [0, 30, 3000, 100_000])
def test_a_gguf_that_is_cut_off(tiny_gguf: Callable[..., Path], output: Path, size: int) -> None:
    path = tiny_gguf()
    os.truncate(path, size)
    assert "tiny.gguf is not a whole GGUF file" in _refused(path, output)


def test_a_gguf_of_weights_that_are_none(tiny_gguf: Callable[..., Path], output: Path) -> None:
    path = tiny_gguf()
    damaged = bytearray(path.read_bytes())
    damaged[-4:] = struct.pack("<f", np.nan)
    path.write_bytes(damaged)
    assert "output_norm.weight holds weights that are NaN" in _refused(path, output)


@pytest.fixture
def adapter(tiny: Callable[..., Tiny], tmp_path: Path) -> Path:
    """As PEFT writes it: a factor pair of the tiny Llama."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (tmp_path / "in" / "adapter").mkdir(parents=True)
    (tmp_path / "in" / "adapter" / CONFIG).write_text(json.dumps(config))
    module = "base_model.model.model.layers.0.mlp.up_proj"
    a, b = np.ones((2, 64), np.float32), np.ones((128, 2), np.float32)
    factors = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    save_file(factors, tmp_path / "in" / "adapter" / WEIGHTS)
    return tmp_path / "in" / "adapter"


def _adapter_of_a_wider(adapter: Path) -> None:
    factors = load_file(adapter / WEIGHTS)
    save_file({name: np.tile(f, 2) for name, f in factors.items()}, adapter / WEIGHTS)


def _adapter_of_a_deeper(adapter: Path) -> None:
    factors = load_file(adapter / WEIGHTS)
    deeper = {name.replace("layers.0", "layers.9"): f for name, f in factors.items()}
    save_file(factors | deeper, adapter / WEIGHTS)


def _adapter_that_is_infinite(adapter: Path) -> None:
    factors = load_file(adapter / WEIGHTS)
    save_file({name: f * np.float32(1e38) for name, f in factors.items()}, adapter / WEIGHTS)


def _adapter_as_pickle(adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(1))


def _adapter_without_rank(adapter: Path) -> None:
    _json(adapter / CONFIG, r=0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_adapter_of_a_wider, "it is an adapter of another model"),
        (_adapter_of_a_deeper, "layers.9.mlp.up_proj.lora_A.weight', which its architecture"),
        (_adapter_that_is_infinite, "adapter is damaged: model.layers.0.mlp.up_proj.weight holds"),
        (_adapter_as_pickle, "opening a pickle runs its code"),
        (_adapter_without_rank, "adapter_config.json is damaged: Expected `int` >= 1 - at `$.r`"),
    ],
)
def test_an_adapter_that_does_not_fit(
    folder: Path, adapter: Path, output: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(adapter)
    assert message in _refused(folder, output, "--adapter", str(adapter))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts small disks: disk("size=100k"). Only root may, and not in every container."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a disk cannot be mounted here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def read_only(disk: Callable[..., Path], tmp_path: Path) -> Path:
    if os.geteuid() == 0:  # whom a mode does not stop
        return disk("ro")
    (tmp_path / "closed").mkdir(mode=0o500)
    return tmp_path / "closed"


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--resume"]])
def test_a_target_that_is_read_only(folder: Path, read_only: Path, more: list[str]) -> None:
    error = _refused(folder, read_only / "build", *more)
    assert f"cannot write to {read_only}" in error


@pytest.mark.parametrize("part", [0.02, 0.4, 0.8, 0.95])
def test_a_disk_that_is_too_small(
    folder: Path, tiny_build: Callable[..., Build], disk: Callable[..., Path], part: float
) -> None:
    whole = sum(path.stat().st_size for path in tiny_build("llama", "float").path.iterdir())
    place = disk(f"size={int(whole * part)}")
    error = _refused(folder, place / "deep" / "build", "--profile", "float")
    assert re.search(f"{place}.*(No space left|needs .* of disk)", error), error


def test_a_disk_that_is_full_already(folder: Path, disk: Callable[..., Path]) -> None:
    place = disk("size=40k")
    (place / "other").write_bytes(bytes(40 * 1024))
    error = _refused(folder, place / "build")
    assert re.search(f"{place}/build needs .* of disk and there are 0.00 MB", error)


def test_a_full_disk_leaves_the_build_that_stands_there(
    folder: Path, tiny_build: Callable[..., Build], disk: Callable[..., Path]
) -> None:
    old = tiny_build("llama", "portable").path
    size = sum(path.stat().st_size for path in old.iterdir())
    place = disk(f"size={int(size * 1.5)}")
    shutil.copytree(old, place / "build")
    _refused(folder, place / "build", "--force")
    Build(place / "build").check_hashes()


def test_a_full_disk_leaves_no_part_of_the_statistics(
    folder: Path, output: Path, disk: Callable[..., Path], tmp_path: Path
) -> None:
    place = disk("size=8k")
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"document": "the weather"}\n')
    arguments = ["--calibration", str(texts), "--save-statistics", str(place / "s.gguf")]
    error = _refused(folder, output, *arguments)
    assert f"cannot write {place}/s.gguf: No space left" in error
    assert os.listdir(place) == []
