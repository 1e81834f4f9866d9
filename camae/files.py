"""Atomic files: written whole or not at all, readable as the umask says; errors of an output as one sentence."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from camae.errors import CamaeError, OutputError

_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how libraries written in Rust name errno
_TEMPORARY = re.compile(r"\..+\.\d+(\.[^.]*)?")
_UNFINISHED = re.compile(r"\.(?P<stem>.+)\.(?P<pid>\d+)(?P<suffix>\.[^.]*)?")
_SUFFIXES = (".csv", ".html", ".json", ".parquet", ".png", ".safetensors", ".tif", ".toml")
_FORMATS = (
    *_SUFFIXES,
    ".gz",
    ".h5ad",
    ".npy",
    ".npz",
    ".pdf",
    ".svg",
    ".tiff",
    ".tsv",
    ".xlsx",
    ".yaml",
    ".yml",
    ".zip",
)
_REASONS = {
    errno.ENOSPC: "the disk is full; free space there, or choose a folder on another disk",
    errno.EDQUOT: "the disk quota is used up; free space there, or choose a folder on another disk",
    errno.EFBIG: "the file would be larger than the limit of this process or file system; raise it (ulimit -f)",
    errno.EROFS: "the file system is read-only; choose a folder on another",
    errno.EACCES: "there is no permission to write there; choose another folder, or have it granted",
    errno.EPERM: "there is no permission to write there; choose another folder, or have it granted",
    errno.EEXIST: "a file of that name is in the way; choose another name, or move the file",
    errno.ENOTDIR: "a file is in the way, where a folder is needed; choose another name, or move the file",
    errno.EISDIR: "a folder is in the way, where a file is needed; choose another name, or move the folder",
    errno.ENOTEMPTY: "a folder is in the way, where a file is needed; choose another name, or move the folder",
    errno.ENAMETOOLONG: "the name is too long for the file system; choose a shorter one",
    errno.EIO: "the disk reports an input/output error; check it, or choose a folder on another",
    errno.ESTALE: "the network file system has lost it; try again, or choose a folder on another",
    errno.EMFILE: "this process has too many open files; raise the limit (ulimit -n)",
}


def path_of(value: object, what: str) -> Path:
    """Path that an argument names. what: the argument, for the error.

    Raises CamaeError for a value of another kind than text or a path, and for an empty text.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise CamaeError(
            f"{what} is a value of type {type(value).__name__}; give the path of a file or folder"
        )
    if not value:
        raise CamaeError(f"{what} is empty; is a variable of the shell unset?")
    return Path(value)


def check_outputs(outputs: Sequence[Path], suffix: str, inputs: Iterable[str | Path] = ()) -> None:
    """Check that files to be written have no suffix of another format, and are none of the files that are read.

    suffix: of what is written; any that means no other format here does too. Raises CamaeError, before anything is
    replaced, also for one file named twice.
    """
    read = [Path(path) for path in inputs if Path(path).exists()]
    for number, path in enumerate(outputs):
        found = path.suffix.lower()
        if found != suffix and found in _FORMATS:
            raise CamaeError(f"{path}: this is written as {suffix}; end its name so")
        if path.exists() and any(path.samefile(other) for other in read):
            raise CamaeError(f"{path} is read here, and writing would replace it; name another file")
        if path.absolute() in [other.absolute() for other in outputs[:number]]:
            raise CamaeError(f"{path} is named for two outputs; name another file for one of them")


def output_folder(out: object, data: object) -> Path:
    """Path of an output folder. data: what is read, of which a path is looked at.

    Raises CamaeError for a value that is no path, and for the folder that the data is in.
    """
    folder = path_of(out, "out")
    if (
        isinstance(data, str | os.PathLike)
        and folder.is_dir()
        and os.path.isdir(data)
        and folder.samefile(data)
    ):
        raise CamaeError(
            f"{folder} is the folder that is read; name another for what is written, or one in it"
        )
    return folder


