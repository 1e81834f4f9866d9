"""The page on a lab's own images: the commands of its table of instruments read what it says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from field_images import image

from camae.dataloader import read_manifest
from camae.dataloader.read_pixels import read_site


def instruments() -> list[tuple[str, str, str, str]]:
    """(file name, axes, metadata, command) of the rows of the page's table that describe files of several planes."""
    page = (Path(__file__).parents[2] / "docs" / "your-images.md").read_text()
    table = page.split("## By instrument")[1].split("\n## ")[0]
    return re.findall(r"\| [^|]*`(\S+\.tif)`[^|]*\(([A-Z]+), ([^)]+)\) \| `([^`]+)` \|", table)


@pytest.mark.parametrize(("name", "axes", "metadata", "command"), instruments())
def test_commands_of_the_page_read_what_it_says(
    tmp_path: Path, name: str, axes: str, metadata: str, command: str
) -> None:
    about: dict = {"axes": axes}
    if metadata == "OME with names":
        about["Channel"] = {"Name": ["DNA", "GFP"]}
    written = (
        {"metadata": about} if "metadata" not in metadata else {"metadata": None, "photometric": "minisblack"}
    )
    tifffile.imwrite(tmp_path / name, image(axes), imagej=metadata == "ImageJ", **written)
    words = command.split()
    options = dict(zip(words[3::2], words[4::2], strict=True))
    channels = options["--channels"].split(",") if "--channels" in options else None
    manifest = read_manifest(tmp_path, channels=channels, z=options.get("--z"), time=options.get("--time"))
    assert manifest.table["Metadata_Well"].tolist() == ["B02"] * (2 if "T" in axes else 1)
    whole = np.expand_dims(image(axes), tuple(range(5 - len(axes))))
    order = "".join(a for a in "TCZ" if a not in axes) + axes
    whole = np.moveaxis(whole, [order.index(a) for a in "TCZ"], [0, 1, 2])
    for t in range(len(manifest)):
        np.testing.assert_array_equal(read_site(manifest, t)[0], whole[t].max(1))


def test_the_page_has_a_row_for_every_kind_of_file() -> None:
    kinds = {(axes, metadata) for _, axes, metadata, _ in instruments()}
    assert len(kinds) == 8
