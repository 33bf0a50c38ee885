"""Where checkpoints come from: what a build is called, and the hub.

The hub's tests run huggingface_hub itself, in processes of their own (it reads its settings when it
is imported), against a server on the loopback.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hub_server import COMMIT, TOKEN, Hub, serve
from t1_edge.build import Build
from t1_edge.errors import CheckpointError
from t1_edge_export.hub import Repository, parse_repository
from t1_edge_export.sources import find_source
from tiny import Tiny

INDEX = "model.safetensors.index.json"
PIECE = 10 * 2**20
CARD = b"---\nlicense: apache-2.0\n---\n"
CONTRACT = b'base = "chat"\nbudget = 3\n'
NEVER = {
    "pytorch_model.bin": b"a pickle",
    "model.gguf": b"GGUF",
    "adapter_model.safetensors": b"",
    "onnx/model.safetensors": b"",
    "training_args.bin": b"a pickle",
}

FIND = """
import json, sys
from t1_edge.errors import T1Error
from t1_edge_export.sources import find_source
try:
    found = find_source(sys.argv[1], lambda text: print(text, file=sys.stderr))
    source = found.open().source()
    print(json.dumps({"path": str(found.path), "name": found.name, "id": source.id,
                      "revision": source.revision, "licence": source.licence}))
except T1Error as e:
    print(json.dumps({"error": type(e).__name__, "message": str(e)}))
"""


@dataclass(frozen=True, kw_only=True)
class Client:
    """Runs commands whose hub is the local one, and whose cache is their own."""

    home: Path
    url: str

    def run(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        hub = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment = kept | hub | {"NO_PROXY": "127.0.0.1"} | settings
        return subprocess.run(
            [sys.executable, "-c", *command],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip

    def find(self, text: str, **settings: str) -> dict[str, Any]:
        done = self.run(FIND, text, **settings)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def files(tiny: Callable[..., Tiny]) -> dict[str, bytes]:
    """A repository in shards, with much in it that is none of an export's business."""
    return {"README.md": CARD} | NEVER | _files(tiny("llama", shard="60KB").folder)


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    with serve(Hub(files=files)) as served:
        yield served


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(home=tmp_path / "home", url=hub.url)


def _wanted(files: Mapping[str, bytes]) -> set[str]:
    shards = set(json.loads(files[INDEX])["weight_map"].values())
    return {"config.json", "tokenizer.json", "README.md", INDEX} | shards


def test_what_an_export_reads_is_fetched_and_nothing_else(
    hub: Hub, client: Client, files: dict[str, bytes]
) -> None:
    found = client.find("hf:someone/tiny")
    assert (found["name"], found["id"]) == ("tiny", "someone/tiny")
    assert (found["revision"], found["licence"]) == (COMMIT, "apache-2.0")
    folder = Path(found["path"])
    assert folder.is_relative_to(client.home)
    assert _files(folder) == {name: files[name] for name in _wanted(files)}
    assert hub.fetched() == _wanted(files)


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_second_time_only_asks(hub: Hub, client: Client, revision: str) -> None:
    first = client.find(f"hf:someone/tiny@{revision}")
    hub.asked.clear()
    assert client.find(f"hf:someone/tiny@{revision}") == first
    assert hub.fetched() == set()


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_offline_the_cache_is_enough(hub: Hub, client: Client, revision: str) -> None:
    first = client.find(f"hf:someone/tiny{revision}")
    hub.asked.clear()
    hub.status = 500
    assert client.find(f"hf:someone/tiny{revision}", HF_HUB_OFFLINE="1") == first
    assert hub.asked == []


def test_a_single_file_and_its_contract_are_fetched(
    tiny: Callable[..., Tiny], tmp_path: Path
) -> None:
    whole = {"contract.toml": CONTRACT, "pytorch_model.bin": b""} | _files(tiny("llama").folder)
    with serve(Hub(files=whole)) as hub:
        found = Client(home=tmp_path, url=hub.url).find("hf:someone/tiny")
    assert {path.name for path in Path(found["path"]).iterdir()} == {
        "config.json", "tokenizer.json", "model.safetensors", "contract.toml",
    }  # fmt: skip


