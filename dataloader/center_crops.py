"""Center crops of chosen sites, for validation, probes and pictures."""

from __future__ import annotations

from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.dataloader.read_pixels import plane_kind, read_window


def center_batch(
    manifest: Manifest,
    rows: list[int],
    crop: int,
    *,
    value_range: ValueRange | None = None,
    reader: str | None = None,
) -> tuple[PlaneBatch, list[str]]:
    """Center crops of the given manifest rows as one batch, and a label for each.

    crop:        edge of the square crops in pixels.
    value_range: of the planes, see `PlaneBatch`.
    reader:      image back-end, see `read_crops`.
    Labels are perturbations, or "negative control".
    """
    images, names, labels = [], [], []
    for row in rows:
        kind = plane_kind(manifest.path(row, manifest.site_channels(row)[0]), reader)
        y, x = (kind.height - crop) // 2, (kind.width - crop) // 2
        image, channels = read_window(manifest, row, y, x, crop, reader=reader)
        images.append(image)
        names.append(channels)
        record = manifest.table.iloc[row]
        is_control = record.get("Metadata_control_type", "") == "negcon"
        labels.append("negative control" if is_control else str(record.get("Metadata_Perturbation", "")))
    return PlaneBatch.from_images(images, names, rows, value_range), labels
