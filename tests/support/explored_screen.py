"""A small screen with everything the explorer shows: images, controls, doses, metadata, names that look like markup."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

from camae.embedding_table import make_table, write_table

NAMES = [f"gene{i:02d}" for i in range(20)] + [
    '<img src=x onerror="document.title=1">',
    'a, "b" & c',
    "drug1",
    "drug2",
]
PAIRS = [("gene00", "gene01"), ("gene02", "gene03"), ("gene04", NAMES[20]), ("drug1", "drug2")]
PLATES = ("P1", "P2")
DOSES = ("0.1", "1", "10")
CONTROLS = 12
SIZE = 48  # of a site


def wells_table(seed: int = 0) -> pd.DataFrame:
    """Wells of two plates; drugs have a well for each dose, the others one on each plate."""
    rng = np.random.default_rng(seed)
    base = dict(zip(NAMES, 3 * rng.normal(size=(len(NAMES), 16)), strict=True))
    base["gene01"] = base["gene00"] + 0.1
    rows, vectors = [], []
    for plate in PLATES:
        treated = [(n, d) for n in NAMES for d in (DOSES if n.startswith("drug") else ("",))]
        for place, (name, dose) in enumerate([*treated, *[("DMSO", "")] * CONTROLS]):
            control = name == "DMSO"
            rows.append(
                {
                    "Metadata_Plate": plate,
                    "Metadata_Well": f"{'ABCDEFGH'[place // 6]}{place % 6 + 1:02d}",
                    "Metadata_Perturbation": name,
                    "Metadata_control_type": "negcon" if control else "",
                    "Metadata_Pathway": f"<b>pathway{int(name[-1]) % 3}</b>"
                    if name.startswith("gene")
                    else "",
                    "Metadata_Dose": dose,
                }
            )
            shift = np.zeros(16) if control else base[name] * (float(dose) if dose else 5) / 10
            vectors.append(shift + rng.normal(size=16))
    return make_table(pd.DataFrame(rows), np.array(vectors, np.float32))


def write_profiles(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_table(path, wells_table(seed), {})


def write_images(folder: Path) -> Path:
    """Images of every well, DNA of the gray value 100 + 2 row and a step of it, ER a ramp; and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    table = wells_table()
    sites = table[["Metadata_Plate", "Metadata_Well"]].assign(Metadata_Site="1")
    for channel in ("DNA", "ER"):
        files = []
        for row in range(len(sites)):
            plane = np.full((SIZE, SIZE), 100 + 2 * row, np.uint16)
            plane[:, SIZE // 2 :] += 50 if channel == "DNA" else 500
            files.append(f"{row}_{channel}.tif")
            tifffile.imwrite(folder / files[-1], plane, metadata=None)
        sites[channel] = files
    path = folder / "manifest.csv"
    sites.to_csv(path, index=False)
    return path


class _Scripts(HTMLParser):
    """Script elements by id, and the tags of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.tags: list[str] = []
        self._open: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self._open = str(dict(attrs).get("id", "code"))
            self.scripts[self._open] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.scripts[self._open] += data


class PageData:
    """What a page of the explorer carries, read by its documented form alone."""

    def __init__(self, page: Path):
        parser = _Scripts()
        parser.feed(page.read_text(encoding="utf-8"))
        self.scripts, self.tags = parser.scripts, parser.tags
        self.data = json.loads(parser.scripts["data"])

    def array(self, part: dict) -> np.ndarray:
        raw = base64.b64decode(self.scripts[f"block-{part['block']}"], validate=True)
        return np.frombuffer(raw, np.dtype(part["type"]).newbyteorder("<")).reshape(part["shape"])

    def vectors(self, model: int = 0) -> np.ndarray:
        part = self.data["models"][model]
        return self.array(part["vectors"]) * self.array(part["scale"])[:, None].astype(np.float64)


def numbers_in(text: str) -> list[float]:
    """Signed numbers of a text of the page, typographic minus signs among them."""
    return [float(n) for n in re.findall(r"[+-]\d+\.\d+", text.replace("\u2212", "-"))]