def test_a_transfer_that_breaks_off_goes_on(hub: Hub, client: Client) -> None:
    """Files that came whole are kept. Of others, the library goes on behind pieces of 10 MiB: its
    line 0.x when it is run again, 1.x when it tries again itself.
    """
    card = CARD + bytes(3 * PIECE)
    hub.files = {**hub.files, "README.md": card}
    hub.cuts = {"README.md": [PIECE + 9, *([0] * 20)]}
    found = client.find("hf:someone/tiny")
    assert found["error"] == "DownloadError"
    assert "run it again: files that came whole are kept" in found["message"]
    hub.cuts = {}
    found = client.find("hf:someone/tiny")
    assert (Path(found["path"]) / "README.md").read_bytes() == card
    fetched = [(name, start) for method, name, start in hub.asked if method == "GET"]
    assert ("README.md", PIECE) in fetched
    assert fetched.count(("tokenizer.json", 0)) == 1


def test_a_snapshot_that_is_not_whole_is_not_taken_for_one(
    hub: Hub, client: Client, files: dict[str, bytes]
) -> None:
    shard = sorted(json.loads(files[INDEX])["weight_map"].values())[-1]
    path = Path(client.find("hf:someone/tiny")["path"]) / shard
    path.resolve().unlink()
    path.unlink()
    found = client.find("hf:someone/tiny", HF_HUB_OFFLINE="1")
    assert found["error"] == "DownloadError"
    assert re.search("HF_HUB_OFFLINE is set, and .*(lacks|no whole)", found["message"])
    assert client.find("hf:someone/tiny")["path"] == str(path.parent)
    assert path.read_bytes() == files[shard]


@pytest.mark.parametrize(
    ("name", "state", "settings", "message"),
    [
        ("someone/else", {}, {}, "has no model someone/else, or does not show it to you"),
        ("someone/tiny@gone", {}, {}, "someone/tiny has no revision 'gone'"),
        ("someone/tiny", {"gated": True}, {}, "is gated: ask for access on http.*HF_TOKEN"),
        ("someone/tiny", {"private": True}, {}, "has no model someone/tiny, or does not show"),
        ("someone/tiny", {"gated": True}, {"HF_TOKEN": "hf_wrong"}, "is gated"),
        ("someone/tiny", {"status": 500}, {}, r"cannot fetch hf:someone/tiny@main: .*500"),
        ("someone/tiny", {}, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, and .*no whole"),
        ("someone/tiny", {}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot fetch .*Connect"),
        ("a--b/c", {}, {}, "'a--b/c' cannot be the name"),
    ],
)
def test_what_does_not_come_is_one_clear_error(
    hub: Hub, client: Client, name: str, state: Any, settings: Any, message: str
) -> None:
    for attribute, value in state.items():
        setattr(hub, attribute, value)
    found = client.find(f"hf:{name}", **settings)
    assert found["error"] == "DownloadError"
    assert re.search(message, found["message"]), found["message"]
    assert not hub.fetched() & set(_wanted(hub.files) - {"README.md"})


@pytest.mark.parametrize("state", ["gated", "private"])
def test_a_token_opens_what_is_gated(hub: Hub, client: Client, state: str) -> None:
    setattr(hub, state, True)
    assert client.find("hf:someone/tiny", HF_TOKEN=TOKEN)["revision"] == COMMIT


def test_without_the_hub_an_old_copy_is_not_taken_silently(hub: Hub, client: Client) -> None:
    client.find("hf:someone/tiny")
    hub.status = 503
    assert "HF_HUB_OFFLINE=1 takes what the cache has" in client.find("hf:someone/tiny")["message"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"config.json": b'{"architectures": ["GPT2LMHeadModel"]}'}, "CheckpointError", "GPT2"),
        ({"config.json": None}, "DownloadError", "has no config.json: of the hub, models with"),
        ({"tokenizer.json": None}, "DownloadError", "has no tokenizer.json"),
        ({INDEX: None}, "DownloadError", "no model.safetensors.*pickles are never fetched"),
        (
            {INDEX: b'{"weight_map": {"a": "pytorch_model.bin"}}'},
            "CheckpointError",
            "names 'pytorch_model.bin', which is no safetensors",
        ),
        ({INDEX: b'{"weight_map": {"a": "../x"}}'}, "CheckpointError", "outside the folder"),
    ],
)
def test_weights_of_what_cannot_be_exported_are_not_fetched(
    hub: Hub, client: Client, changes: dict[str, bytes | None], error: str, message: str
) -> None:
    hub.files = {k: v for k, v in {**hub.files, **changes}.items() if v is not None}
    found = client.find("hf:someone/tiny")
    assert found["error"] == error
    assert re.search(message, found["message"]), found["message"]
    assert not any(re.search(r"safetensors$|bin$", name) for name in hub.fetched())


