"""Ahead-of-time compilation of every kernel's production configuration for sm_80 and sm_90a, without a GPU.

Registers, spills, shared memory and tensor-core instructions come from the compiled binary itself; the committed
budgets hold the kernels to them. Shell: `python -m camae.kernels._compile_ahead budgets.json [--update]`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from camae.kernels._launch import Kernel

TARGETS = {"sm_80": 80, "sm_90": 90}
# What one block may use, bytes: A100 163 KiB, H100 227 KiB. Compilation alone does not enforce it.
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448}
SHARED_TOTAL = {"sm_80": 167_936, "sm_90": 233_472}  # of a multiprocessor
# Figures of which a budget says the least allowed, and how a sentence names them.
FLOORS = {
    "mma": "tensor-core instructions",
    "blocks": "blocks per multiprocessor",
    "loads": "bits in the widest global load",
    "stores": "bits in the widest global store",
}
OPS = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/triton.py")))


@dataclass(frozen=True)
class CompileCase:
    """One kernel in one production configuration.

    types:     Triton type of every argument that is not a constant, such as "*bf16", "i32", "fp32".
    divisible: integer arguments known to be multiples of 16 (pointers always are).
    mma:       whether the kernel is meant to use tensor cores.
    """

    op: str
    config: str
    kernel: Kernel
    types: dict[str, str]
    constants: dict[str, object]
    warps: int
    stages: int = 1
    divisible: tuple[str, ...] = ()
    mma: bool = True


@dataclass(frozen=True)
class Resources:
    """Resource use of a compiled kernel: a row of the budget table.

    registers:    per thread.
    shared:       bytes per block.
    mma:          tensor-core instructions.
    blocks:       thread blocks that one multiprocessor holds at once (occupancy, CTA/SM).
    loads:        widest global load, bits per thread; 0 without one.
    stores:       widest global store, bits per thread.
    instructions: machine instructions in the binary.
    """

    op: str
    config: str
    arch: str
    triton: str
    registers: int
    spills: int
    shared: int
    mma: int
    blocks: int
    loads: int
    stores: int
    instructions: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Identity of the row."""
        return self.op, self.config, self.arch, self.triton


def cases(arch: str) -> list[CompileCase]:
    """Every kernel's production configurations for `arch`."""
    found: list[CompileCase] = []
    for name in OPS:
        found += importlib.import_module(f"camae.kernels.{name}.triton").compile_cases(arch)
    return found


def compile_case(case: CompileCase, arch: str) -> Resources:
    """Compile for `arch` and read the binary. Needs triton, no GPU, and no interpreter in this process."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    signature = {n: case.types.get(n, "constexpr") for n in names}
    constants = {(names.index(n),): v for n, v in case.constants.items()}
    aligned = [i for i, n in enumerate(names) if signature[n].startswith("*") or n in case.divisible]
    source = ASTSource(
        case.kernel, signature, constexprs=constants, attrs={(i,): [["tt.divisibility", 16]] for i in aligned}
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", TARGETS[arch], 32),
        options={"num_warps": case.warps, "num_stages": case.stages},
    )
    binary = read_binary(compiled.asm["cubin"])
    shared = compiled.metadata.shared
    blocks = blocks_per_multiprocessor(arch, binary.registers, shared, case.warps)
    return Resources(
        case.op,
        case.config,
        arch,
        triton.__version__,
        binary.registers,
        binary.spills,
        shared,
        binary.mma,
        blocks,
        binary.loads,
        binary.stores,
        binary.instructions,
    )


@dataclass(frozen=True)
class Binary:
    """Figures of a cubin: fields as in `Resources`."""

    registers: int
    spills: int
    mma: int
    loads: int
    stores: int
    instructions: int


def read_binary(cubin: bytes) -> Binary:
    """Registers, spill stores, tensor-core instructions and widths of global accesses of a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", "--dump-sass", file.name]
        sass = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
    return Binary(
        registers=max(int(n) for n in re.findall(r"REG:(\d+)", sass)),
        spills=len(re.findall(r"\bSTL\b", sass)),
        mma=len(re.findall(r"\b(?:HMMA|HGMMA|QGMMA|IMMA|IGMMA)\b", sass)),
        loads=max(access_widths(sass, "LDG|LDGSTS"), default=0),
        stores=max(access_widths(sass, "STG"), default=0),
        instructions=len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?!NOP)", sass, re.MULTILINE)),
    )


