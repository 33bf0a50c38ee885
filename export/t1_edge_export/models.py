"""Models that come with t1-edge: a base from a package index, and an adapter that ships."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from t1_edge import __version__
from t1_edge.build import Build, Decoder, Format
from t1_edge.cache import model_dir
from t1_edge.engines.opening import installed_engines
from t1_edge.errors import BuildError, ExportError, MissingExtraError
from t1_edge_export.adapter import merged_sha256, with_adapter
from t1_edge_export.checkpoint import Checkpoint, open_checkpoint
from t1_edge_export.formats import require_writer
from t1_edge_export.precision import Budget
from t1_edge_export.presets import PRESETS
from t1_edge_export.pull import WHEELS, pull
from t1_edge_export.quantize.calibration import Calibration
from t1_edge_export.quantize.quantizer import weighted
from t1_edge_export.quantize.statistics import Statistics, read_statistics
from t1_edge_export.request import Request
from t1_edge_export.vocabulary import with_tokens

STATISTICS: Final = "statistics.gguf"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that anyone with a package index can have.

    Attributes:
        name: Of the model, its contract's preset, and its build in the cache.
        base: The checkpoint that `pull` brings.
        folder: Holds the adapter as PEFT writes it, and the statistics that weigh its rounding.
        bits: Of a weight of the linear layers, on average.
    """

    name: str
    base: str
    folder: Path
    bits: float

    def cached(self, formats: Sequence[Format]) -> Build | None:
        """The build that an earlier export left, if it is whole and of what ships now.

        Args:
            formats: What it has to hold.

        Raises:
            ExportError: If it holds some of what an installation with other engines needs, which a
                new one would take away.
        """
        try:
            found = Build(model_dir(self.name))
        except BuildError:
            return None
        manifest = found.manifest
        if not (
            manifest.tools.get("t1-edge") == __version__
            and manifest.contract == PRESETS[self.name]
            and manifest.source.sha256 == self._sha256()
            and manifest.calibration
            == weighted(self._statistics(manifest.decoder), manifest.decoder).calibration
            and (found.has_documents_graph or "onnx" not in manifest.formats)
        ):
            return None
        try:
            found.check_hashes()
        except BuildError:
            return None
        if set(formats) <= set(manifest.formats):
            return found
        if lost := set(manifest.formats) - set(formats):
            raise ExportError(
                f"{found.path} was made for {', '.join(manifest.formats)}, and here only "
                f"{', '.join(formats)} can be written: install the engine of {min(lost)} too, or "
                "set T1_EDGE_CACHE to a place of this installation's own"
            )
        return None

    def open(self, say: Callable[[str], None]) -> Checkpoint:
        """The base, pulled if it is not there, merged with the adapter.

        Args:
            say: Called with a line of talk when there is something to wait for.

        Raises:
            DownloadError: If the base cannot be fetched.
            MissingExtraError: If the gguf package is not installed.
        """
        base = open_checkpoint(pull(self.base, say=say))
        known = with_tokens(base, PRESETS[self.name])
        return with_adapter(known, self.folder, name=self.base, say=say)

    def request(self, checkpoint: Checkpoint, formats: Sequence[Format]) -> Request:
        """What to export, into the cache; an older build there is replaced.

        Args:
            checkpoint: What `open` gave.
            formats: Engines to write for.
        """
        return Request(
            name=self.name,
            destination=model_dir(self.name),
            contract=PRESETS[self.name],
            formats=formats,
            calibration=Calibration(statistics=self._statistics(checkpoint.decoder)),
            budget=Budget(bits=self.bits),
            documents="onnx" in formats,
            force=True,
            resume=None,
        )

    def _statistics(self, decoder: Decoder) -> Statistics:
        return read_statistics(self.folder / STATISTICS, decoder)

    def _sha256(self) -> str:
        return merged_sha256(WHEELS[self.base].member_sha256, self.folder)


MODELS: Final[Mapping[str, Model]] = {
    "nano": Model(
        name="nano",
        base="smollm2-135m",
        folder=Path(__file__).parent / "data" / "nano",
        bits=5.5,
    )
}


def formats_here() -> list[Format]:
    """The formats that this installation can write and verify, the preferred one first.

    Raises:
        MissingExtraError: If no engine is installed, or what writes for one or reads the base.
    """
    found = installed_engines()
    if not found:
        raise MissingExtraError("onnxruntime", "cpu")
    require_writer("gguf")  # which reads the base; before that is fetched
    for format in found:
        require_writer(format)
    return found