def test_a_cache_that_cannot_be_written_is_named(client: Client) -> None:
    client.home.write_text("a file")
    found = client.find("hf:someone/tiny")
    assert found["error"] == "DownloadError"
    assert f"cannot write to {client.home}" in found["message"]


def test_the_command_exports_from_the_hub(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.files = {**hub.files, "contract.toml": CONTRACT}
    main = "from t1_edge.cli import main; main()"
    arguments = ["export", "hf:someone/tiny", "--profile", "float", "--format", "onnx"]
    done = client.run(main, *arguments, T1_EDGE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "contract.toml" in done.stderr
    build = Build(Path(done.stdout.strip()))
    assert build.path.name == "tiny"
    source = build.manifest.source
    assert (source.id, source.revision) == ("someone/tiny", COMMIT)
    assert build.manifest.contract.budget == 3
    assert f"someone/tiny (commit {COMMIT})" in build.file("README.md").read_text()


def test_a_preset_that_asks_does_so_before_anything_is_fetched(hub: Hub, client: Client) -> None:
    main = "from t1_edge.cli import main; main()"
    done = client.run(main, "export", "hf:someone/tiny", "--contract", "mre-t1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not guess" in done.stderr
    assert hub.asked == []


def test_of_a_model_whose_prompts_are_not_public_no_weights_are_fetched(
    hub: Hub, client: Client, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.id = "ForwardAILabs/MRE-T1"
    main = "from t1_edge.cli import main; main()"
    command = ["export", f"hf:{hub.id}", "--dry-run"]
    done = client.run(main, *command, T1_EDGE_CACHE=str(tmp_path / "cache"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not guess" in done.stderr
    assert hub.fetched() == {"config.json", "tokenizer.json", "README.md", INDEX}
    done = client.run(main, *command, "--contract", "chat", T1_EDGE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == _wanted(files)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hf:a/b", Repository(id="a/b", revision="main")),
        ("hf:Qwen/Qwen3-0.6B@v1.0", Repository(id="Qwen/Qwen3-0.6B", revision="v1.0")),
        ("hf:a/b@refs/pr/1", Repository(id="a/b", revision="refs/pr/1")),
    ],
)
def test_names_on_the_hub(text: str, found: Repository) -> None:
    assert parse_repository(text) == found


@pytest.mark.parametrize("text", ["hf:", "hf:a", "hf:a/b/c", "hf:a/b@", "hf:a/b@x/../y", "hf:a /b"])
def test_what_is_no_name_on_the_hub_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="names no model on the hub: give hf:owner/name"):
        find_source(text)


@pytest.mark.parametrize(
    ("path", "name"),
    [("Qwen3-0.6B", "Qwen3-0.6B"), ("model.Q4_0.gguf", "model.Q4_0"), (".", "here"), ("a/", "a")],
)
def test_a_build_is_called_as_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if path.endswith(".gguf"):
        Path(path).touch()
    else:
        Path(path).mkdir(exist_ok=True)
    found = find_source(path)
    assert (found.name, found.path, found.repository) == (name, Path(path), None)
