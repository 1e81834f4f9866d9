"""Smoke test of an installed wheel, in an environment without extras and without pytest.

Imports, embeds a generated image with a saved untrained model, reads a deflate and a zstd TIFF, runs the command.
`--linked` also asks that both codecs come from libraries inside the wheel; imagecodecs then cannot be imported.
"""

from __future__ import annotations

import argparse
import base64
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

# 64 x 64 uint16: a checkerboard of 8-px squares, 100 and 116, as one Zstandard frame.
CHECKERBOARD_ZSTD = base64.b64decode("KLUv/WAAH+UAABhkAHQHgHDtDTQA2LsHFdC1ny+q3YeqAp2SXQs=")
DEFLATE, ZSTD = 8, 50000  # TIFF tag 259


def write_tiff(path: Path, strip: bytes, compression: int) -> None:
    """A 64 x 64 uint16 little-endian TIFF of one compressed strip, written by hand: no package is needed."""
    tags = {256: 64, 257: 64, 258: 16, 259: compression, 262: 1, 273: 8, 277: 1, 278: 64, 279: len(strip)}
    strip += b"\0" * (len(strip) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(strip)) + strip + directory)


def check_codecs(folder: Path, linked: bool) -> None:
    """Both codecs give the checkerboard; with `linked`, from libraries of the wheel."""
    import numpy as np

    from camae.dataloader import read_plane
    from camae.dataloader.backends.native import codecs

    y, x = np.mgrid[:64, :64] // 8
    checkerboard = (100 + 16 * ((x + y) % 2)).astype("<u2")
    write_tiff(folder / "deflate.tif", zlib.compress(checkerboard.tobytes()), DEFLATE)
    write_tiff(folder / "zstd.tif", CHECKERBOARD_ZSTD, ZSTD)
    for name, library in (("deflate", "libdeflate"), ("zstd", "libzstd")):
        assert np.array_equal(read_plane(folder / f"{name}.tif"), checkerboard), name
        provider = codecs()[name]
        assert not linked or provider.startswith(library), f"{name} is not linked: {provider}"
        print(f"{name}: {provider}")


def check_embedding(folder: Path) -> None:
    """An untrained model, saved and loaded, embeds an image it was handed."""
    import numpy as np

    import camae
    from camae.model import CAMAE, preset, save

    model = CAMAE(preset("ca_mae_vit_ti16", crop=64, channels=("DNA", "ER")))
    save(model, folder / "model.safetensors")
    image = np.random.default_rng(0).poisson(500, (3, 64, 64)).astype(np.uint16)
    vector = camae.embed(image, ["DNA", "ER", "Mito"], model=folder / "model.safetensors")
    assert vector.shape == (192,), vector.shape
    assert np.isfinite(vector).all()
    print(f"camae {camae.__version__}: an embedding of {len(vector)} numbers")


def check_command() -> None:
    """The console script answers."""
    command = Path(sys.executable).parent / "camae"
    for arguments in (["--help"], ["doctor"]):
        done = subprocess.run([str(command), *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    print(f"{command.name} --help, {command.name} doctor")


def check_files() -> None:
    """The wheel is typed and carries its data files; the package is the installed one."""
    import camae

    package = Path(camae.__file__).parent
    assert "site-packages" in package.parts, f"{package} is a source tree"
    for name in (
        "py.typed",
        "__init__.pyi",
        "reporting/page.css",
        "reporting/explorer/explorer.css",
        "reporting/explorer/explorer.html",
        "reporting/explorer/main.js",
        "kernels/__init__.py",
        "dataloader/__init__.py",
    ):
        assert (package / name).is_file(), name
    assert not package.joinpath("kernels").is_symlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--linked", action="store_true", help="codecs must be inside the wheel")
    linked = parser.parse_args().linked
    if linked:
        sys.modules["imagecodecs"] = None  # type: ignore[assignment]
    check_files()
    with tempfile.TemporaryDirectory() as folder:
        check_codecs(Path(folder), linked)
        check_embedding(Path(folder))
    check_command()


if __name__ == "__main__":
    main()
