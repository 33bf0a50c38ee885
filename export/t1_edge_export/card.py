"""The model card of a build, written from its manifest."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from t1_edge.build import CUDA_GRAPH, Manifest
from t1_edge.verification import EngineFigures
from t1_edge_export.decoder import projection

CARD: Final = "README.md"


def model_card(manifest: Manifest) -> str:
    """README.md of a build, as Markdown with the front matter that model hubs read."""
    sections = (_front_matter, _summary, _use, _quality, _contract, _files)
    return "\n\n".join(section(manifest) for section in sections) + "\n"


def _front_matter(manifest: Manifest) -> str:
    lines = ["---", f"license: {manifest.source.licence}", f"base_model: {manifest.source.id}"]
    tags = ["- t1-edge", *(f"- {format}" for format in manifest.formats)]
    return "\n".join([*lines, "tags:", *tags, "---"])


def _summary(manifest: Manifest) -> str:
    decoder, source = manifest.decoder, manifest.source
    counts = ", ".join(f"{n} tensors {encoding}" for encoding, n in manifest.encodings.items())
    if manifest.eight_bit:
        counts += f"; of the linear layers, {_by_kind(manifest.eight_bit)} have 8 bits"
    if manifest.calibration:
        counts += f"; calibrated with {manifest.calibration}"
    commit = f" (commit {source.revision})" if source.revision else ""
    lines = [
        f"# {manifest.name}",
        "",
        f"A t1-edge build of {source.id}{commit}: a {decoder.family} decoder of {decoder.layers} "
        f"blocks that writes a short thought about a query and gives vectors of {decoder.hidden} "
        f"dimensions. Profile `{manifest.profile}` ({counts}).",
    ]
    return "\n".join([*lines, *(["", source.note] if source.note else [])])


def _by_kind(tensors: Sequence[str]) -> str:
    """How many tensors there are of each projection: "3 v_proj, 1 down_proj"."""
    kinds = Counter(projection(name) for name in tensors)
    return ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())


def _use(manifest: Manifest) -> str:
    return "\n".join(
        [
            "## Use",
            "",
            "```python",
            "from t1_edge import Encoder",
            "",
            f'encoder = Encoder.load("{manifest.name}")  # or the path of this directory',
            'query = encoder.encode_query("why do leaves turn red")',
            "```",
        ]
    )


def _quality(manifest: Manifest) -> str:
    found = manifest.verification
    token, thoughts = manifest.contract.emb_token, f"{found.positions} places of its thoughts"
    lines = [
        "## Against the float weights",
        "",
        f"Teacher-forced: cosine at `{token}` over {found.rows} golden rows, and the divergence of "
        f"the next token's distribution at {thoughts}, in nats:",
        "",
        "| format | engine | mean | 1st percentile | worst | divergence |",
        "|---|---|---|---|---|---|",
        *(_forced(format, figures) for format, figures in found.engines.items()),
        "",
        "Thinking freely about the golden queries: how many thoughts are the float weights', and "
        "the cosine behind each one's own:",
        "",
        "| format | budget | same | mean | worst |",
        "|---|---|---|---|---|",
        *(
            f"| {format} | {free.budget} | {free.same:.0%} | {free.cosine_mean:.4f} | "
            f"{free.cosine_min:.4f} |"
            for format, figures in found.engines.items()
            for free in figures.free
        ),
    ]
    if found.cross_engine_min is not None:
        lines += ["", f"Between the engines, the worst is {found.cross_engine_min:.4f}."]
    if found.documents is not None:
        lines += [
            "",
            "Documents are read by a graph of their own in `onnx`, of the same weights in 8 bits: "
            f"{found.documents.cosine_mean:.4f} (worst {found.documents.cosine_min:.4f}).",
        ]
    if CUDA_GRAPH in manifest.files:
        lines += ["", f"`{CUDA_GRAPH}` is over the same weights as `onnx`; no gate has run it."]
    if found.drift_allowed:
        lines += ["", "**This build misses the bounds of its profile** and was published by hand."]
    return "\n".join(lines)


def _forced(format: str, figures: EngineFigures) -> str:
    return (
        f"| {format} | {figures.library} | {figures.cosine_mean:.4f} | {figures.cosine_p1:.4f} | "
        f"{figures.cosine_min:.4f} | {figures.divergence_mean:.4f} |"
    )


def _contract(manifest: Manifest) -> str:
    contract = manifest.contract
    return "\n".join(
        [
            "## Contract",
            "",
            "| part | value |",
            "|---|---|",
            f"| query | `{_inline(contract.query)}` |",
            f"| document | `{_inline(contract.document)}` |",
            f"| thought | `{contract.think_open}` … `{contract.think_close}`, "
            f"{contract.budget} tokens unless the caller says otherwise |",
            f"| longest query | {contract.max_query_tokens} tokens |",
            f"| longest document | {contract.max_document_tokens} tokens |",
            f"| fingerprint | `{manifest.fingerprint}` |",
        ]
    )


def _files(manifest: Manifest) -> str:
    rows = [f"| {name} | {entry.size:,} |" for name, entry in manifest.files.items()]
    return "\n".join(["## Files", "", "| file | bytes |", "|---|---|", *rows])


def _inline(template: str) -> str:
    return template.replace("\n", "\\n").replace("|", "\\|")
