"""Planes without signal are refused the first time training sees their site."""

from __future__ import annotations

from camae.dataloader.images import read_site
from camae.dataloader.manifest import Manifest
from camae.dataloader.planes import PlaneBatch


class SignalGuard:
    """Looks at every site once: a crop may be empty background, a whole plane that is constant or NaN may not."""

    def __init__(self, manifest: Manifest, reader: str | None = None):
        self.manifest, self.reader = manifest, reader
        self._seen: set[int] = set()

    def check(self, batch: PlaneBatch) -> None:
        """Raises CamaeError naming row, file and channel of a plane that is constant or holds NaN."""
        new = {int(row) for row in batch.rows_B} - self._seen
        if not new:
            return
        rows_K = batch.rows_B[batch.sample_K.cpu().numpy()]
        for plane_HW, row in zip(batch.planes_KHW.cpu().numpy(), rows_K, strict=True):
            if row in new and not plane_HW.max() > plane_HW.min():  # also true where either is NaN
                read_site(self.manifest, int(row), check_constant=True, backend=self.reader)
        self._seen |= new
