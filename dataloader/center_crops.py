"""Center crops of chosen sites as one plane batch: what validation, probes and pictures look at."""

from __future__ import annotations

from camae.dataloader.images import image_size, read_window
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch


def center_batch(manifest: Manifest, rows: list[int], crop: int) -> tuple[PlaneBatch, list[str]]:
    """The center crop of each row, and its label."""
    images, names, labels = [], [], []
    for row in rows:
        height, width = image_size(manifest.path(row, manifest.site_channels(row)[0]))
        image, channels = read_window(manifest, row, (height - crop) // 2, (width - crop) // 2, crop)
        images.append(image)
        names.append(channels)
        record = manifest.table.iloc[row]
        is_control = record.get("Metadata_control_type", "") == "negcon"
        labels.append("negative control" if is_control else str(record.get("Metadata_Perturbation", "")))
    return PlaneBatch.from_images(images, names, rows), labels
