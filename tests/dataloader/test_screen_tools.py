"""plan, check and pack on small screens, sound and spoilt."""

from __future__ import annotations

import errno
import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from camae.dataloader import Manifest, read_manifest, read_plane
from camae.dataloader.read_pixels import read_site
from camae.dataloader.screen_tools import pack as pack_module
from camae.dataloader.screen_tools.check import check
from camae.dataloader.screen_tools.pack import pack
from camae.dataloader.screen_tools.plan import plan
from camae.errors import CamaeError


def test_check_finds_every_kind_of_problem(screen: Manifest) -> None:
    assert check(screen).empty
    image = read_plane(screen.path(0, "DNA"))
    spoilt = {
        "img/1_DNA.tif": b"II*\0",
        "img/2_DNA.tif": None,
        "img/3_DNA.tif": np.full((40, 48), 5, np.uint16),
        "img/4_DNA.tif": image[:, :40],
        "img/5_DNA.tif": (image >> 8).astype(np.uint8),
        "img/6_DNA.tif": np.where(np.arange(48) < 4, 4095, image >> 4).astype(np.uint16),
        "img/7_DNA.tif": image,
    }
    for name, content in spoilt.items():
        path = screen.root / name
        if content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            tifffile.imwrite(path, content)
    calls: list[tuple[int, int]] = []
    table = check(screen, progress=lambda done, total: calls.append((done, total)))
    found = list(zip(table.row, table.channel, table.problem, strict=True))
    kinds = ["unreadable", "missing", "constant", "size", "dtype", "saturated", "duplicate"]
    assert found == [(row, "DNA", kind) for row, kind in enumerate(kinds, start=1)]
    assert table.well.tolist() == [f"A{row + 1:02d}" for row in range(1, 8)]
    assert calls[-1] == (25, 25)


def test_plan_counts_files_and_writes_copy_commands(screen: Manifest) -> None:
    rows = [
        {"Metadata_Well": "A01", "DNA": screen.path(0, "DNA"), "ER": "s3://bucket/p/images/a b/1.tiff"},
        {"Metadata_Well": "A02", "DNA": "gone.tif", "ER": "s3://bucket/p/images/a b/2.tiff"},
    ]
    result = plan(Manifest(pd.DataFrame(rows), screen.root), destination="data")
    size = Path(screen.path(0, "DNA")).stat().st_size
    assert (result.disk_bytes, result.remote_bytes) == (size, 2 * size)
    assert result.table["where"].tolist() == ["disk", "s3", "missing", "s3"]
    assert result.commands == [
        "aws s3 cp --no-sign-request --recursive 's3://bucket/p/images/a b/' 'data/p/images/a b' "
        "--exclude '*' --include 1.tiff --include 2.tiff"
    ]
    assert "1 files on disk" in str(result)
    assert "1 missing" in str(result)


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_pack_keeps_every_pixel_and_resumes(screen: Manifest, tmp_path: Path, codec: str) -> None:
    out = tmp_path / "packed"
    first = pack(screen, out, codec=codec)
    assert (first.planes, first.planes_reused) == (25, 0)
    packed = read_manifest(out / "manifest.parquet")
    for row in range(len(screen)):
        assert packed.site_channels(row) == screen.site_channels(row)
        image, _ = read_site(screen, row)
        assert np.array_equal(read_site(packed, row)[0], image)
        assert np.array_equal(tifffile.imread(packed.path(row, "ER")), image[1])
    journal = out / f"pack_{codec}.jsonl"
    lines = journal.read_text().splitlines()
    assert {len(json.loads(line)["sha256"]) for line in lines} == {64}
    # An interruption: the last line is half written, one packed file is gone, one source has changed.
    journal.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    Path(packed.path(0, "DNA")).unlink()
    tifffile.imwrite(screen.path(4, "ER"), np.arange(40 * 48, dtype=np.uint16).reshape(40, 48))
    again = pack(screen, out, codec=codec)
    assert again.planes - again.planes_reused == 3
    assert read_plane(again.manifest.path(4, "ER"))[1, 0] == 48
    assert "crops/s" in str(again)


def test_full_disk_leaves_nothing_half_written(
    screen: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = tifffile.imwrite, []

    def failing(path: Path, *arguments: object, **options: object) -> None:
        calls.append(path)
        if len(calls) > 5:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *arguments, **options)

    monkeypatch.setattr(pack_module.tifffile, "imwrite", failing)
    with pytest.raises(CamaeError, match=r"row \d+ .*channel .*: the disk is full|the disk is full"):
        pack(screen, tmp_path / "packed", workers=1)
    monkeypatch.undo()
    left = [p for p in (tmp_path / "packed").rglob("*") if p.is_file()]
    assert sorted(p.suffix for p in left) == [".jsonl"] + [".tif"] * 5
    assert not (tmp_path / "packed" / "manifest.parquet").exists()
    assert pack(screen, tmp_path / "packed").planes_reused == 5


def test_a_really_full_disk(screen: Manifest, tmp_path: Path) -> None:
    """On a file system of 64 KiB, mounted where nobody else sees it and gone with the process."""
    screen.write(tmp_path / "screen.csv")
    small = tmp_path / "small"
    small.mkdir()
    script = f"""
        import sys
        from pathlib import Path
        from camae.dataloader import read_manifest
        from camae.dataloader.screen_tools.pack import pack
        from camae.errors import CamaeError
        try:
            manifest = read_manifest({str(tmp_path / "screen.csv")!r})
            pack(manifest, {str(small)!r}, codec="none", workers=1)
        except CamaeError as error:
            print(error)
        print(sorted({{p.suffix for p in Path({str(small)!r}).rglob("*") if p.is_file()}}))
        print(any(p.name.startswith(".") for p in Path({str(small)!r}).rglob("*")))
    """
    mount = f"mount -t tmpfs -o size=64k none {shlex.quote(str(small))}"
    probe = subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"a small file system cannot be mounted here ({probe.stderr.strip()})")
    run = f"{mount} && exec {shlex.quote(sys.executable)} -c {shlex.quote(textwrap.dedent(script))}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", run], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    sentence, kinds, leftovers = done.stdout.splitlines()
    # Whichever meets the end of the disk first: a plane, named with its place, or the journal.
    where = r"(row \d+ .*, channel \w+: .*\.tif|.*/small)"
    wall = where + r" cannot be written: the disk is full; .*; packed planes are kept, run it again to go on"
    assert re.fullmatch(wall, sentence)
    assert (kinds, leftovers) == ("['.jsonl', '.tif']", "False")


def test_pack_names_the_plane_it_cannot_read(screen: Manifest, tmp_path: Path) -> None:
    (screen.root / "img/3_AGP.tif").write_bytes(b"")
    with pytest.raises(CamaeError, match=r"row 3 .*channel AGP: .*3_AGP\.tif: is empty"):
        pack(screen, tmp_path / "packed")
    with pytest.raises(CamaeError, match="pack writes zstd or none"):
        pack(screen, tmp_path / "packed", codec="lzw")
