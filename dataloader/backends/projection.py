"""Projection of planes along z: running maximum or mean, so that one plane more than the result is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from camae.dataloader.backends.addresses import Projection, projection_of
from camae.errors import CamaeError

# Reads one plane for each of these jobs into the array, as native.read_windows: -> (place in the list, error) of those
# that failed.
ReadPlanes = Callable[[list[int], list[str], np.ndarray], list[tuple[int, CamaeError]]]


class Running:
    """Running projection of n planes, in place.

    out: (..., h, w) uint8, uint16 or float32; holds the result after `finish`.
    "max" is the maximum; "mean" the mean in float64, of integers rounded to the nearest even one (np.rint).
    """

    def __init__(self, how: str, out: np.ndarray) -> None:
        self.how, self.out, self.n = how, out, 0
        self._sum = np.zeros(out.shape, np.float64) if how == "mean" else None

    def add(self, planes: np.ndarray) -> None:
        """One more plane, of the shape and dtype of `out`."""
        self.n += 1
        if self._sum is not None:
            self._sum += planes  # exact for integers: at most 2^16 times 2^37 planes
        elif self.n == 1:
            self.out[...] = planes
        else:
            np.maximum(self.out, planes, out=self.out)

    def finish(self) -> None:
        """Write the mean into `out`."""
        if self._sum is not None:
            mean = self._sum / self.n
            self.out[...] = mean if self.out.dtype.kind == "f" else np.rint(mean)


def project(address: str, projection: Projection, planes: Iterable[np.ndarray]) -> np.ndarray:
    """Projection of whole planes (H, W), read one after the other. Raises CamaeError where they differ."""
    running: Running | None = None
    for named, plane in zip(projection.planes, planes, strict=True):
        if running is None:
            running = Running(projection.how, np.empty(plane.shape, plane.dtype))
        if plane.ndim != 2 or plane.shape != running.out.shape or plane.dtype != running.out.dtype:
            raise planes_differ(address, named)
        running.add(plane)
    assert running is not None, "an address of a projection names at least one plane"
    running.finish()
    return running.out


def planes_differ(address: str, named: str) -> CamaeError:
    """Error for a plane that does not fit the first one of its projection."""
    return CamaeError(
        f"{address}: the plane {named} differs from the first in size or dtype, so they are not projected"
    )


def project_windows(
    addresses: Sequence[str], out: np.ndarray, read: ReadPlanes
) -> list[tuple[int, CamaeError]]:
    """Windows of planes and projections, one per address, into out (K, h, w).

    read: reads windows of planes; called once for the first plane of all projections, once for the second, and so on.
    Returns (job, error) of those that failed; the others are complete.
    """
    projections = [projection_of(address) or Projection("max", [address]) for address in addresses]
    running = [Running(p.how, out[job]) for job, p in enumerate(projections)]
    failed: dict[int, CamaeError] = {}
    for step in range(max(len(p.planes) for p in projections)):
        jobs = [j for j, p in enumerate(projections) if step < len(p.planes) and j not in failed]
        windows = np.empty((len(jobs), *out.shape[1:]), out.dtype)
        failed |= {
            jobs[i]: error for i, error in read(jobs, [projections[j].planes[step] for j in jobs], windows)
        }
        for job, window in zip(jobs, windows, strict=True):
            if job not in failed:
                running[job].add(window)
    for job, projection in enumerate(running):
        if job not in failed:
            projection.finish()
    return sorted(failed.items(), key=lambda item: item[0])
