"""Launch recorder: every distinct kernel launch of whole flows, compiled ahead of time and held to a committed table.

A flow runs on stand-ins for CUDA tensors (`_stand_in`), the launcher's observer notes each launch as Triton would
specialize it, and nothing is started. The table launches.json has a row for every distinct launch, with the figures of
its binary by version of Triton. Shell: `python -m camae.kernels._recorder [--update] [--missing]` compiles the table.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict, cast

import torch
import triton.language as tl

from camae.errors import CamaeError
from camae.kernels import _launch
from camae.kernels._compile_ahead import CompileCase, compile_case, problems
from camae.kernels._launch import Kernel, Launch
from camae.kernels._stand_in import Traffic, stand_ins

TABLE = Path(__file__).with_name("launches.json")
PACKAGE = "camae.kernels."
DEFAULT_WARPS, DEFAULT_STAGES = 4, 3  # Triton's, for launches that name none
ALIGNMENT = 16  # bytes of a pointer, and factor of an integer, that Triton compiles a kernel for
FIGURES = ("registers", "spills", "shared", "mma", "blocks", "loads", "stores", "instructions")
_TYPES = {
    torch.uint8: "u8",
    torch.uint16: "u16",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bool: "i1",
}

_DTYPES = {value.name: value for value in vars(tl).values() if isinstance(value, tl.dtype)}

Constant = str | int | float | bool | None


class Figures(TypedDict):
    """Figures of a binary, as in `Resources`."""

    registers: int
    spills: int
    shared: int
    mma: int
    blocks: int
    loads: int
    stores: int
    instructions: int


@dataclass(frozen=True)
class Row:
    """Distinct launch: what Triton compiles a binary for.

    kernel: module within camae.kernels and name. types: Triton type of every run-time argument. constants: compile-time
    arguments, absent ones (None) and integers of 1 among them; a type of Triton as "tl." and its short name.
    divisible: integers that 16 divides. unaligned: tensors whose address 16 does not divide.
    """

    kernel: str
    arch: str
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Constant], ...]
    divisible: tuple[str, ...]
    unaligned: tuple[str, ...]
    warps: int
    stages: int

    def __str__(self) -> str:
        given = {name: value for name, value in self.constants if name.isupper()}
        ones = [name for name, value in self.constants if not name.isupper() and value == 1]
        kinds = sorted({kind for _, kind in self.types if kind.startswith("*")})
        return f"{self.kernel} on {self.arch} {given} {' '.join(kinds)} ones {ones} divisible {list(self.divisible)}"

    @property
    def op(self) -> str:
        """Folder of the kernel."""
        return self.kernel.split(".")[0]

    def case(self) -> CompileCase:
        """The case that `compile_case` compiles."""
        return CompileCase(
            self.op,
            self.kernel.split(".")[-1],
            self._kernel(),
            dict(self.types),
            {name: _decoded(value) for name, value in self.constants},
            self.warps,
            self.stages,
            self.divisible,
            mma=False,
        )

    def _kernel(self) -> Kernel:
        module, name = self.kernel.rsplit(".", 1)
        return cast(Kernel, getattr(importlib.import_module(PACKAGE + module), name))

    def to_json(self) -> dict[str, object]:
        """Fields as JSON values."""
        return {
            "kernel": self.kernel,
            "arch": self.arch,
            "types": dict(self.types),
            "constants": dict(self.constants),
            "divisible": list(self.divisible),
            "unaligned": list(self.unaligned),
            "warps": self.warps,
            "stages": self.stages,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Row:
        """Inverse of `to_json`."""
        types, constants = (
            cast(dict[str, str], values["types"]),
            cast(dict[str, Constant], values["constants"]),
        )
        return cls(
            str(values["kernel"]),
            str(values["arch"]),
            tuple(types.items()),
            tuple(constants.items()),
            tuple(cast(list[str], values["divisible"])),
            tuple(cast(list[str], values["unaligned"])),
            cast(int, values["warps"]),
            cast(int, values["stages"]),
        )


def _encoded(value: object) -> Constant:
    return f"tl.{value.name}" if isinstance(value, tl.dtype) else cast(Constant, value)


def _decoded(value: Constant) -> object:
    return _DTYPES[value[3:]] if isinstance(value, str) and value.startswith("tl.") else value


def row_of(event: Launch, arch: str) -> Row:
    """The row of a launch: how Triton specializes a kernel to its arguments."""
    kernel = event.kernel
    fixed = {p.name for p in getattr(kernel, "params", ()) if p.do_not_specialize}
    types: dict[str, str] = {}
    constants = {name: _encoded(value) for name, value in event.constants.items()}
    divisible, unaligned = [], []
    for name, value in event.arguments.items():
        if value is None:
            constants[name] = None
        elif isinstance(value, torch.Tensor):
            types[name] = f"*{_TYPES[value.dtype]}"
            if value.data_ptr() % ALIGNMENT and name not in fixed:
                unaligned.append(name)
        elif isinstance(value, bool):
            types[name] = "i1"
        elif isinstance(value, int) and value == 1 and name not in fixed:
            constants[name] = 1
        elif isinstance(value, int):
            types[name] = "i32"
            if value % ALIGNMENT == 0 and name not in fixed:
                divisible.append(name)
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            raise CamaeError(f"{kernel}: argument {name} is a {type(value).__name__}")
    name = f"{kernel.__module__.removeprefix(PACKAGE)}.{getattr(kernel, '__name__', kernel)}"
    warps, stages = (
        cast(int, event.options.get(option, default))
        for option, default in (("num_warps", DEFAULT_WARPS), ("num_stages", DEFAULT_STAGES))
    )
    return Row(
        name,
        arch,
        tuple(sorted(types.items())),
        tuple(sorted(constants.items())),
        tuple(divisible),
        tuple(unaligned),
        warps,
        stages,
    )


@dataclass
class Recording:
    """Recorded kernel launches of a flow, in order, and its copies between host and device."""

    arch: str
    traffic: Traffic
    rows: list[Row] = field(default_factory=list)

    def observe(self, event: Launch) -> bool:
        """Note a launch; it is not started."""
        self.rows.append(row_of(event, self.arch))
        return True

    def names(self) -> list[str]:
        """Kernels in the order of their launches, as "op.kernel"."""
        return [f"{row.op}.{row.kernel.split('.')[-1]}" for row in self.rows]


@contextmanager
def recording(arch: str) -> Iterator[Recording]:
    """Runs what is inside on stand-ins for an `arch`: "cuda:0" is a device, and launches are noted, not started."""
    with stand_ins(arch) as traffic:
        found = Recording(arch, traffic)
        _launch.observers.append(found.observe)
        try:
            yield found
        finally:
            _launch.observers.remove(found.observe)


@dataclass
class Launches:
    """The committed table: figures of each distinct launch by version of Triton."""

    rows: dict[Row, dict[str, Figures]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path = TABLE) -> Launches:
        """An absent file is an empty table."""
        lines = json.loads(path.read_text()) if path.exists() else []
        return cls({Row.from_json(line): line["figures"] for line in lines})

    def write(self, path: Path = TABLE) -> None:
        """One launch per line, sorted."""
        rows = sorted(self.rows, key=lambda row: json.dumps(row.to_json()))
        lines = [json.dumps(row.to_json() | {"figures": self.rows[row]}) for row in rows]
        path.write_text("[\n" + ",\n".join(lines) + "\n]\n")

    def unlisted(self, rows: Iterable[Row]) -> list[Row]:
        """Launches that are not in the table."""
        return [row for row in dict.fromkeys(rows) if row not in self.rows]

    def with_rows(self, rows: Iterable[Row]) -> Launches:
        """The table of exactly these launches, with the figures that are known."""
        return Launches({row: self.rows.get(row, {}) for row in dict.fromkeys(rows)})


def check(row: Row, known: Mapping[str, Figures]) -> tuple[Figures, list[str]]:
    """Compile a launch on this Triton: its figures, and sentences for all over a limit or the table's figure."""
    measured = compile_case(row.case(), row.arch)
    figures = cast(Figures, {name: getattr(measured, name) for name in FIGURES})
    budget = known.get(measured.triton)
    return figures, problems(row.case(), measured, None if budget is None else replace(measured, **budget))


def main(arguments: list[str] | None = None) -> int:
    """Compile every launch of the table; print the count; return 1 where one is over a limit or its figures."""
    import triton

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, nargs="?", default=TABLE)
    parser.add_argument("--update", action="store_true", help="write this triton's figures into the table")
    parser.add_argument("--missing", action="store_true", help="those without figures of this triton")
    options = parser.parse_args(arguments)
    table, failed, total, unknown = Launches.read(options.table), [], 0, 0
    for row, known in table.rows.items():
        there = triton.__version__ in known
        if options.missing and there:
            continue
        figures, found = check(row, {} if options.update else known)
        if options.update:
            known[triton.__version__] = figures
            table.write(options.table)
        total, unknown = total + 1, unknown + (not there)
        failed += found
        print(row, *(f"{name} {value}" for name, value in figures.items()), *found, sep="  ", flush=True)
    print(
        f"{total} launches compiled with triton {triton.__version__}, {unknown} of them without figures in the table, "
        f"{len(failed)} over a limit or figure"
    )
    print(*failed, sep="\n", file=sys.stderr)
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main())
