"""Commands on a disk that is full, or that kills its writer, from the n-th write on, for the tests of every command.

`failing_disk.c` is preloaded into one process that has imported everything; each command runs in a fork of it, so
that hundreds of them cost little more than their own work.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HERE = Path(__file__).parent
COUNT, FULL, ONCE, KILL = range(4)  # as in failing_disk.c


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: the signal), texts, writes (each `what path`), seconds."""

    code: int
    out: str
    err: str
    writes: list[str]
    seconds: float

    @property
    def sentence(self) -> str:
        """The one line of stderr besides notes."""
        lines = [line for line in self.err.strip().splitlines() if not line.startswith(("note:", "warning:"))]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        return lines[0]


class FailingDisk:
    """The process that runs commands."""

    def __init__(self, folder: Path):
        library = folder / "failing_disk.so"
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise FileNotFoundError("no C compiler")
        options = ["-O1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-o", str(library)]
        subprocess.run([compiler, *options, str(HERE / "failing_disk.c"), "-ldl"], check=True)
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "failing_disk.py")],
            env=os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "COLUMNS": "400"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        arguments: list[object],
        out: Path,
        mode: int = COUNT,
        at: int = 0,
        kill_after: float | None = None,
    ) -> Ended:
        """`camae ARGUMENTS`, whose writes below `out` (a folder, or a file with its temporary ones) are met.

        kill_after: seconds until SIGKILL.
        """
        request = {
            "arguments": [str(a) for a in arguments],
            "out": str(out),
            "mode": mode,
            "at": at,
            "kill_after": kill_after,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(60)


def _child(request: dict[str, object], said: list[IO[bytes]], library: ctypes.CDLL) -> None:
    """Run the command; the fork ends here."""
    code = 1
    try:
        os.dup2(said[0].fileno(), 1)
        os.dup2(said[1].fileno(), 2)
        sys.stdout, sys.stderr = (
            os.fdopen(1, "w", encoding="utf-8", closefd=False),
            os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False),
        )
        sys.argv = ["camae", *request["arguments"]]  # type: ignore[misc]
        from camae.cli import main

        if sys.argv[1] == "demo":
            from tiny_demo import make_tiny

            make_tiny()
        where = str(request["out"]).encode()
        library.failing_disk_arm(where, request["mode"], ctypes.c_long(request["at"]), said[2].fileno())  # type: ignore[arg-type]
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        said[3].write("\n".join(sys.modules).encode())
        said[3].flush()
        os._exit(code)


def _run(request: dict[str, object], library: ctypes.CDLL) -> dict[str, object]:
    said = [tempfile.TemporaryFile() for _ in range(4)]  # noqa: SIM115
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(request, said, library)
    after = request["kill_after"]
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if after is not None and time.monotonic() - began > float(after):  # type: ignore[arg-type]
            os.kill(pid, signal.SIGKILL)
            after = None
        time.sleep(0.002)
    seconds = time.monotonic() - began
    texts = []
    for file in said:
        file.seek(0)
        texts.append(file.read().decode(errors="replace"))
        file.close()
    for module in texts[3].splitlines():  # what the command imported late, the next fork has
        if module not in sys.modules and not module.startswith("__"):
            with suppress(Exception):
                importlib.import_module(module)
    return {
        "code": os.waitstatus_to_exitcode(ended[1]),
        "out": texts[0],
        "err": texts[1],
        "writes": texts[2].splitlines(),
        "seconds": seconds,
    }


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    import torch

    torch.set_num_threads(1)
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    for line in sys.stdin:
        answers.write(json.dumps(_run(json.loads(line), library)) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
