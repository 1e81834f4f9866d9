"""`camae.embedding.patch_map`: the patch map of one field of a screen, beside control fields of its plate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import numpy.typing as npt

from camae.dataloader.manifest import Manifest
from camae.dataloader.read_pixels import read_site
from camae.embedding.api import embed
from camae.embedding.config import EmbedConfig, EmbedOptions
from camae.embedding.default_model import ModelSource, resolve_model
from camae.embedding.windows import tile_corners
from camae.errors import CamaeError
from camae.files import path_of
from camae.maps.patches import Array, PatchControls, pca_colors
from camae.model.interface import Model
from camae.reporting.patch_map import PATCH_MAP, PatchMap

_CONTROL_FIELDS = 8  # of a plate: half of them fitted, half of them for the level
_LEVEL = 99.0  # percentile of patches of control fields that were not fitted
_SHOWN = (0.5, 99.8)  # percentiles of a channel, over the shown fields, that become black and full color


def patch_map(
    data: Manifest | str | Path,
    model: ModelSource | None = None,
    out: str | Path | None = None,
    *,
    perturbation: str | None = None,
    column: str = "Metadata_Perturbation",
    control: str = "Metadata_control_type",
    negative: str = "negcon",
    **options: Unpack[EmbedOptions],
) -> PatchMap:
    """Patch map of one field: colors of its patches, and where it differs from controls of its plate.

    data: manifest or folder. model: as in `camae.embed`. out: folder, such as the model's run folder, for
        `patch_map.npz` (which `camae.report` shows) and `patch_map.png`.
    perturbation: its first field, on a plate with at least 2 control fields, is compared with up to 8 of these; None
        takes the first field of all and compares it with nothing. column, control, negative: column of perturbations,
        column that marks controls, and its value for negative ones.
    options: of `EmbedConfig`; tiles is 'grid' (default), 'center' or 'interpolate'.
    Half of the control fields are fitted (`PatchControls`), the others set the level that 1 % of their patches exceed;
    one of these is shown beside.
    Raises CamaeError for a perturbation that is not there or has no controls on its plates.
    """
    config = EmbedConfig.of(**options)
    manifest = config.read(data)
    row, controls = _rows(manifest, perturbation, column, control, negative)
    net = resolve_model(model, config.device)
    names = manifest.site_channels(row)
    fitted, held = controls[0::2], controls[1::2]
    shown = [row, *held[:1]]
    images, maps = zip(*(_field(manifest, r, names, net, config) for r in shown), strict=True)
    if len({one.shape for one in maps}) > 1:
        raise CamaeError(
            f"{manifest.where(row)} and the control field, {manifest.where(shown[1])}, are of different sizes; their "
            "maps cannot stand side by side"
        )
    distance, level = np.zeros((0, *maps[0].shape[:2])), np.nan
    if controls:
        found = PatchControls.fit([_field(manifest, r, names, net, config)[1] for r in fitted])
        others = [_field(manifest, r, names, net, config)[1] for r in held[1:]]
        level = float(np.nanpercentile([found.distance(one) for one in (maps[1], *others)], _LEVEL))
        distance = np.stack([found.distance(one) for one in maps])
    made = PatchMap(
        images=_composites(images),
        colors=np.stack(pca_colors(maps)).astype(np.float32),
        distance=distance.astype(np.float32),
        level=level,
        labels=[perturbation or _label(manifest, row), f"control ({negative})"][: len(shown)],
        channels=list(names[:3]),
        controls=len(controls),
    )
    if out is not None:
        _write(made, path_of(out, "out"))
    return made


def _write(made: PatchMap, out: Path) -> None:
    from camae.reporting.style import save_png

    arrays, picture = out / PATCH_MAP, (out / PATCH_MAP).with_suffix(".png")
    made.save(arrays)
    save_png(made.figure(), picture)


def _rows(
    manifest: Manifest, perturbation: str | None, column: str, control: str, negative: str
) -> tuple[int, list[int]]:
    """Row of the field, and rows of control fields of its plate with the same channels; none without perturbation."""
    if perturbation is None:
        return 0, []
    for name in (column, control):
        if name not in manifest.table:
            raise CamaeError(
                f"the manifest has no column {name}, so a perturbation has no controls to differ from"
            )
    rows = np.flatnonzero((manifest.table[column] == perturbation).to_numpy())
    if not len(rows):
        raise CamaeError(f"the manifest has no site of {perturbation!r} in {column}")
    plates, negatives = manifest.plates(), (manifest.table[control] == negative).to_numpy()
    for row in rows:
        names = manifest.site_channels(int(row))
        of_plate = np.flatnonzero(negatives & (plates == plates[row]))
        same = [int(r) for r in of_plate if r != row and manifest.site_channels(int(r)) == names]
        if len(same) >= 2:
            spread = np.linspace(0, len(same) - 1, min(len(same), _CONTROL_FIELDS)).round().astype(int)
            return int(row), [same[i] for i in spread]
    raise CamaeError(
        f"no plate with a site of {perturbation!r} has 2 control fields ({control} = {negative!r}) with its channels"
    )


def _field(
    manifest: Manifest, row: int, names: list[str], model: Model, config: EmbedConfig
) -> tuple[npt.NDArray[np.generic], Array]:
    """Pixels (C, H', W') that the map covers, and the map (h, w, D)."""
    tiles, crop, patch = config.tiles or "grid", model.config.crop, model.config.patch
    image, _ = read_site(manifest, row, names, check_constant=True, reader=config.reader)
    try:
        found = embed(
            image,
            names,
            model,
            "patch_mean",
            tiles=tiles,
            value_range=config.value_range,
            dtype=config.dtype,
            tokens_per_pass=config.tokens_per_pass,
            backends=config.backends,
        )
    except CamaeError as error:
        raise CamaeError(f"{manifest.where(row)}: {error}") from None
    assert isinstance(found, np.ndarray)
    H, W = image.shape[1:]
    y, x = (0, 0) if tiles == "interpolate" else tile_corners(H, W, crop, tiles)[0]
    h, w = found.shape[:2]
    return image[:, y : y + h * patch, x : x + w * patch], found


def _composites(images: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.uint8]:
    """(R, H, W, 3) uint8: up to three channels in blue, green and red, a single one gray; one scale for all fields."""
    stack = np.stack(images)[:, :3].astype(np.float64)
    low, high = np.percentile(stack, _SHOWN, axis=(0, 2, 3), keepdims=True)
    scaled = (255 * np.clip((stack - low) / np.maximum(high - low, 1e-12), 0, 1)).astype(np.uint8)
    pictures = np.zeros((len(images), *stack.shape[2:], 3), np.uint8)
    if stack.shape[1] == 1:
        return pictures + scaled[:, 0, :, :, None]
    for i in range(stack.shape[1]):
        pictures[..., 2 - i] = scaled[:, i]
    return pictures


def _label(manifest: Manifest, row: int) -> str:
    """Plate, well and site of a row, as far as it has them."""
    columns = ("Metadata_Plate", "Metadata_Well", "Metadata_Site")
    return (
        " ".join(str(manifest.table[name].iloc[row]) for name in columns if name in manifest.table) or "field"
    )
