"""The contract of rooms in pyproject.toml holds, and an import that breaks it is found."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="the contract is checked by import-linter, of the extra dev")

ROOT = Path(__file__).parents[1]
# Without site's hooks an editable installation does not stand in for the tree that is looked at.
LINT = (
    f"import sys; sys.path += [{sysconfig.get_path('purelib')!r}]; "
    "from importlinter.cli import lint_imports_command; lint_imports_command()"
)


def lint(folder):
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-S", "-c", LINT, "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path):
    """The package alone, its links followed."""
    shutil.copytree(ROOT / "camae", tmp_path / "camae", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contract_is_kept():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "planted"),
    [
        ("camae/model/positions.py", "from camae.training.trainer import Run"),
        ("camae/kernels/_dispatch.py", "def late():\n    import camae.model.config"),
        ("camae/maps/arrays.py", "import torch"),
        ("camae/embedding/windows.py", "from camae.cli import app"),
    ],
)
def test_a_planted_import_is_found(tree, file, planted):
    path = tree / file
    path.write_text(path.read_text() + f"\n{planted}\n")
    done = lint(tree)
    assert done.returncode == 1
    module = file.removesuffix(".py").replace("/", ".")
    assert f"{module} -> " in done.stdout
