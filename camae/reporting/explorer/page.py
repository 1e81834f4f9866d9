"""Page of the explorer: data as JSON and base64 blocks, style and scripts inline.

Names and metadata are text in JSON, which the scripts only ever set as text; they are never parsed as markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from camae.maps.pairs import PairSources
from camae.reporting.explorer.model_map import ModelMap
from camae.reporting.explorer.thumbnails import FOLDER, Thumbnail, composite_colors
from camae.reporting.html import escape
from camae.reporting.style import CYCLE

SCRIPTS = ("data", "drawing", "search", "details", "scatter", "heat_map", "curves", "main")
# Nothing is loaded but thumbnails beside the page; no script runs but the page's own.
POLICY = "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; "
Json: TypeAlias = Mapping[str, "Json"] | Sequence["Json"] | str | int | float | bool | None


class Blocks:
    """Arrays of the page as base64 text, each in a script element of its own that no browser runs."""

    def __init__(self) -> None:
        self._text: list[str] = []

    def add(self, array: np.ndarray) -> dict[str, Json]:
        """Note an array (little-endian) and return what the data says of it."""
        kind = array.dtype.newbyteorder("<")
        self._text.append(base64.b64encode(np.ascontiguousarray(array, kind).tobytes()).decode("ascii"))
        return {"block": len(self._text) - 1, "type": array.dtype.name, "shape": list(array.shape)}

    def html(self) -> str:
        """The script elements."""
        return "".join(
            f'<script type="text/plain" id="block-{i}">{t}</script>' for i, t in enumerate(self._text)
        )


def page(
    models: Sequence[ModelMap],
    pairs: PairSources | None,
    thumbnails: Sequence[Thumbnail],
    size: int,
    about: Mapping[str, str],
    left_out: Sequence[str],
) -> str:
    """The HTML document. size: side of a thumbnail in pixels; about: title, alignment and unit of replication."""
    blocks = Blocks()
    data: dict[str, Json] = {
        "about": dict(about),
        "colors": list(CYCLE),
        "models": [_model(model, pairs, blocks) for model in models],
        "sources": list(_sources(pairs)),
        "recall": [row for model in models for row in _recall(model)],
        "thumbnails": _thumbnails(thumbnails, size) if thumbnails else None,
        "notes": [f"{model.name}: {note}" for model in models for note in _notes(model)] + list(left_out),
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    package = files("camae.reporting.explorer")
    script = "\n".join(package.joinpath(f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}\n}})();'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    parts = {
        "title": escape(about["title"]),
        "policy": POLICY + f"script-src 'sha256-{digest}'",
        "style": package.joinpath("explorer.css").read_text(encoding="utf-8"),
        "date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "data": f'<script type="application/json" id="data">{text}</script>{blocks.html()}',
        "script": f"<script>{script}</script>",
    }
    body = package.joinpath("explorer.html").read_text(encoding="utf-8")
    pieces = body.split("@@")  # text, name, text, name, ..., so that no value is searched for names
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def _model(model: ModelMap, pairs: PairSources | None, blocks: Blocks) -> dict[str, Json]:
    scale = np.maximum(np.abs(model.vectors).max(axis=1), 1e-30) / 32767
    known = _known(model.names, _sources(pairs))
    return {
        "name": model.name,
        "names": model.names.tolist(),
        "vectors": blocks.add(np.round(model.vectors / scale[:, None]).astype(np.int16)),
        "scale": blocks.add(scale.astype(np.float32)),
        "order": blocks.add(model.order.astype(np.int32)),
        "strength": blocks.add(model.strength.astype(np.float32)),
        "wells": blocks.add(model.wells.astype(np.int32)),
        "pairs": blocks.add(known),
        "layouts": {name: blocks.add(xy) for name, xy in model.layouts.items()},
        "metadata": {name: _coded(texts, blocks) for name, texts in model.metadata.items()},
        "doses": _doses(model, blocks),
    }


def _notes(model: ModelMap) -> list[str]:
    """What was done to the profiles, and the doses and known pairs that the page does not show."""
    notes = list(model.notes)
    if model.doses is not None and (unread := model.doses.unread):
        notes.append(
            f"{len(unread):,} wells are in no dose: {model.doses.column} is no number (first: {unread[0]})"
        )
    unknown = {} if model.recall is None else model.recall.attrs["n_unknown"]
    for source, count in unknown.items():
        if count:
            notes.append(
                f"known pairs not shown, because the map lacks one of their names: {count:,} ({source})"
            )
    return notes


def _coded(texts: Sequence[str], blocks: Blocks) -> Json:
    levels, code = np.unique(np.asarray(texts, dtype=str), return_inverse=True)
    return {"levels": levels.tolist(), "code": blocks.add(code.astype(np.int32))}


def _doses(model: ModelMap, blocks: Blocks) -> Json:
    if (doses := model.doses) is None:
        return None
    return {
        "column": doses.column,
        "row": blocks.add(doses.row.astype(np.int32)),
        "dose": blocks.add(doses.dose.astype(np.float64)),
        "strength": blocks.add(doses.strength.astype(np.float32)),
        "cosine": blocks.add(doses.cosine.astype(np.float32)),
        "wells": blocks.add(doses.wells.astype(np.int32)),
    }


def _sources(pairs: PairSources | None) -> dict[str, npt.NDArray[np.object_]]:
    """Known pairs by source, (p, 2) names each."""
    if pairs is None:
        return {}
    by_source = pairs if isinstance(pairs, Mapping) else {"pairs": pairs}
    return {
        str(source): np.asarray(table, dtype=object).reshape(-1, 2) for source, table in by_source.items()
    }


def _known(names: npt.NDArray[np.str_], sources: Mapping[str, np.ndarray]) -> npt.NDArray[np.int32]:
    """Known pairs of a map: (p, 3), two rows of the map and the number of the source. Others are left out."""
    row = {name: i for i, name in enumerate(names.tolist())}
    found = {
        (min(row[a], row[b]), max(row[a], row[b]), k)
        for k, table in enumerate(sources.values())
        for a, b in table
        if a in row and b in row and a != b
    }
    return np.array(sorted(found), np.int32).reshape(-1, 3)


def _recall(model: ModelMap) -> list[Json]:
    """Recall of a model by source: the curve, and the share found in both tails of 5 %."""
    if model.curves is None or model.recall is None:
        return []
    out: list[Json] = []
    for source, curve in model.curves.groupby("source", sort=False):
        row: pd.Series = model.recall.loc[source]
        out.append(
            {
                "model": model.name,
                "source": str(source),
                "percentile": curve["percentile"].round(4).tolist(),
                "recall": curve["recall"].round(5).tolist(),
                "found": int(row["n_found"]),
                "pairs": int(row["n_pairs"]),
            }
        )
    return out


def _thumbnails(thumbnails: Sequence[Thumbnail], size: int) -> Json:
    """Thumbnails of wells by perturbation, and of controls by plate ("" stands for controls)."""
    by_name: dict[str, list[Json]] = {}
    controls: dict[str, list[Json]] = {}
    for t in thumbnails:
        entry: Json = {"plate": t.plate, "well": t.well, "file": f"{FOLDER}/{t.file}", "channels": t.channels}
        (
            by_name.setdefault(t.perturbation, []) if t.perturbation else controls.setdefault(t.plate, [])
        ).append(entry)
    most = max((t.channels for t in thumbnails), key=len)
    colors = [
        f"#{''.join(f'{round(255 * v):02x}' for v in c / c.max())}" for c in composite_colors(len(most))
    ]
    return {"size": size, "wells": by_name, "controls": controls, "channels": most, "colors": colors}
