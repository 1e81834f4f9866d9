"""Planes without signal are refused the first time training sees their site."""

from __future__ import annotations

from collections.abc import Sequence

from camae.dataloader.images import read_site
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import PlaneBatch


class SignalGuard:
    """Looks at every site once: a crop may be empty background, a whole plane that is constant or NaN may not."""

    def __init__(self, manifests: Sequence[Manifest], reader: str | None = None):
        self.manifests, self.reader = manifests, reader
        self._seen: set[tuple[int, int]] = set()

    def check(self, batch: PlaneBatch) -> None:
        """Raises CamaeError naming row, file and channel of a plane that is constant or holds NaN."""
        source_B = batch.source_B.tolist() if len(batch.source_B) else [0] * batch.n_samples
        site_B = list(zip(source_B, batch.rows_B.tolist(), strict=True))
        new = set(site_B) - self._seen
        if not new:
            return
        sample_K = batch.sample_K.cpu().tolist()
        for plane_HW, sample in zip(batch.planes_KHW.cpu().numpy(), sample_K, strict=True):
            source, row = site_B[sample]
            if (source, row) in new and not plane_HW.max() > plane_HW.min():  # also true where either is NaN
                read_site(self.manifests[source], row, check_constant=True, backend=self.reader)
        self._seen |= new
