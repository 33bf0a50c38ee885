"""Checkpoints from the Hugging Face hub, through huggingface_hub.

Its own rules hold: the cache (`HF_HOME`), the token (`HF_TOKEN`, or that of `hf auth login`),
`HF_HUB_OFFLINE`, `HF_ENDPOINT`, progress, and going on with a download that broke off. Only what
an export reads is fetched, and of weights only safetensors.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from t1_edge.build import MANIFEST, TOKENIZER
from t1_edge.errors import CheckpointError, DownloadError, MissingExtraError
from t1_edge_export.contracts import CONTRACT
from t1_edge_export.hf_checkpoint import CARD, CONFIG, INDEX, read_decoder, shard_names

PREFIX: Final = "hf:"
"""What a checkpoint on the hub begins with on the command line."""

_NEEDED: Final = (CONFIG, TOKENIZER)
_DESCRIPTION: Final = (*_NEEDED, CARD, INDEX, CONTRACT, MANIFEST)
"""What is small, and says whether the weights are worth fetching."""

_LONGEST_REASON: Final = 200


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A model on the hub.

    Attributes:
        id: Owner and name.
        revision: A branch, a tag or a commit.
    """

    id: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"{PREFIX}{self.id}@{self.revision}"


def parse_repository(text: str) -> Repository:
    """Read hf:owner/name or hf:owner/name@revision.

    Raises:
        CheckpointError: If it is neither.
    """
    found = re.fullmatch(rf"{PREFIX}([\w.-]+/[\w.-]+)(?:@((?!.*\.\.)\S+))?", text)
    if not found:
        raise CheckpointError(
            f"{text!r} names no model on the hub: give {PREFIX}owner/name, or "
            f"{PREFIX}owner/name@revision with a branch, a tag or a commit"
        )
    return Repository(id=found[1], revision=found[2] or "main")


def fetch(
    repository: Repository,
    say: Callable[[str], None],
    *,
    look: Callable[[Path, str], object] = lambda folder, id: None,
) -> Path:
    """Bring a checkpoint into the cache of huggingface_hub; what is there is not fetched again.

    The description comes first, so that gigabytes of a model that cannot be exported stay where
    they are.

    Args:
        repository: Which.
        say: Called with a line of talk when there is something to wait for.
        look: Called with the folder and the model's id before any weights come: what it raises
            keeps them away.

    Returns:
        A Hugging Face folder, whose name is the commit.

    Raises:
        CheckpointError: If t1-edge does not export such a model.
        DownloadError: If the hub or the network does not give it, or, with `HF_HUB_OFFLINE`, the
            cache has not the whole of it.
        MissingExtraError: If huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import constants
    except ImportError as e:
        raise MissingExtraError("huggingface_hub", "export") from e
    commit = None
    if not constants.HF_HUB_OFFLINE:
        say(f"asking the hub for {repository}")
        commit = _commit(repository)
    # By its own name, which the cache notes, so that it is found there without a network.
    folder = _download(repository, repository.revision, _DESCRIPTION)
    if commit not in (None, folder.name):
        raise DownloadError(
            f"{repository} was {commit} a moment ago, and {folder.name} is what came: the hub did "
            "not answer twice, or the model has just changed; run it again"
        )
    _check_there(folder, _NEEDED, repository)
    read_decoder(folder)
    look(folder, repository.id)
    names = shard_names(folder)
    _download(repository, folder.name, names)
    _check_there(folder, names, repository)
    return folder


def _commit(repository: Repository) -> str:
    """The commit that a revision is now.

    Where the hub does not answer, `snapshot_download` takes an old copy and says nothing.

    Raises:
        DownloadError: If the hub does not answer, or has no such model or revision for this user.
    """
    from huggingface_hub import HfApi, constants

    try:
        found = HfApi().model_info(
            repository.id, revision=repository.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except Exception as e:  # of huggingface_hub, and of requests or httpx under it
        raise DownloadError(_reason(e, repository)) from e
    return str(found.sha)


def _download(repository: Repository, revision: str, names: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repository.id, revision=revision, allow_patterns=list(names))
    except Exception as e:  # of huggingface_hub, and of requests or httpx under it
        raise DownloadError(_reason(e, repository)) from e
    return Path(folder)


def _check_there(folder: Path, names: Sequence[str], repository: Repository) -> None:
    """Whether files came: a snapshot may lack what it was asked for, and an old one anything."""
    from huggingface_hub import constants

    missing = next((name for name in names if not (folder / name).is_file()), None)
    if missing and constants.HF_HUB_OFFLINE:
        raise DownloadError(
            f"HF_HUB_OFFLINE is set, and of {repository} the cache lacks {missing}: unset it once"
        )
    if missing:
        raise DownloadError(
            f"{repository} has no {missing}: of the hub, models with {CONFIG}, {TOKENIZER} and "
            "safetensors are read; pickles are never fetched, since opening one runs its code"
        )


def _reason(error: Exception, repository: Repository) -> str:
    """What an error of huggingface_hub means, and what to do."""
    meanings = (meaning for kind, meaning in _meanings(repository) if isinstance(error, kind))
    if known := next(meanings, None):
        return known
    from huggingface_hub import constants

    network = isinstance(error, ConnectionError | TimeoutError)
    if isinstance(error, OSError) and error.errno and not network:
        return f"cannot write to {constants.HF_HUB_CACHE}: {error.strerror}"
    first = _first_cause(error)
    line = next(iter(str(first).splitlines()), "")[:_LONGEST_REASON]
    return (
        f"cannot fetch {repository}: {type(first).__name__}: {line}; check the network and "
        "HF_TOKEN, and run it again: files that came whole are kept. HF_HUB_OFFLINE=1 takes what "
        "the cache has"
    )


def _first_cause(error: BaseException) -> BaseException:
    """What an error began with: "connection refused", under four layers of libraries."""
    while before := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = before
    return error


def _meanings(repository: Repository) -> Iterator[tuple[type[Exception], str]]:
    """Errors that name their cause, the narrower before the wider."""
    from huggingface_hub import constants, errors

    token = "set HF_TOKEN to a token of yours, or log in with: hf auth login"
    page = f"{constants.ENDPOINT}/{repository.id}"
    yield errors.GatedRepoError, f"{repository} is gated: ask for access on {page}, then {token}"
    yield (
        errors.RepositoryNotFoundError,
        f"the hub has no model {repository.id}, or does not show it to you: check its name; if it "
        f"is private, {token}",
    )
    yield (
        errors.RevisionNotFoundError,
        f"{repository.id} has no revision {repository.revision!r}: give a branch, a tag or a "
        f"commit that {page}/commits/main lists",
    )
    yield errors.HFValidationError, f"{repository.id!r} cannot be the name of a model on the hub"
    if constants.HF_HUB_OFFLINE:
        yield (
            errors.LocalEntryNotFoundError,
            f"HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} has no whole {repository}: unset "
            "it once to fetch it",
        )
