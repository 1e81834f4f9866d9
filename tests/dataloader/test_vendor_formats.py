"""CZI, ND2 and LIF through bioio: by a stand-in for it, on a real CZI where the extra is installed, and without it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from camae.dataloader import read_manifest, read_plane
from camae.dataloader.backends import vendor
from camae.dataloader.read_pixels import image_size, read_site
from camae.errors import CamaeError, MissingBackendError

STACK = np.random.default_rng(0).integers(
    0, 65536, (2, 2, 2, 3, 16, 24), dtype=np.uint16
)  # scene, T, C, Z, Y, X


class StandIn:
    """What bioio.BioImage gives of a file of two scenes."""

    order = "TCZYX"
    channel_names = ("DNA", "GFP")
    scenes = ("Image:0", "Image:1")
    dtype = STACK.dtype

    def __init__(self, path: str) -> None:
        self.scene = 0
        self.read = 0

    @property
    def dims(self) -> SimpleNamespace:
        sizes = dict(zip("TCZYX", STACK.shape[1:], strict=True)) | {"S": 3, "M": 1}

        class Dimensions(SimpleNamespace):
            def __getitem__(self, axis: str) -> tuple[int]:
                return (sizes[axis],)

        return Dimensions(order=self.order)

    def set_scene(self, scene: int) -> None:
        self.scene = scene

    def get_image_dask_data(self, order: str, T: int, C: int, Z: int) -> SimpleNamespace:
        assert order == "YX"
        return SimpleNamespace(compute=lambda: STACK[self.scene, T, C, Z])


@pytest.fixture
def bioio(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandIn]]:
    kind = type("Kind", (StandIn,), {})
    module = ModuleType("bioio")
    module.BioImage = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bioio", module)
    for name in ("czi", "nd2", "lif"):
        monkeypatch.setitem(sys.modules, f"bioio_{name}", ModuleType(f"bioio_{name}"))
    vendor._open.__dict__.clear()
    yield kind
    vendor._open.__dict__.clear()


@pytest.mark.parametrize("suffix", vendor.SUFFIXES)
def test_scenes_are_fields_and_planes_are_named(tmp_path: Path, bioio: type[StandIn], suffix: str) -> None:
    (tmp_path / f"P1_B02{suffix}").touch()
    with pytest.raises(CamaeError, match=r"axes TCZYX, with 2 time points and 3 z planes: pass time="):
        read_manifest(tmp_path)
    manifest = read_manifest(tmp_path, z="max", time="each")
    assert manifest.notes[0].startswith("2 fields, 2 channels in each file (DNA, GFP), axes TCZYX")
    assert manifest.table["Metadata_Site"].tolist() == ["1", "1", "2", "2"]
    for row, (scene, t) in enumerate(np.ndindex(2, 2)):
        np.testing.assert_array_equal(read_site(manifest, row)[0], STACK[scene, t].max(1))
    one = read_manifest(tmp_path, z=2, time=1, channels=["GFP"])
    assert one.path(1, "GFP") == str(tmp_path / f"P1_B02{suffix}#1,1,1,2")
    np.testing.assert_array_equal(read_site(one, 1)[0][0], STACK[1, 1, 1, 2])
    assert image_size(one.path(1, "GFP")) == (16, 24)


def test_refusals(tmp_path: Path, bioio: type[StandIn]) -> None:
    path = tmp_path / "P1_B02.czi"
    path.touch()
    for index, sentence in (
        ("1", r"named by scene, time point, channel and z, as in .*P1_B02\.czi#0,0,0,0"),
        ("2,0,0,0", "has no scene 2: it has 2"),
        ("0,0,0,3", "has no plane 3 along Z: it has 3"),
    ):
        with pytest.raises(CamaeError, match=sentence):
            read_plane(f"{path}#{index}")
    bioio.channel_names = ("Channel:0:0", "Channel:0:1")
    with pytest.raises(CamaeError, match=r"holds 2 channels .* does not name all of them: pass channels="):
        read_manifest(tmp_path)
    bioio.order = "TCZYXS"
    with pytest.raises(CamaeError, match=r"P1_B02\.czi: has 3 samples per pixel \(color\) in scene 0"):
        read_manifest(tmp_path)


def test_without_bioio_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bioio_nd2", None)
    (tmp_path / "P1_B02.nd2").touch()
    for incomplete in ("error", "skip"):
        with pytest.raises(
            MissingBackendError, match=r"P1_B02\.nd2: ND2 needs the package bioio-nd2 \(pip install"
        ):
            read_manifest(tmp_path, incomplete=incomplete)


def test_a_real_czi(tmp_path: Path) -> None:
    pytest.importorskip("bioio_czi", reason="the extra formats is not installed")
    from pylibCZIrw import czi

    with czi.create_czi(str(tmp_path / "P1_B02_s1.czi")) as file:
        for t, c, z in np.ndindex(STACK.shape[1:4]):
            file.write(data=STACK[0, t, c, z][..., None], plane={"T": t, "C": c, "Z": z})
        file.write_metadata(document_name="field", channel_names={0: "DNA", 1: "GFP"})
    manifest = read_manifest(tmp_path, z="mean", time=1)
    assert manifest.notes[0].startswith(
        "1 field, 2 channels in each file (DNA, GFP), axes TCZYX, mean over 3 z planes"
    )
    np.testing.assert_array_equal(read_site(manifest, 0)[0], np.rint(STACK[0, 1].mean(1)).astype(np.uint16))
