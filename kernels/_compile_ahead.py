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
    """What the compiled kernel uses: a row of the budget table."""

    op: str
    config: str
    arch: str
    triton: str
    registers: int
    spills: int
    shared: int
    mma: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What identifies the row."""
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
    registers, spills, mma = read_binary(compiled.asm["cubin"])
    return Resources(
        case.op, case.config, arch, triton.__version__, registers, spills, compiled.metadata.shared, mma
    )


def read_binary(cubin: bytes) -> tuple[int, int, int]:
    """Registers per thread, spill stores, and tensor-core instructions of a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.check_output(
            [tool, "--dump-resource-usage", file.name], text=True, stderr=subprocess.DEVNULL
        )
        sass = subprocess.check_output([tool, "--dump-sass", file.name], text=True, stderr=subprocess.DEVNULL)
    registers = max(int(n) for n in re.findall(r"REG:(\d+)", usage))
    return registers, len(re.findall(r"\bSTL\b", sass)), len(re.findall(r"\b(?:HMMA|HGMMA|QGMMA)\b", sass))


def problems(case: CompileCase, measured: Resources, budget: Resources | None) -> list[str]:
    """Sentences naming kernel, architecture and figure for everything over its limit or budget."""
    where = f"{measured.op} [{measured.config}] on {measured.arch}, triton {measured.triton}"
    found = []
    if measured.spills:
        found.append(f"{where}: {measured.spills} spills, none allowed")
    if measured.shared > SHARED_LIMIT[measured.arch]:
        found.append(f"{where}: {measured.shared} B of shared memory, limit {SHARED_LIMIT[measured.arch]}")
    if case.mma and not measured.mma:
        found.append(f"{where}: no tensor-core instruction where a dot is meant")
    if budget is None:
        return [*found, f"{where}: no budget row; run with --update and commit it"]
    if measured.registers > budget.registers:
        found.append(f"{where}: registers {measured.registers}, budget {budget.registers}")
    if measured.shared > budget.shared:
        found.append(f"{where}: shared {measured.shared}, budget {budget.shared}")
    if measured.mma < budget.mma:
        found.append(f"{where}: {measured.mma} tensor-core instructions, budget {budget.mma}")
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
    budgets, failed = Budgets.read(options.budgets), []
    for arch in TARGETS:
        for case in cases(arch):
            there = (case.op, case.config, arch, triton.__version__) in budgets.rows
            if options.only not in f"{case.op} {case.config} {arch}" or (options.missing and there):
                continue
            row = compile_case(case, arch)
            if options.update:
                budgets.rows[row.key] = row
                budgets.write()
            failed += problems(case, row, budgets.rows.get(row.key))
            print(*asdict(row).values(), sep="  ", flush=True)
    print(*failed, sep="\n", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
