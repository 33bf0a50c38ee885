"""Contracts from presets and files, and those that lie beside a checkpoint."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from t1_edge.build import GGUF_MODEL, Build
from t1_edge.cli import main
from t1_edge.contract import Contract
from t1_edge.errors import ContractError
from t1_edge_export.contracts import contract_beside, find_contract
from t1_edge_export.presets import OUTLINES, PRESETS
from tiny import TINY_CONTRACT, Tiny

TOML = """
query = "<|im_start|>Find: {text}<|im_end|>"
document = "Text: {text}"
adds = ["<think>", "</think>", "<emb_token>"]
stop = ["<|im_end|>"]
budget = 4
max_query_tokens = 200
max_document_tokens = 200
"""

CARD = """
query = "Q {text}"
document = "D {text}"
think_open = "<a>"
think_close = "<b>"
"""


def _manifest(contract: Contract, schema: int = 6) -> bytes:
    return json.dumps({"schema": schema, "contract": msgspec.to_builtins(contract)}).encode()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    def write(name: str, text: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


Write = Callable[[str, str | bytes], str]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("contract.toml", TOML),
        ("mine.json", msgspec.json.encode(TINY_CONTRACT)),
        ("t1.json", _manifest(TINY_CONTRACT)),
        ("any.name", _manifest(TINY_CONTRACT)),
    ],
)
def test_every_kind_of_file_gives_the_contract(write: Write, name: str, text: str | bytes) -> None:
    assert find_contract(write(name, text)) == TINY_CONTRACT


def test_a_builds_own_manifest_gives_its_contract(tiny_build: Callable[..., Build]) -> None:
    path = tiny_build("llama", "float").path
    assert find_contract(str(path / "t1.json")) == TINY_CONTRACT
    talk: list[str] = []
    assert contract_beside(path / GGUF_MODEL, "tiny", talk.append) == TINY_CONTRACT
    assert talk == [f"taking the contract in {path / 't1.json'}"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole_and_may_be_begun_from(write: Write, name: str) -> None:
    preset = find_contract(name)
    assert preset == PRESETS[name]
    assert set(preset.adds) == set(preset.own_tokens)
    found = find_contract(write("contract.toml", f'base = "{name}"\nbudget = 7\n'))
    assert found == msgspec.structs.replace(preset, budget=7)


def test_what_is_not_public_is_asked_for(write: Write) -> None:
    with pytest.raises(ContractError, match="does not guess: read query, document, think_open, th"):
        find_contract("mre-t1")
    half = 'base = "mre-t1"\nquery = "{text}"\ndocument = "{text}"\n'
    with pytest.raises(ContractError, match=r"read think_open, think_close on its card, https"):
        find_contract(write("contract.toml", half))


def test_what_is_public_is_held(write: Write) -> None:
    found = find_contract(write("contract.toml", 'base = "mre-t1"\n' + CARD))
    assert found.emb_token == "<emb_token>"
    assert found.stop == ("<|im_end|>", "<|endoftext|>")
    assert found.adds == ()
    assert (found.query, found.document) == ("Q {text}", "D {text}")
    assert (found.think_open, found.think_close) == ("<a>", "<b>")


def test_the_files_in_the_docs_are_read_as_they_say(write: Write) -> None:
    page = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text(encoding="utf-8")
    small, outline = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    found = find_contract(write("contract.toml", small))
    assert found == msgspec.structs.replace(PRESETS["chat"], document="{text}", budget=8)
    found = find_contract(write("contract.toml", outline.replace('"..."', '"{text}"')))
    assert found.emb_token == "<emb_token>"


@pytest.mark.parametrize("name", OUTLINES)
def test_an_outline_asks_for_what_it_does_not_hold(name: str) -> None:
    outline = OUTLINES[name]
    assert not outline.fields.keys() & set(outline.asks)
    assert {*outline.fields, *outline.asks} <= {f.name for f in msgspec.structs.fields(Contract)}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.toml", 'query = "{text}"', "c.toml is no contract: .*`document`"),
        ("c.toml", "query = ", "c.toml is no contract: Invalid value"),
        ("c.toml", b"\xff", "c.toml is no contract: 'utf-8' codec"),
        ("c.toml", TOML + "surprise = 1", "c.toml is no contract: .*`surprise`"),
        ("c.toml", TOML + 'base = "nobodys"', "no preset 'nobodys'.*chat, nano, mre-t1"),
        ("c.toml", TOML + "base = [1]", r"no preset \[1\]"),
        ("c.toml", 'base = "chat"\nbudget = "four"', r"Expected `int`, got `str`.*budget"),
        ("c.toml", 'base = "chat"\nadds = ["<x>"]', "c.toml: adds names '<x>'"),
        ("c.toml", 'base = "chat"\nquery = "none"', "c.toml: the query template must hold"),
        ("c.json", '{"query": "{text}"}', "c.json is no contract: .*`document`"),
        ("c.json", "", "c.json is no contract"),
        ("c.json", "[]", "c.json is no contract"),
        ("c.json", b"\xff", "c.json is no contract"),
        ("README.md", "# A model", r"README.md is no contract: .* it is read as JSON"),
        ("t1.json", _manifest(TINY_CONTRACT, schema=5), "t1.json has schema 5, this t1-edge reads"),
        ("t1.json", '{"schema": 6}', "t1.json holds no contract"),
        ("t1.json", '{"schema": 6, "contract": []}', "t1.json holds no contract"),
    ],
)
def test_what_is_no_contract_is_named(
    write: Write, name: str, text: str | bytes, message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        find_contract(write(name, text))


def test_a_name_that_is_none_is_told_the_others() -> None:
    with pytest.raises(ContractError, match="presets are chat, nano, mre-t1; or give a file"):
        find_contract("nobodys")


@pytest.mark.parametrize("checkpoint", ["", "model.gguf"])
@pytest.mark.parametrize(
    ("files", "taken", "contract"),
    [
        ({}, "brings no contract.toml and no t1.json: taking the preset chat", PRESETS["chat"]),
        ({"contract.toml": TOML}, "contract.toml", TINY_CONTRACT),
        ({"t1.json": _manifest(TINY_CONTRACT)}, "t1.json", TINY_CONTRACT),
        (
            {"contract.toml": TOML, "t1.json": _manifest(TINY_CONTRACT)},
            "contract.toml",
            TINY_CONTRACT,
        ),
    ],
)
def test_the_contract_beside_a_checkpoint_is_taken(
    write: Write, tmp_path: Path, checkpoint: str, files: Any, taken: str, contract: Contract
) -> None:
    for name, text in {"model.gguf": b"", **files}.items():
        write(name, text)
    talk: list[str] = []
    assert contract_beside(tmp_path / checkpoint, "tiny", talk.append) == contract
    assert len(talk) == 1
    assert taken in talk[0]


def test_two_that_differ_are_not_chosen_from(write: Write, tmp_path: Path) -> None:
    write("contract.toml", TOML)
    write("t1.json", _manifest(PRESETS["chat"]))
    with pytest.raises(ContractError, match=r"differ: name the right one with --contract"):
        contract_beside(tmp_path, "tiny")


def test_one_that_is_damaged_is_not_passed_over(write: Write, tmp_path: Path) -> None:
    write("contract.toml", TOML)
    write("t1.json", "{")
    with pytest.raises(ContractError, match=r"t1\.json is no contract"):
        contract_beside(tmp_path, "tiny")


@pytest.mark.parametrize("id", ["ForwardAILabs/MRE-T1", "somebody/mre-t1", "MRE T1"])
def test_no_prompt_is_guessed_for_a_model_whose_own_is_not_public(
    write: Write, tmp_path: Path, id: str
) -> None:
    with pytest.raises(ContractError, match="does not guess: read query, document, think_open, th"):
        contract_beside(tmp_path, id)
    write("contract.toml", TOML)
    assert contract_beside(tmp_path, id) == TINY_CONTRACT


@pytest.mark.parametrize("named", ["folder", "config"])
def test_the_command_asks_for_what_is_not_public(
    tiny: Callable[..., Tiny], tmp_path: Path, own_cache: Path, named: str
) -> None:
    folder = tmp_path / ("MRE-T1" if named == "folder" else "model")
    shutil.copytree(tiny("qwen3").folder, folder)
    if named == "config":
        config = json.loads((folder / "config.json").read_text())
        config |= {"_name_or_path": "ForwardAILabs/MRE-T1"}
        (folder / "config.json").write_text(json.dumps(config))
    command = ["export", str(folder), "--dry-run"]
    found = CliRunner().invoke(main, command)
    assert (found.exit_code, found.stdout) == (1, "")
    assert "ForwardAILabs/MRE-T1 is not public in whole" in found.stderr
    found = CliRunner().invoke(main, [*command, "--contract", "chat"])
    assert found.exit_code == 0, found.output
