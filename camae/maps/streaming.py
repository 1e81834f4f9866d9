"""Alignment of tables larger than memory: Parquet in, Parquet out.

Two passes. The first keeps only the rows to fit on (the controls), in a scratch file that is mapped, not loaded;
the fit reads it batch by batch. The second maps every row group and writes it. Memory is one row group, one
batch's controls and the learned maps, whatever the number of rows. Blocks of rows go through the library that
`backend` chooses; on a GPU they are computed there.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from camae.embedding_table import Kind, feature_columns, select_features
from camae.errors import CamaeError, MissingFileError
from camae.files import check_outputs, local_path, output_errors, path_of, write_atomic
from camae.maps.affine import EVERY, Alignment, check_aligner
from camae.maps.arrays import Array, ArrayBackend, HostTable, array_backend, groups, namespace, to_numpy
from camae.maps.arrays import rows as take_rows
from camae.maps.inputs import COUNT, batches, check_number
from camae.text_table import as_text, numbers

ROWS = 16_384  # rows in memory at once


def fit_parquet(
    aligner: Alignment,
    files: Sequence[str | Path],
    batch: str | None = "Metadata_Plate",
    control: str | None = "Metadata_control_type",
    negative: str = "negcon",
    rows: int = ROWS,
    backend: str | ArrayBackend = "auto",
    perturbation: str = "Metadata_Perturbation",
) -> Alignment:
    """Fit an alignment on Parquet files that need not fit in memory together.

    Parameters
    ----------
    aligner : Alignment
        For example ``maps.TVN()``.
    files : sequence of paths
        Parquet tables with `Metadata_*` columns and the same feature columns.
    batch : str, optional
        Column of the batch; None for one batch.
    control : str, optional
        Column that marks negative controls by the value `negative`; None to fit on all rows.
    negative : str
        Value of `control` in the rows to fit on.
    rows : int
        Rows in memory at once.
    backend : {"auto", "numpy", "cupy"}
        Library of the computation. "auto" is CuPy where it is installed and a CUDA device is there, else NumPy.
    perturbation : str
        Column of perturbations, read for methods that are fitted on replicates (`ReplicateWhitening`) alone; their
        rows are then fitted on beside the controls.

    Returns
    -------
    Alignment
        The same object, fitted. Features go through fp32. Its maps apply to arrays of either library.

    Raises
    ------
    CamaeError
        For missing columns, files that differ in their features or are no Parquet, rows without a batch, or no
        controls; MissingFileError for no file;
        OutputError where the disk of the scratch file (TMPDIR) refuses.
    """
    arrays = array_backend(backend)
    of = perturbation if check_aligner(aligner).of_replicates else None
    needed, sizes = [name for name in (control, of) if name is not None], _Magnitudes()
    with tempfile.TemporaryDirectory(prefix="camae-fit-") as scratch:
        path, kept, width = Path(scratch) / "rows.f32", [], 0
        with open(path, "wb") as out:
            for meta, x in _chunks(files, batch, needed, rows):
                name_N = np.full(len(x), EVERY) if batch is None else meta[batch].to_numpy(str)
                control_N = (
                    np.ones(len(x), bool) if control is None else (meta[control] == negative).to_numpy()
                )
                of_N = np.full(len(x), "") if of is None else meta[of].to_numpy(str)
                chosen = control_N | (of_N != "")
                with output_errors(path):
                    x[chosen].tofile(out)
                sizes.add(arrays.asarray(x), name_N)
                kept.append(pd.DataFrame({"batch": name_N, "control": control_N, "of": of_N})[chosen])
                width = x.shape[1]
        used = pd.concat(kept)
        if not used["control"].any():
            raise CamaeError(f"no row has {control} = '{negative}'; there are no negative controls to fit on")
        mapped = np.memmap(path, np.float32, "r", shape=(len(used), width))
        return aligner.fit(
            cast(Array, HostTable(mapped, arrays.module)),
            None if batch is None else used["batch"],
            None if control is None else used["control"],
            sizes.means(),
            None if of is None else used["of"],
        )


def transform_parquet(
    aligner: Alignment,
    files: Sequence[str | Path],
    out: str | Path,
    batch: str | None = "Metadata_Plate",
    rows: int = ROWS,
    backend: str | ArrayBackend = "auto",
    perturbation: str = "Metadata_Perturbation",
) -> Path:
    """Align every row of Parquet files with a fitted alignment into one Parquet file.

    Parameters
    ----------
    aligner : Alignment
        Fitted, by `fit_parquet`, `fit` or `load_aligner`.
    files : sequence of paths
        Parquet tables with `Metadata_*` columns and the features of the fit.
    out : path
        Written in full, then moved into place: metadata columns first, then emb_0000, emb_0001, ... in fp32.
    batch : str, optional
        Column of the batch; None when the alignment was fitted without batches.
    rows : int
        Rows in memory at once.
    backend : {"auto", "numpy", "cupy"}
        Library of the computation, as in `fit_parquet`; the file's metadata say which.
    perturbation : str
        Column of perturbations, read for methods that are cross-validated over them alone.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    CamaeError
        For a batch that is empty or unseen at fit, or missing columns; MissingFileError for no file.
    """

    files = _paths(files)
    check_outputs([path_of(out, "out")], ".parquet", files)
    arrays, of = array_backend(backend), perturbation if check_aligner(aligner).folds_ else None

    def write(path: Path) -> None:
        writer = None
        try:
            for meta, x in _chunks(files, batch, [of] if of else [], rows):
                label = None if batch is None else meta[batch].to_numpy(str)
                name = None if of is None else meta[of].to_numpy(str)
                z = to_numpy(aligner.transform(arrays.asarray(x), label, name))
                columns = dict(zip(feature_columns(z.shape[1]), np.ascontiguousarray(z.T), strict=True))
                table = pa.table({**{name: pa.array(meta[name]) for name in meta.columns}, **columns})
                if writer is None:
                    about = {"alignment": aligner.method, "rank": aligner.rank_, "arrays": str(arrays)}
                    writer = _writer(path, table.schema, about, list(meta.columns), list(columns))
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()

    return write_atomic(out, write)


def _writer(
    path: Path, schema: pa.Schema, about: dict[str, object], text: list[str], features: list[str]
) -> pq.ParquetWriter:
    """Writer of aligned rows. Dictionaries, statistics and compression help text and only cost time on floats."""
    schema = schema.with_metadata({b"camae": json.dumps(about).encode()})
    kind = dict.fromkeys(features, "none") | dict.fromkeys(text, "zstd")
    return pq.ParquetWriter(path, schema, compression=kind, use_dictionary=text, write_statistics=text)


def align_parquet(
    files: Sequence[str | Path],
    out: str | Path,
    aligner: Alignment,
    batch: str | None = "Metadata_Plate",
    control: str | None = "Metadata_control_type",
    negative: str = "negcon",
    rows: int = ROWS,
    backend: str | ArrayBackend = "auto",
    perturbation: str = "Metadata_Perturbation",
) -> Alignment:
    """Align Parquet files: `fit_parquet`, then `transform_parquet` of the same files.

    Parameters
    ----------
    files : sequence of paths
        Parquet tables with `Metadata_*` columns and the same feature columns.
    out : path
        Parquet file to write.
    aligner : Alignment
        For example ``maps.TVN()``.
    batch, control, negative, rows, backend, perturbation
        As in `fit_parquet`.

    Returns
    -------
    Alignment
        The fitted aligner; `save_aligner` keeps it for later plates.

    Raises
    ------
    CamaeError
        As `fit_parquet` and `transform_parquet`.
    """
    files = _paths(files)
    check_outputs([path_of(out, "out")], ".parquet", files)
    arrays = array_backend(backend)
    fit_parquet(aligner, files, batch, control, negative, rows, arrays, perturbation)
    transform_parquet(aligner, files, out, batch, rows, arrays, perturbation)
    return aligner


@dataclass
class _Magnitudes:
    """Mean absolute value of each feature, by batch and (under "") over all rows, gathered part by part."""

    total: dict[str, Array] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)

    def add(self, x: Array, batch: np.ndarray) -> None:
        """Rows x (n, d) of the batches (n,)."""
        for name, index in zip(*groups(batch), strict=True):
            size = namespace(x).abs(take_rows(x, index)).sum(axis=0, dtype=np.float64)
            for key in {str(name), EVERY}:
                self.total[key] = self.total.get(key, 0) + size
                self.count[key] = self.count.get(key, 0) + len(index)

    def means(self) -> dict[str, Array]:
        """The means, (d,) each."""
        return {name: total / self.count[name] for name, total in self.total.items()}


def _chunks(
    files: Sequence[str | Path], batch: str | None, needed: Sequence[str], rows: int
) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
    """Metadata as text and features in fp32, at most `rows` rows at a time, over all files in order.

    batch, needed: columns that must be there, that of the batch without an empty cell.
    """
    check_number(rows, "rows", COUNT, whole=True)
    asked = [*([] if batch is None else [batch]), *needed]
    first: list[str] | None = None
    for path in _paths(files):
        if not path.is_file():
            raise MissingFileError(f"{path} does not exist; the table is read from Parquet files")
        try:
            with pq.ParquetFile(local_path(path), pre_buffer=False) as file:
                features = _features(path, file)
                _check_columns(path, file.schema_arrow, features, asked)
                if first is not None and features != first:
                    raise CamaeError(
                        f"{path} has other feature columns than the first file; align them separately"
                    )
                first = features
                if batch is not None:
                    labels = as_text(file.read(columns=[batch]).column(batch).to_pandas())
                    batches(labels, len(labels), f"{path}: {batch}")
                for part in file.iter_batches(batch_size=rows):
                    yield _split(part, features, asked)
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CamaeError(
                f"{path} cannot be read as a Parquet file ({reason}); save the table as Parquet"
            ) from None


def _paths(files: Sequence[str | Path]) -> list[Path]:
    """The files. Raises CamaeError for what is no list of paths, or an empty one."""
    listed = not isinstance(files, str | os.PathLike) and isinstance(files, Iterable)
    paths = [path_of(file, "files") for file in files] if listed else []
    if not paths:
        raise CamaeError("files must be a list with at least one Parquet file")
    return paths


def _check_columns(path: Path, schema: pa.Schema, features: list[str], asked: list[str]) -> None:
    """Raise CamaeError where a column that was asked for is missing, or the features are none or no numbers."""
    if not features:
        raise CamaeError(f"{path} has no feature columns")
    missing = [name for name in asked if name not in schema.names]
    if missing:
        raise CamaeError(f"{path} has no column {missing[0]}")
    for name in features:
        kind = schema.field(name).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise CamaeError(f"{path}: the column {name!r} holds {kind} where numbers are needed")


def _split(part: pa.RecordBatch, features: list[str], asked: list[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """Metadata, with the columns asked for, as text, and features in fp32."""
    x = np.empty((part.num_rows, len(features)), dtype=np.float32)
    for k, name in enumerate(features):
        x[:, k] = part.column(name).to_numpy(zero_copy_only=False)
    names = [name for name in part.schema.names if name.startswith("Metadata_") or name in asked]
    meta = part.select(names).to_pandas()
    return pd.DataFrame({name: as_text(meta[name]) for name in meta}, index=meta.index), x


def _features(path: Path, file: pq.ParquetFile) -> list[str]:
    """Feature columns (`select_features`), by name and type; values are read for columns of object numbers alone."""
    schema = file.schema_arrow

    def kind(name: str) -> Kind:
        found = schema.field(name).type
        return "float" if pa.types.is_floating(found) else "integer" if pa.types.is_integer(found) else "text"

    def whole(name: str) -> bool:
        value = numbers(path, file.read(columns=[name]), name)
        return bool((value[np.isfinite(value)] % 1 == 0).all())

    return select_features(schema.names, kind, whole)[0]