def access_widths(sass: str, names: str) -> list[int]:
    """Bits per thread of every global access named, in order: LDG.E.128 moves 128, LDG.E.U8 8, LDG.E 32."""
    found = re.findall(rf"\b(?:{names})\b((?:\.[A-Z0-9]+)*)", sass)
    widths = []
    for suffixes in found:
        width = re.search(r"\.[US]?(8|16|64|128|256)(?:\.|$)", suffixes)
        widths.append(int(width[1]) if width else 32)
    return widths


def blocks_per_multiprocessor(arch: str, registers: int, shared: int, warps: int) -> int:
    """Occupancy by CUDA's rules for compute capability 8.0 and 9.0.

    A warp's registers come in units of 256 from one of four files of 16,384; a block's shared memory is 1 KiB more
    than it asks for, in units of 128 B; at most 64 warps and 32 blocks.
    """
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = 4 * min(16, 16_384 // per_warp) // warps
    by_shared = SHARED_TOTAL[arch] // (-(-shared // 128) * 128 + 1024)
    return min(by_registers, by_shared, 32)


def problems(case: CompileCase, measured: Resources, budget: Resources | None) -> list[str]:
    """Sentences naming kernel, architecture and figure for everything over its limit or budget.

    Limits hold on every Triton; without a budget row for this one (None) they alone are checked.
    """
    where = f"{measured.op} [{measured.config}] on {measured.arch}, triton {measured.triton}"
    found = []
    if measured.spills:
        found.append(f"{where}: {measured.spills} spills, none allowed")
    if measured.shared > SHARED_LIMIT[measured.arch]:
        found.append(f"{where}: {measured.shared} B of shared memory, limit {SHARED_LIMIT[measured.arch]}")
    if case.mma and not measured.mma:
        found.append(f"{where}: no tensor-core instruction where a dot is meant")
    if budget is None:
        return found
    for figure in ("registers", "shared"):
        if getattr(measured, figure) > getattr(budget, figure):
            found.append(f"{where}: {figure} {getattr(measured, figure)}, budget {getattr(budget, figure)}")
    for figure, what in FLOORS.items():
        if getattr(measured, figure) < getattr(budget, figure):
            found.append(f"{where}: {getattr(measured, figure)} {what}, budget {getattr(budget, figure)}")
    return found


@dataclass
class Budgets:
    """The committed table, one row per (op, config, arch, triton)."""

    path: Path
    rows: dict[tuple[str, str, str, str], Resources] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Budgets:
        """An absent file is an empty table."""
        rows = [Resources(**row) for row in json.loads(path.read_text())] if path.exists() else []
        return cls(path, {row.key: row for row in rows})

    def write(self) -> None:
        """One row per line, sorted."""
        lines = [json.dumps(asdict(self.rows[key])) for key in sorted(self.rows)]
        self.path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def main(arguments: list[str] | None = None) -> int:
    """Compile everything; print a table; return 1 where a budget is broken."""
    import triton

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("budgets", type=Path)
    parser.add_argument("--update", action="store_true", help="write this triton's rows into the table")
    parser.add_argument("--missing", action="store_true", help="those without a row for this triton")
    parser.add_argument("--only", default="", help="those whose op, configuration and arch contain this")
    options = parser.parse_args(arguments)
    budgets, failed, unknown, total = Budgets.read(options.budgets), [], 0, 0
    every = {(case.op, case.config, arch) for arch in TARGETS for case in cases(arch)}
    if options.update:
        budgets.rows = {k: r for k, r in budgets.rows.items() if k[:3] in every}
    for arch in TARGETS:
        for case in cases(arch):
            there = (case.op, case.config, arch, triton.__version__) in budgets.rows
            if options.only not in f"{case.op} {case.config} {arch}" or (options.missing and there):
                continue
            row = compile_case(case, arch)
            if options.update:
                budgets.rows[row.key] = row
                budgets.write()
            budget = budgets.rows.get(row.key)
            total, unknown = total + 1, unknown + (budget is None)
            failed += problems(case, row, budget)
            print(*asdict(row).values(), sep="  ", flush=True)
    print(
        f"{total} compiled with triton {triton.__version__}, {unknown} of them without a budget row, "
        f"{len(failed)} over a limit or budget"
    )
    print(*failed, sep="\n", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
