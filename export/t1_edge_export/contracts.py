"""The contract of an export: a preset's, a file's, or that which lies beside the checkpoint.

A contract file is TOML or JSON of a contract's fields. With `base = "PRESET"` it begins from a
preset, and its own fields stand in the place of the preset's. A `t1.json` is a contract file too:
the contract that it holds is taken.
"""

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from t1_edge.build import MANIFEST, SCHEMA
from t1_edge.contract import Contract
from t1_edge.errors import ContractError
from t1_edge_export.checkpoint import bare_name
from t1_edge_export.presets import DEFAULT, OUTLINES, PRESETS, Outline

CONTRACT: Final = "contract.toml"
"""What a contract file is called that lies beside its checkpoint."""

NAMES: Final = (*PRESETS, *OUTLINES)
"""Every preset."""


def find_contract(name_or_path: str) -> Contract:
    """A contract by its preset's name, or from a file.

    Args:
        name_or_path: One of `NAMES`, a TOML or JSON file of a contract's fields, or a t1.json.

    Raises:
        ContractError: If there is neither, the file is no contract, or the preset is the outline of
            a contract that somebody has to complete.
    """
    if name_or_path in NAMES:
        return _complete({"base": name_or_path}, f"preset {name_or_path}")
    path = Path(name_or_path)
    if not os.path.isfile(path):  # false for a path that is too long, where Path raises
        known = ", ".join(NAMES)
        raise ContractError(f"no contract {name_or_path!r}: presets are {known}; or give a file")
    return _complete(_fields(path), str(path))


def contract_beside(
    checkpoint: Path, id: str, say: Callable[[str], None] = lambda text: None
) -> Contract:
    """The contract of a checkpoint for which none was named.

    Args:
        checkpoint: A Hugging Face folder, which may hold a contract.toml or a t1.json, or a GGUF,
            which may have one beside it.
        id: What its publisher calls it.
        say: Called with a line on which contract it is.

    Returns:
        What lies there, or the default preset's.

    Raises:
        ContractError: If what lies there is no contract, or both do and differ; or nothing does,
            and it is a model whose contract somebody has to complete.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    paths = [path for name in (CONTRACT, MANIFEST) if (path := folder / name).is_file()]
    if not paths:
        _check_no_outline(id)
        say(
            f"{checkpoint} brings no {CONTRACT} and no {MANIFEST}: taking the preset {DEFAULT}, "
            "for a chat model that was not trained to embed; --contract names another"
        )
        return PRESETS[DEFAULT]
    found = [find_contract(str(path)) for path in paths]
    if found[0] != found[-1]:
        raise ContractError(
            f"{paths[0]} and the contract in {paths[-1]} differ: name the right one with --contract"
        )
    say(f"taking the contract in {paths[0]}")
    return found[0]


def _check_no_outline(id: str) -> None:
    """The default preset would be a guess for a model whose own templates are not public."""
    for name, outline in OUTLINES.items():
        if bare_name(id) == bare_name(outline.model):
            raise ContractError(_asking(name, outline, outline.asks))


def _fields(path: Path) -> dict[str, Any]:
    """What a contract file says."""
    try:
        raw = path.read_bytes()
        found = (
            tomllib.loads(raw.decode())
            if path.suffix == ".toml"
            else msgspec.json.decode(raw, type=dict[str, Any])
        )
    except OSError as e:
        raise ContractError(f"cannot read {path}: {e.strerror}") from e
    except (msgspec.MsgspecError, tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        known = path.suffix in (".toml", ".json")
        taken = "" if known else "; it is read as JSON, for it is not called .toml"
        raise ContractError(f"{path} is no contract: {e}{taken}") from e
    return _of_manifest(found, path) if "schema" in found else found


def _of_manifest(manifest: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The contract of a t1.json."""
    if manifest["schema"] != SCHEMA:
        raise ContractError(
            f"{path} has schema {manifest['schema']!r}, this t1-edge reads {SCHEMA}: write its "
            f"contract into a {CONTRACT}, as docs/contracts.md has it, and give it with --contract"
        )
    contract = manifest.get("contract")
    if not isinstance(contract, dict):
        raise ContractError(f"{path} holds no contract")
    return contract


def _complete(own: Mapping[str, Any], where: str) -> Contract:
    """A contract from a file's fields, upon those of the preset that it begins from."""
    base = own.get("base")
    fields = {name: value for name, value in own.items() if name != "base"}
    try:
        return msgspec.convert(_preset(base, fields) | fields, Contract)
    except msgspec.ValidationError as e:
        raise ContractError(f"{where} is no contract: {e}") from e
    except ContractError as e:
        raise ContractError(f"{where}: {e}") from e


def _preset(base: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a preset; none if no base is named."""
    if base is None:
        return {}
    if not isinstance(base, str) or base not in NAMES:
        raise ContractError(f"no preset {base!r} to begin from; there are {', '.join(NAMES)}")
    if base in OUTLINES:
        outline = OUTLINES[base]
        missing = [name for name in outline.asks if name not in own]
        if missing:
            raise ContractError(_asking(base, outline, missing))
        return dict(outline.fields)
    found: dict[str, Any] = msgspec.to_builtins(PRESETS[base])
    return found


def _asking(name: str, outline: Outline, missing: Sequence[str]) -> str:
    lines = ", ".join(f'{field} = "..."' for field in missing)
    return (
        f"the contract of {outline.model} is not public in whole, and t1-edge does not guess: "
        f"read {', '.join(missing)} on its card, {outline.card}, and write a {CONTRACT} of "
        f'the lines base = "{name}", {lines} (a template has {{text}} where the text goes). '
        f"It is taken from beside the checkpoint, or with --contract {CONTRACT}"
    )
