"""Int4 files as llama.cpp and onnxruntime-genai's builder make them of float weights."""

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import click

from peers.checkpoint_folder import write
from peers.exporters import BUILDER, LLAMA_CPP_ROUTE, QUANTIZE, install
from peers.process_tree import run
from t1_edge.build import GGUF_MODEL
from t1_edge_export.checkpoint import Checkpoint
from t1_edge_export.decoder import TensorSpec

BUILDER_GRAPH: Final = "model.onnx"
"""What the builder names its graph; the weights lie beside it."""

_ROWS: Final = 4096
"""Of a tensor, read at once."""


def quantize_by_llama_cpp(checkpoint: Checkpoint, folder: Path, work: Path) -> Path:
    """Q4_0 as llama.cpp's converter and `llama_model_quantize` make it of a float32 checkpoint.

    Args:
        checkpoint: The float weights.
        folder: Where the files go; emptied first.
        work: Where environments and the log are, and the checkpoint as peers read it.

    Returns:
        The GGUF.

    Raises:
        click.ClickException: If converting or quantizing fails; the log stays in `work`.
    """
    there = install(LLAMA_CPP_ROUTE, work)
    python, convert = there["python"], there["sources"] + "/convert_hf_to_gguf.py"
    whole, out = _float32(checkpoint, work), _empty(folder)
    true, found = out / "float.gguf", out / GGUF_MODEL
    _command([python, convert, str(whole), "--outtype", "f32", "--outfile", str(true)], work)
    _command([python, "-c", QUANTIZE, str(true), str(found)], work)
    true.unlink()
    return found


def quantize_by_builder(
    checkpoint: Checkpoint, folder: Path, work: Path, *, head: bool = True
) -> Path:
    """Int4 as onnxruntime-genai's builder makes it of a float32 checkpoint.

    Args:
        checkpoint: The float weights.
        folder: Where the files go; emptied first.
        work: Where environments and the log are, and the checkpoint as peers read it.
        head: Whether the graph has one, which ONNX Runtime runs even where nobody fetches logits.

    Returns:
        The graph, which gives hidden states of every position, and logits where it has a head.

    Raises:
        click.ClickException: If building fails; the log stays in `work`.
    """
    python = install(BUILDER, work)["python"]
    whole, out = _float32(checkpoint, work), _empty(folder)
    module = ["-m", "onnxruntime_genai.models.builder", "-m", str(whole), "-o", str(out)]
    options = ["-p", "int4", "-e", "cpu", "-c", str(out / "cache")]
    outputs = "include_hidden_states=1" if head else "exclude_lm_head=1"
    _command([python, *module, *options, "--extra_options", outputs], work)
    return out / BUILDER_GRAPH


def _float32(checkpoint: Checkpoint, work: Path) -> Path:
    """A folder with the checkpoint, as others read it."""
    whole = work / "float32"
    write(whole, checkpoint.decoder, checkpoint.tokenizer, "float32", partial(_bytes, checkpoint))
    return whole


def _bytes(checkpoint: Checkpoint, spec: TensorSpec) -> Iterator[bytes]:
    """A tensor in float32, some rows at a time."""
    for start in range(0, spec.shape[0], _ROWS):
        stop = min(start + _ROWS, spec.shape[0])
        yield checkpoint.rows(spec.name, start, stop).astype("<f4").tobytes()


def _command(command: Sequence[str], work: Path) -> None:
    log = work / "int4.log"
    if run(command, log=log).returncode:
        raise click.ClickException(f"{command[0]} failed: see {log}")


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
