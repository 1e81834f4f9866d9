"""What an output folder holds: model, manifest, settings and the plan of shards, fixed at the first start."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from camae.dataloader.manifest import Manifest
from camae.embedding_table import about_of
from camae.errors import CamaeError
from camae.files import write_json
from camae.model.weights import model_hash

LEDGER = "ledger.json"


def describe(model: Any, manifest: Manifest, settings: dict[str, Any]) -> dict[str, Any]:
    """What makes an output what it is, as plain JSON; kept in the ledger and in every file."""
    return {
        "model": model.config.name,
        "model_hash": model_hash(model),
        "manifest_hash": manifest_hash(manifest),
        "sites": len(manifest),
        "standardization": model.config.standardization,
        "crop": model.config.crop,
    } | settings


def manifest_hash(manifest: Manifest) -> str:
    """Fingerprint of rows and paths, in order."""
    text = manifest.table.to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def claim(folder: Path, about: dict[str, Any], budget: int) -> dict[str, Any]:
    """Take the output folder for `about`, or refuse; the ledger, with the token budget of the first start.

    about["tokens_per_pass"] None takes the ledger's; `budget` is for a folder without one.
    """
    path = folder / LEDGER
    if not path.exists():
        ledger = about | {"tokens_per_pass": about["tokens_per_pass"] or budget}
        write_json(path, ledger)
        return ledger
    try:
        ledger = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise CamaeError(f"{path}: not a readable ledger; choose another folder") from None
    given = {k: v for k, v in about.items() if k != "tokens_per_pass" or v is not None}
    if changed := [k for k, v in given.items() if ledger.get(k) != v]:
        raise CamaeError(
            f"{folder} holds embeddings made with another {', '.join(changed)}; "
            "choose another folder, output is never mixed"
        )
    return ledger


def shard_rows(ledger: dict[str, Any]) -> list[range]:
    """The manifest rows of every shard."""
    step, total = ledger["sites_per_shard"], ledger["sites"]
    return [range(i, min(i + step, total)) for i in range(0, total, step)]


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / "sites" / f"part-{number:05d}.parquet"


def is_done(folder: Path, number: int, ledger: dict[str, Any]) -> bool:
    """Whether a shard is there; one that is not of this ledger is refused."""
    path = shard_path(folder, number)
    if not path.exists():
        return False
    try:
        rows, about = pq.read_metadata(path).num_rows, about_of(pq.read_schema(path))
    except (pa.ArrowException, OSError) as error:
        raise CamaeError(
            f"{path}: not a readable Parquet file ({error}); delete it and start again"
        ) from None
    if about != ledger or rows != len(shard_rows(ledger)[number]):
        raise CamaeError(
            f"{path} is not of the embeddings that {folder / LEDGER} describes (another model or setting); take it "
            "away, output is never mixed"
        )
    return True
