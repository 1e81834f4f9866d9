"""Weights by name: files of the Hugging Face hub as `hf://owner/name@revision/file`.

Only a name with that prefix reaches for the network, through the package huggingface_hub (extra `hub`): its cache, its
token and its variables hold (HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN). A downloaded file is read as any other.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn, TypeAlias
from urllib.parse import unquote

from camae.errors import CamaeError, MissingBackendError, OutputError
from camae.files import output_error

PREFIX = "hf://"
# Looked for in this order where a name says no file.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pt", "model.ckpt")
# Where weights came from: repository, revision (as asked for), commit, file, sha256; empty for files of one's own.
Origin: TypeAlias = Mapping[str, str]
_FORM = (
    f"write it as {PREFIX}owner/name@revision, or with a file: {PREFIX}owner/name@revision/model.safetensors"
)
# A Path of such a name has lost one slash.
_START = re.compile(r"hf:/{1,2}(?=[^/])")
_NAME = re.compile(r"(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<file>.+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubName:
    """Parts of a name. revision: branch, tag or commit; file: "" for the first of `WEIGHT_FILES` that is there."""

    repository: str
    revision: str
    file: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}@{self.revision}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True)
class HubFile:
    """A file of the hub in the cache of this machine, and where it came from."""

    path: Path
    origin: Origin


def is_hub_name(path: object) -> bool:
    """Whether a path is a name of the hub."""
    return _START.match(str(path)) is not None


def parse_name(path: str | Path) -> HubName:
    """Parts of a name; without a revision it is the branch main. Slashes in a revision are written %2F.

    Raises CamaeError for another form.
    """
    text = _START.sub("", str(path), count=1)
    found = _NAME.fullmatch(text)
    # Decoded, because a revision is a path in the cache.
    parts = re.split(r"[/\\@]", unquote(text))
    if found is None or not all(parts) or {".", ".."} & set(parts):
        raise CamaeError(f"{path}: not a name of weights on the hub; {_FORM}")
    return HubName(found["repository"], found["revision"] or "main", found["file"] or "")


def pinned(origin: Origin) -> str:
    """The name of the same file at its commit."""
    return f"{PREFIX}{origin['repository']}@{origin['commit']}/{origin['file']}"


def fetch(path: str | Path) -> HubFile:
    """The file that a name stands for, downloaded where the cache has not got it.

    A process asks once for each name. Raises MissingBackendError without huggingface_hub; CamaeError for a name of
    another form, a repository, revision or file that is not there or not open to the user, no network, and a file whose
    content is not what the hub says.
    """
    return _fetch(parse_name(path))


@cache
def _fetch(name: HubName) -> HubFile:
    path = _download(name)
    file = name.file or path.name
    with open(path, "rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    expected = path.resolve().name  # the cache names large files by their hash
    if _SHA256.fullmatch(expected) and expected != sha256:
        raise CamaeError(
            f"{name}: the file in the cache, {path}, is damaged: its SHA-256 is {sha256} and the hub says {expected}; "
            "delete it and load again"
        )
    commit = path.parents[file.count("/")].name
    origin = {"repository": name.repository, "revision": name.revision, "commit": commit, "file": file}
    return HubFile(path, origin | {"sha256": sha256})


def _download(name: HubName) -> Path:
    """Path in the cache of the first file that is there."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        raise MissingBackendError(
            f"{name}: weights by name need the package huggingface_hub, which is not installed: "
            "pip install 'camae[hub]'"
        ) from None
    revision = name.revision.replace("%2F", "/").replace("%2f", "/")
    unreached: Exception | None = None
    for file in [name.file] if name.file else WEIGHT_FILES:
        try:
            with _without_retries_shown():
                found = hf_hub_download(
                    name.repository, file, revision=revision, local_files_only=unreached is not None
                )
            return Path(found)
        except LocalEntryNotFoundError as error:
            unreached = unreached or error  # the others are looked up in the cache alone
        except EntryNotFoundError:
            continue
        except Exception as error:
            _refuse(name, error)
    if unreached is not None:
        _refuse_unreached(name, unreached)
    wanted = f"file {name.file}" if name.file else f"file of weights ({', '.join(WEIGHT_FILES)})"
    raise CamaeError(f"{name}: there is no {wanted} in the repository at this revision; {_FORM}")


@contextmanager
def _without_retries_shown() -> Iterator[None]:
    """Context in which huggingface_hub logs errors alone: the one sentence of a failure says what its warnings do."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _refuse(name: HubName, error: Exception) -> NoReturn:
    """Raise an error of the hub or of the disk as one sentence."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        sentence = (
            "the repository is gated: ask for access on its page, then log in (hf auth login, or the "
            "environment variable HF_TOKEN)"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        sentence = (
            f"there is no repository {name.repository}, or it is private; check the name, or log in "
            "(hf auth login, or the environment variable HF_TOKEN)"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        sentence = (
            f"the repository has no revision {name.revision}; name a branch, a tag or a whole commit hash"
        )
    elif isinstance(error, errors.HFValidationError):
        sentence = f"{name.repository!r} cannot be the name of a repository; {_FORM}"
    elif isinstance(error, OSError) and error.errno is not None and _is_of_disk(error):
        raise output_error(constants.HF_HUB_CACHE, error) from error
    else:
        sentence = f"the download failed ({_reason(error)}); try again, or load a file of your own"
    raise CamaeError(f"{name}: {sentence}") from None


def _refuse_unreached(name: HubName, error: Exception) -> NoReturn:
    """Raise the error for a file that is not in the cache and that the hub did not answer for."""
    from huggingface_hub import constants

    where = f"and it is not in the cache, {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        raise CamaeError(
            f"{name}: HF_HUB_OFFLINE forbids the network {where}; load it once with a network, or unset the variable"
        ) from None
    reason = _reason(error.__cause__ or error)
    raise CamaeError(
        f"{name}: the hub at {constants.ENDPOINT} cannot be reached ({reason}) {where}; check the network, or load a "
        "file of your own"
    ) from None


def _is_of_disk(error: OSError) -> bool:
    """Whether an error of the system is about a file, not about the network."""
    return (
        isinstance(error, OutputError | PermissionError) or bool(error.filename) or error.errno in (28, 122)
    )


def _reason(error: BaseException) -> str:
    """Kind and first line of an error; of one that holds others, as of connections, the innermost."""
    held = [getattr(error, "reason", None), *error.args]
    if inner := next((e for e in held if isinstance(e, BaseException)), None):
        return _reason(inner)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
