"""Every error that t1-edge raises on purpose.

    T1Error                 exit code 1; a message says what, where, and what to do
    ├── BuildError          a build directory is missing, damaged, or of another schema
    ├── CacheError          a named build or checkpoint is not on this machine
    ├── CheckpointError     float weights or a tokenizer that cannot be read
    ├── ContractError       templates, special tokens or limits that do not fit together
    ├── DataError           a bench data set that does not have the expected shape
    ├── DownloadError       something had to be fetched and could not be
    ├── EngineError         an engine failed, or gave numbers that are no vector
    │   ├── DeviceError     an asked-for device or engine cannot run here
    │   └── KilledError     an engine's process was killed: memory may have run out
    ├── ExportError         a build could not be written
    │   └── GateError       a build was written but missed its bounds
    ├── InputError          a text or an argument that cannot be encoded
    └── MissingExtraError   an optional package is not installed; names the pip command

Errors of other libraries are translated at the boundary where they arise (``raise ... from e``).
"""


class T1Error(Exception):
    """Base of every error that t1-edge raises on purpose."""


class BuildError(T1Error):
    """A build directory is missing, damaged, or of another schema."""


class CacheError(T1Error):
    """A named build or checkpoint is not on this machine."""


class CheckpointError(T1Error):
    """Float weights or a tokenizer that cannot be read."""


class ContractError(T1Error):
    """Templates, special tokens or limits that do not fit together."""


class DataError(T1Error):
    """A bench data set that does not have the expected shape."""


class DownloadError(T1Error):
    """Something had to be fetched and could not be."""


class EngineError(T1Error):
    """An engine failed, or gave numbers that are no vector."""


class DeviceError(EngineError):
    """An asked-for device or engine cannot run here."""


class KilledError(EngineError):
    """An engine's process was killed, as systems do when memory runs out."""


class ExportError(T1Error):
    """A build could not be written."""


class GateError(ExportError):
    """A build was written but missed its bounds, and so was not published."""


class InputError(T1Error):
    """A text or an argument that cannot be encoded."""


class MissingExtraError(T1Error):
    """An optional package is not installed.

    Args:
        package: The distribution that is missing, as pip names it.
        extra: The extra of t1-edge that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed. Install it with: pip install 't1-edge[{extra}]' "
            f"(in a checkout of t1-edge: pip install '.[{extra}]')"
        )
        self.package = package
        self.extra = extra
