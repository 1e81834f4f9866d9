"""Profile tables of the field: `Metadata_*` columns and features in CSV, TSV, Parquet or AnnData, from any tool.

`camae.embedding_table` writes the embeddings tables of this package and says which columns are features; the reader
here takes tables of other tools as well (CellProfiler, pycytominer, JUMP, AnnData), and gives the same names,
metadata and features from every format.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute

from camae.anndata_form import is_own, table_of
from camae.embedding_table import (
    Kind,
    Unit,
    check_wells_agree,
    feature_names,
    has_regions,
    select_features,
    unit_of,
)
from camae.errors import CamaeError, MissingBackendError, MissingFileError
from camae.files import path_of
from camae.maps.aggregation import group_means
from camae.maps.inputs import listing
from camae.omissions import Omissions
from camae.text_table import SUFFIXES, are_numbers, as_text, is_text, numbers, read_arrow_table
from camae.wells import SITE, known_column, spelled
from camae.workspace_dl import profile_files, read_workspace

_BARE = ("source", "batch", "plate", "well", "site")
_PARTLY = "half of its cells or more are no numbers"
_WHOLE = r"^\s*[+-]?\d+\s*$"


@dataclass(frozen=True)
class ProfileTable:
    """Profiles of sites, wells or treatments.

    meta: n rows of text, "" where nothing was given; Metadata_Well by its normal name. x: (n, d) features, in the
    dtype that is stored (text: fp32 for emb_####, else fp64). features: their d names. source: where they are from.
    omitted: columns of numbers that are no features.
    """

    meta: pd.DataFrame
    x: np.ndarray
    features: list[str]
    source: str
    omitted: Omissions

    @property
    def unit(self) -> Unit:
        """Unit of replication of the rows: "site", "well" or "treatment"."""
        return unit_of(self.meta)

    def check_finite(self) -> None:
        """Raise CamaeError naming the features that hold no finite number in some row."""
        bad = ~np.isfinite(self.x)
        if not bad.any():
            return
        names = [self.features[k] for k in np.flatnonzero(bad.any(axis=0))]
        raise CamaeError(
            f"{self.source}: {len(names)} of {len(self.features)} features have rows without a finite number "
            f"({listing(names)}; first in row {int(bad.any(axis=1).argmax())}); drop these features or rows"
        )

    def by_well(self) -> ProfileTable:
        """Mean over the rows of every well; metadata that is the same in all rows of each well is kept.

        Time points and depths stay apart. Raises CamaeError where the rows of a well disagree in what was done to it.
        """
        keys = [name for name in SITE if name in self.meta and name != "Metadata_Site"]
        check_wells_agree(self.meta)
        groups = self.meta.groupby(keys, sort=False, dropna=False)
        members = sorted(groups.indices.values(), key=lambda index: int(index[0]))
        constant = [c for c in self.meta if c in keys or (groups[c].nunique(dropna=False) == 1).all()]
        meta = self.meta[constant].iloc[[int(index[0]) for index in members]].reset_index(drop=True)
        return dataclasses.replace(self, meta=meta, x=group_means(self.x, members))


def read_profiles(
    path: str | Path, features: Sequence[str] | None = None, omitted: Omissions | None = None
) -> tuple[pd.DataFrame, np.ndarray]:
    """Read a table of profiles: metadata and features.

    Parameters
    ----------
    path : path
        .csv, .tsv, .txt (each also .gz), .parquet, or .h5ad (AnnData: metadata in obs, features in X); or a folder of
        the Gallery's `workspace_dl` or of DeepProfiler's npz files (`camae.workspace_dl`).
    features : sequence of str, optional
        Feature columns, where the rule of `camae.embedding_table.select_features` does not find them: emb_####
        columns; else those of CellProfiler's compartments without identifiers; else all columns of floating-point
        numbers.
    omitted : Omissions, optional
        Filled with the columns of numbers that are no features; without it a warning counts them.

    Returns
    -------
    meta : DataFrame
        n rows of text: the `Metadata_*` columns and all others that are no features; "" where a cell is empty.
        CellProfiler's Image_Metadata_* lose their first word, AnnData's obs columns get the prefix Metadata_,
        Metadata_Well is written in its normal form ("A01").
    x : (n, d) array
        Features, in the dtype that is stored; from text fp32 for emb_#### columns, else fp64. NaN where empty.

    Raises
    ------
    MissingFileError
        When there is no such file.
    CamaeError
        For another kind of file, no features, a cell of a feature that is not a number (with its line), or a well
        (or site) that occurs twice.
    MissingBackendError
        For .h5ad without the package anndata.
    """
    table = read_profile_table(path, features)
    if omitted is not None:
        omitted.extend(table.omitted)
    else:
        for line in table.omitted.lines():
            warnings.warn(f"{path}: {line}", stacklevel=2)
    return table.meta, table.x


def read_profile_table(path: str | Path, features: Sequence[str] | None = None) -> ProfileTable:
    """`read_profiles` with the names of the features and what was left out."""
    path = path_of(path, "path")
    if path.is_dir() and features is None and profile_files(path):
        omitted = Omissions()
        table = profiles_of(read_workspace(path, omitted)[0], str(path))
        table.omitted.extend(omitted)
        return table
    _check_features_asked(features)
    if path.is_dir():
        raise CamaeError(
            f"{path} is a folder, and not one of the Gallery or of DeepProfiler; name its files of profiles"
            + ("" if features is None else ", or leave features out")
        )
    if not path.is_file():
        raise MissingFileError(
            f"{path} does not exist; give a table of profiles ({', '.join(SUFFIXES)} or .h5ad)"
        )
    if path.suffix.lower() == ".h5ad":
        return _read_anndata(path, features)
    if not path.name.lower().removesuffix(".gz").endswith(SUFFIXES):
        raise CamaeError(
            f"{path}: cannot tell the format; profiles are read from .csv, .tsv or .txt (also .gz), .parquet or .h5ad"
        )
    table = read_arrow_table(path)
    kinds = _Kinds(table)
    names, left_out = _chosen(path, table.column_names, features, kinds)
    if features is None:
        left_out |= {
            n: _PARTLY for n in table.column_names if n not in {*names, *left_out} and kinds.partly(n)
        }
    columns = [numbers(path, table, name) for name in names]
    dtype = np.result_type(*(column.dtype for column in columns))
    from_text = any(is_text(table.schema.field(name).type) for name in names)
    if from_text and all(name.startswith("emb_") for name in names):
        dtype = np.dtype(np.float32)
    x = np.empty((table.num_rows, len(names)), dtype)
    for k, column in enumerate(columns):
        x[:, k] = column
    chosen = set(names)
    meta = {n: as_text(table.column(n).to_pandas()) for n in table.column_names if n not in chosen}
    return _table(pd.DataFrame(meta, index=range(table.num_rows)), x, names, str(path), left_out)


def join_profile_tables(tables: Sequence[ProfileTable]) -> ProfileTable:
    """Profiles of one screen from the tables of its files, such as one for each plate.

    Raises CamaeError when the files differ in their features, or a well (or site) occurs twice.
    """
    first = tables[0]
    if len(tables) == 1:
        return first
    omitted = Omissions()
    for table in tables:
        odd = sorted(set(table.features) ^ set(first.features))
        if odd:
            raise CamaeError(
                f"{table.source}: has other features than {first.source} ({listing(odd)}); files of one screen have "
                "the same"
            )
        omitted.extend(table.omitted)
    order = [pd.Index(table.features).get_indexer(first.features) for table in tables]
    x = np.concatenate([table.x[:, index] for table, index in zip(tables, order, strict=True)])
    meta = pd.concat([table.meta for table in tables], ignore_index=True).fillna("")
    source = listing(table.source for table in tables)
    _check_wells(meta, source)
    return ProfileTable(meta, x, first.features, source, omitted)


def profiles_of(table: pd.DataFrame, source: str = "the table of wells") -> ProfileTable:
    """Profiles from a table in memory. Features by `select_features`; all other columns are metadata, as text."""
    if twice := [str(name) for name in table.columns[table.columns.duplicated()]]:
        raise CamaeError(f"{source} has the column {listing(twice)} twice; rename or remove one")
    if len(table) == 0:
        raise CamaeError(f"{source} has no rows")
    names = feature_names(table)
    if not names:
        raise CamaeError(f"{source} has no feature columns among {listing(table.columns)}")
    chosen = set(names)
    plain = table.reset_index(drop=True)
    meta = {str(name): as_text(plain[name]) for name in plain.columns if name not in chosen}
    return _table(pd.DataFrame(meta, index=plain.index), _numbers_of(plain[names], source), names, source, {})


def _numbers_of(features: pd.DataFrame, source: str) -> np.ndarray:
    """Features of a table in memory (n, d). Raises CamaeError for a column of text or of truth values."""
    types = pd.api.types
    for name, kind in features.dtypes.items():
        if types.is_bool_dtype(kind) or not types.is_numeric_dtype(kind):
            raise CamaeError(
                f"{source}: the column {name!r} holds {kind} where numbers are needed; convert it, and name columns "
                "that are no features Metadata_..."
            )
    if all(isinstance(kind, np.dtype) for kind in features.dtypes):
        return features.to_numpy()
    return features.to_numpy(np.float64, na_value=np.nan)  # pandas' own types, with missing values


def _check_features_asked(features: Sequence[str] | None) -> None:
    """Raise CamaeError where `features` is one text, which would be split into letters, or names nothing."""
    listed = isinstance(features, Sequence | np.ndarray | pd.Index) and not isinstance(features, str)
    if features is not None and not (listed and len(features)):
        raise CamaeError(
            f"features is {features!r:.60}; give a list of columns, or None for those that are found"
        )


class _Kinds:
    """What the columns of an Arrow table hold; text counts as numbers where most of its cells are."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._found: dict[str, Kind] = {}

    def kind(self, name: str) -> Kind:
        if name not in self._found:
            self._found[name] = self._kind(self.table.column(name))
        return self._found[name]

    def _kind(self, column: pa.ChunkedArray) -> Kind:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if len(column) and column.null_count == len(column):
            return "empty"
        if pa.types.is_floating(column.type):
            return "empty" if len(column) and np.isnan(column.to_numpy()).all() else "float"
        if pa.types.is_integer(column.type):
            return "integer"
        if not is_text(column.type):
            return "text"
        filled = (pa.compute.utf8_length(pa.compute.utf8_trim_whitespace(column)).to_numpy() > 0).sum()
        count = are_numbers(column).sum()
        if len(column) and filled == 0:
            return "empty"
        if 2 * count <= filled:
            return "text"
        whole = pa.compute.match_substring_regex(column, _WHOLE).fill_null(False).to_numpy().sum()
        return "integer" if whole == count else "float"

    def partly(self, name: str) -> bool:
        """Whether a column of text that is no metadata by its name holds some numbers: a feature gone wrong."""
        column = self.table.column(name)
        named = str(name).lower().startswith(("metadata_", "image_metadata_")) or str(name).lower() in _BARE
        return not named and is_text(column.type) and bool(are_numbers(column).any())

    def whole(self, name: str) -> bool:
        try:
            value = numbers("", self.table, name)
        except CamaeError:
            return False
        return bool((value[np.isfinite(value)] % 1 == 0).all())


def _chosen(
    path: Path, names: Sequence[str], features: Sequence[str] | None, kinds: _Kinds
) -> tuple[list[str], dict[str, str]]:
    """Feature columns, those asked for or those found, and why other columns of numbers are none."""
    if features is not None:
        missing = [name for name in features if name not in names]
        if missing:
            raise CamaeError(f"{path} has no feature column {listing(missing)}; it has {listing(names, 6)}")
        return list(features), {}
    found, left_out = select_features(names, kinds.kind, kinds.whole)
    if not found:
        raise CamaeError(
            f"{path} has no feature columns among {listing(names, 6)}: features are emb_#### columns, those of "
            "CellProfiler's compartments, or columns of floating-point numbers; name them by features="
        )
    return found, left_out


def _read_anndata(path: Path, features: Sequence[str] | None) -> ProfileTable:
    try:
        import anndata
    except ImportError:
        raise MissingBackendError(
            f"{path} needs the package anndata; pip install anndata, or save as Parquet"
        ) from None
    try:
        data = anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CamaeError(f"{path} is not a readable AnnData file ({error})") from None
    if data.X is None:
        raise CamaeError(f"{path} holds no X, so it has no features")
    if is_own(data) and features is None:
        return profiles_of(table_of(data)[0], str(path))
    x = data.X.toarray() if hasattr(data.X, "toarray") else np.asarray(data.X)
    names = [str(name) for name in data.var_names]
    place = {name: k for k, name in enumerate(names)}
    if len(place) < len(names):
        raise CamaeError(f"{path}: a name of its features stands twice; rename one")
    if features is None:
        found, left_out = select_features(
            names, lambda _: "float", lambda name: bool((x[:, place[name]] % 1 == 0).all())
        )
    else:
        found, left_out = [name for name in features if name in place], {}
        if len(found) < len(features):
            raise CamaeError(f"{path} lacks a feature of {listing(features)}; it has {listing(names)}")
    if not found:
        raise CamaeError(f"{path} has no features among {listing(names, 6)}")
    obs = data.obs.reset_index(drop=True)
    meta = {
        name if "Metadata_" in name else f"Metadata_{name}": as_text(obs[name])
        for name in map(str, obs.columns)
    }
    chosen = x if found == names else x[:, [place[name] for name in found]]
    return _table(pd.DataFrame(meta, index=range(len(obs))), chosen, found, str(path), left_out)


def _table(
    meta: pd.DataFrame, x: np.ndarray, names: list[str], source: str, left_out: dict[str, str]
) -> ProfileTable:
    """Profiles with their metadata in the names and spellings of this package; wells are checked."""
    omitted = Omissions()
    for name, reason in left_out.items():
        omitted.add("feature", name, reason)
    shorter = {name: name.removeprefix("Image_") for name in meta if str(name).startswith("Image_Metadata_")}
    meta = meta.rename(columns={old: new for old, new in shorter.items() if new not in meta})
    meta = _identified(meta)
    _check_wells(meta, source)
    if len(meta) == 0:
        raise CamaeError(f"{source} has no rows")
    return ProfileTable(meta, x, names, source, omitted)


def _identified(meta: pd.DataFrame) -> pd.DataFrame:
    """Metadata with the columns of identity by their names, and cells of each column in one spelling.

    A table of other tools may say "well" or "Plate": unseen, its sites would count as replicates.
    """
    names = {name: known_column(str(name)) for name in meta if str(name).lower().startswith("metadata_")}
    for name in meta:
        if str(name).lower() in _BARE:
            names[name] = known_column(f"Metadata_{name}")
    new = {old: name for old, name in names.items() if old != name and name not in meta}
    new = {old: name for old, name in new.items() if list(new.values()).count(name) == 1}
    meta = meta.rename(columns=new)
    return pd.DataFrame({name: spelled(meta[name], str(name)) for name in meta}, index=meta.index)


def _check_wells(meta: pd.DataFrame, source: str) -> None:
    keys = [name for name in SITE if name in meta.columns]
    if "Metadata_Plate" not in keys or "Metadata_Well" not in keys or has_regions(meta):
        return
    twice = meta.duplicated(keys)
    if twice.any():
        row = int(twice.to_numpy().argmax())
        what = ", ".join(f"{name.removeprefix('Metadata_')} {meta[name].iloc[row]}" for name in keys)
        raise CamaeError(
            f"{source}: {what} occurs more than once (again in row {row}, {int(twice.sum())} in all)"
        )


def column(meta: pd.DataFrame, name: str, what: str, of: str = "the profiles") -> npt.NDArray[np.str_]:
    """Metadata column as text, with or without its prefix Metadata_. Raises CamaeError naming the columns there are."""
    if not isinstance(name, str):
        raise CamaeError(f"the column of the {what} is {name!r}; give its name, a text")
    bare = re.sub(r"^(Image_)?Metadata_", "", name)
    found = next((c for c in (name, f"Metadata_{bare}", bare) if c in meta.columns), None)
    if found is None:
        shown = listing([c for c in map(str, meta.columns) if not c.startswith("emb_")], 12)
        raise CamaeError(f"{of} have no column {name} for the {what}; there are {shown or 'features alone'}")
    return as_text(meta[found]).to_numpy(str)
