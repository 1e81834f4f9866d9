"""The package as a whole: light import, maps without torch, public names."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "nvidia", "cupy", "triton", "ray", "matplotlib", "pandas")


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_light():
    """Under 0.3 s, the best of five so that a busy machine does not decide, and nothing heavy comes along."""
    code = (
        "import sys, time; began = time.perf_counter(); import camae; "
        f"print(time.perf_counter() - began, [m for m in {HEAVY!r} if m in sys.modules])"
    )
    outputs = [run_python(code).split(" ", 1) for _ in range(5)]
    assert min(float(seconds) for seconds, _ in outputs) < 0.3
    assert outputs[0][1].strip() == "[]"


def test_maps_need_no_torch():
    code = "import sys; from camae import maps; maps.align, maps.recall; print('torch' in sys.modules)"
    assert run_python(code).strip() == "False"


def test_training_imports_no_gpu_packages():
    code = "import sys, camae; camae.train, camae.embed; print([m for m in ('cupy', 'triton', 'ray', 'nvidia.dali') "
    assert run_python(code + "if m in sys.modules])").strip() == "[]"


def test_public_names_are_there():
    import camae

    for name in ("train", "load", "embed", "embed_screen", "use", "report", "maps", "CamaeError"):
        assert getattr(camae, name) is not None
    assert callable(camae.report)
    with pytest.raises(AttributeError, match="colour"):
        camae.colour  # noqa: B018


@pytest.mark.parametrize("folder", ["kernels", "dataloader"])
def test_folders_are_not_import_names(folder):
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode != 0
    assert f"camae.{folder}" in done.stderr


def test_the_version_stands_in_one_place():
    """pyproject.toml states it; the package, its metadata and the citation repeat nothing by hand."""
    import tomllib

    import camae

    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert camae.__version__ == stated
    for file in (*(ROOT / "camae").glob("*.py*"), ROOT / "CITATION.cff"):
        assert stated not in file.read_text(), file


def test_the_package_is_typed():
    assert (ROOT / "camae" / "py.typed").is_file()
