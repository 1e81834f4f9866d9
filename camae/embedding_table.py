"""Embeddings table: `Metadata_*` text columns first, then emb_0000.., model and preprocessing in the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from camae.errors import CamaeError, MissingFileError
from camae.files import write_atomic

_KEY = b"camae"


def feature_columns(count: int) -> list[str]:
    """Names of feature columns: emb_0000, emb_0001, ..."""
    return [f"emb_{i:04d}" for i in range(count)]


def make_table(metadata: pd.DataFrame, vectors_ND: np.ndarray) -> pd.DataFrame:
    """Table of metadata (N rows), as text, beside float32 vectors (N, D)."""
    text = metadata.reset_index(drop=True).fillna("").astype(str)
    features = pd.DataFrame(vectors_ND.astype(np.float32), columns=feature_columns(vectors_ND.shape[1]))
    return pd.concat([text, features], axis=1)


def write_table(path: str | Path, table: pd.DataFrame, about: Mapping[str, object]) -> Path:
    """Write a Parquet file atomically; `about` (JSON values) goes into its key-value metadata."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata((arrow.schema.metadata or {}) | {_KEY: json.dumps(about).encode()})
    return write_atomic(path, lambda p: pq.write_table(arrow, p))


def read_table(path: str | Path) -> tuple[pd.DataFrame, dict[str, object]]:
    """A table written by `write_table`, and what it says about itself.

    Raises MissingFileError, or CamaeError for a file that is not Parquet.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such embeddings table")
    try:
        arrow = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise CamaeError(f"{path}: not a readable Parquet file ({error})") from None
    return arrow.to_pandas(), about_of(arrow.schema)


def about_of(schema: pa.Schema) -> dict[str, object]:
    """The `about` of a file written by `write_table`, from its schema alone."""
    return json.loads((schema.metadata or {}).get(_KEY, b"{}"))


def features_of(table: pd.DataFrame) -> np.ndarray:
    """The feature matrix (N, D) of a table: every column that is not metadata."""
    return table[[c for c in table.columns if not c.startswith("Metadata_")]].to_numpy(np.float32)


def by_well(sites: pd.DataFrame) -> pd.DataFrame:
    """Table of wells: the mean over the sites of each; metadata that is the same for all its sites is kept.

    Raises CamaeError for sites without wells.
    """
    keys = [c for c in ("Metadata_Source", "Metadata_Batch", "Metadata_Plate", "Metadata_Well") if c in sites]
    if "Metadata_Well" not in keys:
        raise CamaeError(
            "the manifest has no column Metadata_Well, so sites cannot be averaged by well; use level='site'"
        )
    groups = sites.groupby(keys, sort=False, dropna=False)
    features = [c for c in sites.columns if not c.startswith("Metadata_")]
    metadata = [c for c in sites.columns if c.startswith("Metadata_") and c not in keys]
    constant = [c for c in metadata if (groups[c].nunique(dropna=False) == 1).all()]
    wells = groups[constant].first().join(groups[features].mean()).reset_index()
    return wells[[*[c for c in sites.columns if c in (*keys, *constant)], *features]]
