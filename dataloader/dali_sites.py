"""Site reader of the DALI back-end: windows of many sites, or a whole one, on the device that decoded them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from camae.dataloader.backends import dali
from camae.dataloader.device_planes import (
    Device,
    constant_planes,
    correct_on_device,
    indexed,
    reading_stream,
)
from camae.dataloader.manifest import Manifest
from camae.dataloader.read_pixels import PlaneKind, differs, is_constant, plane_kind
from camae.dataloader.site_reader import Site, SiteReader, Windows
from camae.errors import CamaeError


class DaliSiteReader(SiteReader):
    """Reader of windows of a manifest's sites by DALI, without a cache: nothing decoded is kept on the host.

    device: a CPU, or the CUDA device that decodes, crops, flips and rotates, and where the planes stay.
    """

    def __init__(self, manifest: Manifest, device: Device = "cpu") -> None:
        super().__init__(manifest, "dali", cache_bytes=0, threads=0)
        self.device = indexed(device)

    def planes(
        self, windows: Windows, size: int, pinned: bool = False
    ) -> tuple[torch.Tensor, dict[int, CamaeError]]:
        """Planes (K, size, size) of all windows on the device, and sample -> error of those that failed."""
        counts = [len(site.addresses) for site in windows.sites]
        owner_K = np.repeat(np.arange(len(counts)), counts)
        turns_K = windows.symmetry_B[owner_K]
        y_K, x_K = windows.y_B[owner_K], windows.x_B[owner_K]
        addresses = [address for site in windows.sites for address in site.addresses]
        errors: dict[int, CamaeError] = {}
        try:
            planes_KHW = dali.read_windows(addresses, y_K, x_K, size, self.device, turns_K)
        except CamaeError as error:
            first = _job_of(error, addresses)
            b = int(owner_K[first])
            return torch.empty(0), {b: self._located(windows.sites[b], first - sum(counts[:b]), error)}
        with reading_stream(self.device):
            paths = [
                path for site in windows.sites for path in site.illumination or [None] * len(site.addresses)
            ]
            for k, path in enumerate(paths):
                b = int(owner_K[k])
                if path is None or b in errors:
                    continue
                try:
                    correct_on_device(planes_KHW[k], path, int(y_K[k]), int(x_K[k]), int(turns_K[k]))
                except CamaeError as error:
                    errors[b] = self._located(windows.sites[b], k - sum(counts[:b]), error)
        pin = pinned and self.device.type == "cpu"
        return (planes_KHW.pin_memory() if pin else planes_KHW), errors

    def _located(self, site: Site, plane: int, error: CamaeError) -> CamaeError:
        channel = self.manifest.channels[site.channels[plane]]
        return type(error)(f"{self.manifest.where(site.row, channel)}: {error}")


def read_site(
    manifest: Manifest, row: int, device: Device = "cpu", check_constant: bool = False
) -> tuple[torch.Tensor, list[str]]:
    """One whole site by DALI: (image (C, H, W) on the device, in its stored dtype, names of its C channels).

    device:         a CPU, or the CUDA device that decodes.
    check_constant: also refuse planes that are constant.
    Raises MissingFileError or CamaeError naming row, channel and file.
    """
    names = manifest.site_channels(row)
    paths = [manifest.path(row, name) for name in names]
    kind = _kind(manifest, row, names, paths)
    corners = [0] * len(paths)
    device = indexed(device)
    try:
        planes_CHW = dali.read_windows(paths, corners, corners, (kind.height, kind.width), device)
    except CamaeError as error:
        where = manifest.where(row, names[_job_of(error, paths)])
        raise type(error)(f"{where}: {error}") from error
    with reading_stream(device):
        for plane_HW, name in zip(planes_CHW, names, strict=True):
            path = manifest.illumination_path(row, name)
            try:
                if path is not None:
                    correct_on_device(plane_HW, path, 0, 0)
            except CamaeError as error:
                raise type(error)(f"{manifest.where(row, name)}: {error}") from error
        if check_constant:
            for c in np.flatnonzero(constant_planes(planes_CHW)).tolist():
                constant = is_constant(paths[c], int(planes_CHW[c, 0, 0]))
                raise CamaeError(f"{manifest.where(row, names[c])}: {constant}")
    return planes_CHW, names


def _kind(manifest: Manifest, row: int, names: Sequence[str], paths: Sequence[str]) -> PlaneKind:
    """Size and dtype of a site's planes. Raises CamaeError where they differ."""
    kinds: list[PlaneKind] = []
    for name, path in zip(names, paths, strict=True):
        try:
            dali.checked_layout(path)
            kinds.append(plane_kind(path))
            if not kinds[-1].matches(kinds[0]):
                raise differs(path, kinds[-1], paths[0], kinds[0])
        except CamaeError as error:
            raise type(error)(f"{manifest.where(row, name)}: {error}") from error
    return kinds[0]


def _job_of(error: CamaeError, addresses: Sequence[str]) -> int:
    """Index of the address that an error begins with. Raises the error where it names none."""
    for job, address in enumerate(addresses):
        if str(error).startswith(f"{address}:"):
            return job
    raise error