def local_path(path: str | Path) -> Path:
    """The absolute form of a path, for libraries that take a relative one with a colon (run:1/t.parquet) for a URI.

    Arrow and pandas would refuse it, or use another file. Symbolic links stay, and so does "..".
    """
    return Path(path).absolute()


@contextmanager
def output_errors(path: str | Path) -> Iterator[None]:
    """Context in which `path` is written: an OSError in it becomes an OutputError, one sentence that names the path."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise output_error(path, error) from error
    except Exception as error:
        if (found := _OS_ERROR.search(str(error))) is None:
            raise
        raise output_error(path, OSError(int(found[1]), str(error))) from error


def output_error(path: str | Path, error: OSError) -> OutputError:
    """The sentence for an error of the system at `path`."""
    reason = _REASONS.get(error.errno or 0, f"the system says: {error.strerror or error}")
    return OutputError(f"{path} cannot be written: {reason}", error.errno)


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path` (same suffix), flush it to disk, rename it into place.

    Temporary files of the same output, whose writers were killed on this machine, are removed.

    The file gets the permissions that the umask says. Raises OutputError where the disk refuses; what was there
    before is then as it was.
    """
    path = Path(path)
    temporary = local_path(path).with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_of_killed(path.parent, lambda stem, suffix: stem + suffix == path.name)
        try:
            write(temporary)
            flush_file(temporary)
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
    return path


def flush_file(path: Path) -> None:
    """Flush a file to disk, and give it the permissions that the umask says (some writers make private files)."""
    with open(path, "rb+") as f:
        os.fsync(f.fileno())
        if os.fstat(f.fileno()).st_mode & 0o777 != (wanted := 0o666 & ~_umask()):
            with suppress(OSError):  # file systems without permissions
                os.fchmod(f.fileno(), wanted)


def _umask() -> int:
    """The umask of this process, without a moment in which it is another one, where Linux tells."""
    with suppress(OSError, ValueError), open("/proc/self/status", encoding="ascii", errors="replace") as f:
        for line in f:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    current = os.umask(0o077)
    os.umask(current)
    return current


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of `write_atomic` that killed processes left; only this process may write the folder."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            with suppress(OSError):
                path.unlink()


def remove_unfinished(folder: str | Path) -> None:
    """Remove temporary files of `write_atomic` right in a folder without a lock, whose writers were killed.

    A file is left alone while a process of its number runs on this machine.
    """
    _remove_of_killed(Path(folder), lambda stem, suffix: suffix in _SUFFIXES)


def _remove_of_killed(folder: Path, chosen: Callable[[str, str], bool]) -> None:
    with suppress(OSError), os.scandir(folder) as entries:
        for name in [entry.name for entry in entries if entry.name.startswith(".")]:
            found = _UNFINISHED.fullmatch(name)
            if found and chosen(found["stem"], found["suffix"] or "") and not is_running(int(found["pid"])):
                (folder / name).unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether another process of this number runs on this machine."""
    if pid == os.getpid():
        return False  # a number that was used before: what this process writes, it takes away itself
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (names just made, renamed or removed) to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json_lines(path: str | Path) -> list[Any]:
    """One value per line; a last line cut short by a kill is left out, a missing file has none."""
    path = Path(path)
    rows: list[Any] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def open_lines(path: str | Path) -> IO[str]:
    """A file of lines, open to append to; a last line cut short by a kill or a full disk is taken away first."""
    with suppress(FileNotFoundError), open(path, "rb+") as file:
        text = file.read()
        if (whole := text.rfind(b"\n") + 1) != len(text):
            file.truncate(whole)
    return open(path, "a", encoding="utf-8")


def write_text(path: str | Path, text: str) -> Path:
    """Atomic text file, UTF-8."""
    return write_atomic(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: object) -> Path:
    """Atomic, indented JSON."""
    return write_text(path, json.dumps(value, indent=1) + "\n")
