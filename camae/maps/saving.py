"""Saved aligners: a fitted alignment on disk (aligner.json, aligner.safetensors), for plates that come later."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from camae.errors import CamaeError, MissingFileError
from camae.files import path_of, write_atomic, write_json
from camae.maps.affine import Affine, Alignment, LowRank, check_aligner
from camae.maps.alignment import ALIGNERS
from camae.maps.arrays import to_numpy

FORMAT = 1


def save_aligner(aligner: Alignment, folder: str | Path) -> Path:
    """Save a fitted alignment.

    Parameters
    ----------
    aligner : Alignment
        Fitted, for example ``maps.TVN().fit(x, batch, control)``.
    folder : path
        Created when missing. Both files are written aside and moved into place, the JSON last.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    CamaeError
        When the aligner is not fitted.

    Notes
    -----
    aligner.json holds the method, its options, the rank, the batch names and the SHA-256 of aligner.safetensors, so
    that a pair of two savings is told where one was cut off between the files. aligner.safetensors holds, in fp64,
    offset (batches, d); matrix (batches or 1, d[, k]); and where batches have a low-rank factor level (batches,),
    axes (batches, k, r) and gain (batches, r), padded with zeros, one row where all batches share it. fold_level,
    fold_axes and fold_gain are the factors of a cross-validated method, one for each fold.
    """
    if not check_aligner(aligner).maps_:
        raise CamaeError(f"{type(aligner).__name__} is not fitted; fit it before saving")
    folder = path_of(folder, "folder")
    tensors = _tensors(list(aligner.maps_.values()))
    if aligner.folds_:
        tensors |= {f"fold_{name}": tensor for name, tensor in _stacked(aligner.folds_).items()}
    written = write_atomic(folder / "aligner.safetensors", lambda path: save_file(tensors, path))
    header = {
        "format": FORMAT,
        "sha256": _sha256(written),
        "method": aligner.method,
        "options": {field.name: getattr(aligner, field.name) for field in dataclasses.fields(aligner)},
        "rank": aligner.rank_,
        "batches": list(aligner.maps_),
    }
    write_json(folder / "aligner.json", header)
    return folder


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tensors(maps: list[Affine]) -> dict[str, np.ndarray]:
    shared = all(m.matrix is maps[0].matrix for m in maps)
    tensors = {
        "offset": np.stack([to_numpy(m.offset) for m in maps]),
        "matrix": np.stack([to_numpy(m.matrix) for m in (maps[:1] if shared else maps)]),
    }
    factors = [m.factor for m in maps if m.factor is not None]
    if factors:
        tensors |= _stacked(factors[:1] if all(f is factors[0] for f in factors) else factors)
    # safetensors writes the memory of an array as it lies.
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _stacked(factors: list[LowRank]) -> dict[str, np.ndarray]:
    """Factors as three tensors, those of smaller rank padded with zeros."""
    rank = max(f.axes.shape[1] for f in factors)
    axes = np.zeros((len(factors), factors[0].axes.shape[0], rank))
    gain = np.zeros((len(factors), rank))
    for i, factor in enumerate(factors):
        axes[i, :, : factor.axes.shape[1]] = to_numpy(factor.axes)
        gain[i, : len(factor.gain)] = to_numpy(factor.gain)
    return {"level": np.array([f.level for f in factors]), "axes": axes, "gain": gain}


def _factors(tensors: dict[str, np.ndarray], prefix: str = "") -> list[LowRank]:
    """The factors that `_stacked` made tensors of."""
    level, axes, gain = (tensors.get(prefix + name, ()) for name in ("level", "axes", "gain"))
    return [LowRank(float(one), a, g) for one, a, g in zip(level, axes, gain, strict=True)]


def _maps(tensors: dict[str, np.ndarray], batches: list[str]) -> dict[str, Affine]:
    out, factors = {}, _factors(tensors)
    for i, name in enumerate(batches):
        factor = factors[min(i, len(factors) - 1)] if factors else None
        out[name] = Affine(
            tensors["offset"][i], tensors["matrix"][min(i, len(tensors["matrix"]) - 1)], factor
        )
    return out


def load_aligner(folder: str | Path) -> Alignment:
    """Load an alignment that `save_aligner` wrote.

    Parameters
    ----------
    folder : path
        Holds aligner.json and aligner.safetensors.

    Returns
    -------
    Alignment
        Fitted, of the class it was saved from; arrays are NumPy and move to x's namespace in `transform`.

    Raises
    ------
    MissingFileError
        When a file is missing.
    CamaeError
        When the files do not hold an aligner, are of two different savings, or hold another format.
    """
    folder = path_of(folder, "folder")
    for name in ("aligner.json", "aligner.safetensors"):
        if not (folder / name).is_file():
            raise MissingFileError(
                f"{folder / name} does not exist; save an aligner there with save_aligner()"
            )
    try:
        header = json.loads((folder / "aligner.json").read_text())
        if header["format"] != FORMAT:
            raise CamaeError(
                f"{folder / 'aligner.json'} has format {header['format']}; this version reads {FORMAT}"
            )
        aligner = ALIGNERS[header["method"]](**header["options"])
        # Those saved by earlier versions have no digest.
        if header.get("sha256") not in (None, _sha256(folder / "aligner.safetensors")):
            raise CamaeError(
                f"{folder}: aligner.json and aligner.safetensors are of two savings, or the second is damaged; save "
                "the aligner again"
            )
        tensors = load_file(folder / "aligner.safetensors")
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise CamaeError(
                f"{folder / 'aligner.safetensors'} holds values that are not finite; fit and save again"
            )
        aligner.maps_ = _maps(tensors, header["batches"])
        aligner.folds_ = _factors(tensors, "fold_")
        aligner.rank_ = int(header["rank"])
    except (
        json.JSONDecodeError,
        KeyError,
        IndexError,
        TypeError,
        SafetensorError,
        UnicodeDecodeError,
    ) as error:
        raise CamaeError(f"{folder} does not hold a saved aligner ({error}); save it again") from None
    return aligner
