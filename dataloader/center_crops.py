"""Center crops of chosen sites as one plane batch: what validation, probes and pictures look at."""

from __future__ import annotations

from camae.dataloader.images import plane_kind, read_window
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch, ValueRange


def center_batch(
    manifest: Manifest,
    rows: list[int],
    crop: int,
    *,
    value_range: ValueRange | None = None,
    reader: str | None = None,
) -> tuple[PlaneBatch, list[str]]:
    """The center crop of each row, and its label: its perturbation, or "negative control".

    value_range: of the planes, see `PlaneBatch`. reader: image back-end.
    """
    images, names, labels = [], [], []
    for row in rows:
        height, width, *_ = plane_kind(manifest.path(row, manifest.site_channels(row)[0]), reader)
        y, x = (height - crop) // 2, (width - crop) // 2
        image, channels = read_window(manifest, row, y, x, crop, backend=reader)
        images.append(image)
        names.append(channels)
        record = manifest.table.iloc[row]
        is_control = record.get("Metadata_control_type", "") == "negcon"
        labels.append("negative control" if is_control else str(record.get("Metadata_Perturbation", "")))
    return PlaneBatch.from_images(images, names, rows, value_range), labels
