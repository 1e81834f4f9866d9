"""Alignment of tables larger than memory: the same numbers as in memory, and a memory cap that holds."""

import subprocess
import sys
import textwrap
from io import FileIO

import numpy as np
import pandas as pd
import pytest
from device_arrays import calls, namespace

from camae import maps
from camae.embedding_table import feature_columns, features_of, read_table
from camae.errors import CamaeError, MissingBackendError, MissingFileError, OutputError
from camae.kernels.arrays.backends import ArrayBackend
from camae.maps import streaming
from camae.maps.alignment import ALIGNERS


def _screen(folder, rows=1500, d=16, plates=5, files=3):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(rows, d)) @ rng.normal(size=(d, d)) + 1).astype(np.float32)
    table = pd.DataFrame(x, columns=feature_columns(d))
    table.insert(0, "Metadata_Plate", [f"P{i}" for i in rng.integers(0, plates, rows)])
    table.insert(1, "Metadata_control_type", np.where(rng.random(rows) < 0.4, "negcon", ""))
    table.insert(2, "Metadata_Perturbation", [f"p{i}" for i in rng.integers(0, 40, rows)])
    paths = []
    for k, part in enumerate(np.array_split(np.arange(rows), files)):
        paths.append(folder / f"{k}.parquet")
        table.iloc[part].to_parquet(paths[-1], index=False)
    return table, paths


@pytest.mark.parametrize(
    "method",
    [maps.TVN, maps.TVNAndo, maps.PCAStandardize, maps.RobustizeMAD, maps.ShrunkTVN, maps.ReplicateWhitening],
)
def test_streamed_alignment_equals_alignment_in_memory(tmp_path, method):
    table, paths = _screen(tmp_path)
    fitted = maps.align_parquet(paths, tmp_path / "out.parquet", method(), rows=64)
    out, about = read_table(tmp_path / "out.parquet")
    assert about["arrays"].startswith(("numpy (", "cupy ("))
    assert about == {"alignment": fitted.method, "rank": fitted.rank_, "arrays": about["arrays"]}
    assert out.Metadata_Plate.tolist() == table.Metadata_Plate.tolist()
    control = (table.Metadata_control_type == "negcon").to_numpy()
    expected = maps.align(
        features_of(table),
        fitted.method,
        table.Metadata_Plate,
        control,
        perturbation=table.Metadata_Perturbation,
    )
    # fp32 sums of 16 terms with entries up to 20, in another order.
    np.testing.assert_allclose(features_of(out), expected, rtol=0, atol=16 * 20 * 1.2e-7 * 10)


@pytest.mark.parametrize("method", [*maps.METHODS[1:], "tvn without batches"])
def test_blocks_go_through_the_device_and_nothing_moves_by_itself(tmp_path, method, monkeypatch):
    """CuPy's stand-in: every silent move to the host raises, and no table is on the device as a whole."""
    monkeypatch.setattr("camae.maps.spectral.ROWS", 100)
    monkeypatch.setattr("camae.maps.inputs.ROWS", 100)
    table, paths = _screen(tmp_path, rows=1600, plates=20)
    make = ALIGNERS[method.split()[0]]
    batch = None if method in ("spherize", "tvn without batches") else "Metadata_Plate"
    device = ArrayBackend("cupy", namespace, "stand-in")
    calls.clear()
    fitted = maps.align_parquet(paths, tmp_path / "device.parquet", make(), batch, rows=100, backend=device)
    largest = max(args[0].shape[0] for name, args, _ in calls if name == "asarray" and np.ndim(args[0]) == 2)
    controls = int((table.Metadata_control_type == "negcon").sum())
    assert largest <= (controls if method == "spherize" else 100)
    host = maps.align_parquet(paths, tmp_path / "host.parquet", make(), batch, rows=100, backend="numpy")
    found, expected = (read_table(tmp_path / f"{name}.parquet") for name in ("device", "host"))
    assert found[1]["arrays"] == "cupy (stand-in)"
    np.testing.assert_allclose(features_of(found[0]), features_of(expected[0]), rtol=0, atol=1e-4)
    pd.testing.assert_frame_equal(found[0].iloc[:, :3], expected[0].iloc[:, :3])
    # What was learned on the device is saved, and applies to arrays of the host.
    loaded = maps.load_aligner(maps.save_aligner(fitted, tmp_path / "aligner"))
    x, plate = features_of(table)[:50], None if batch is None else table.Metadata_Plate[:50]
    for aligner in (fitted, loaded):
        np.testing.assert_allclose(aligner.transform(x, plate), host.transform(x, plate), rtol=0, atol=1e-4)


def test_a_library_that_cannot_run_is_refused_before_the_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingBackendError, match="backend cupy cannot run here: CuPy is not installed"):
        maps.align_parquet([tmp_path / "none.parquet"], tmp_path / "out", maps.TVN(), backend="cupy")


def test_a_row_that_is_not_finite_is_named_in_whichever_block(tmp_path, monkeypatch):
    monkeypatch.setattr("camae.maps.inputs.ROWS", 100)
    table, _ = _screen(tmp_path, files=1)
    rows = np.flatnonzero(table.Metadata_control_type == "negcon")
    table.iloc[rows[257], 5] = np.inf
    table.to_parquet(tmp_path / "bad.parquet", index=False)
    with pytest.raises(CamaeError, match="row 257, column 2, and in 1 rows"):
        maps.fit_parquet(maps.TVN(), [tmp_path / "bad.parquet"])


def test_new_plates_are_mapped_later_and_unknown_ones_are_named(tmp_path):
    table, paths = _screen(tmp_path)
    fitted = maps.fit_parquet(maps.TVN(), paths)
    maps.save_aligner(fitted, tmp_path / "aligner")
    loaded = maps.load_aligner(tmp_path / "aligner")
    maps.transform_parquet(loaded, paths[:1], tmp_path / "later.parquet")
    out, _ = read_table(tmp_path / "later.parquet")
    expected = fitted.transform(features_of(table)[: len(out)], table.Metadata_Plate[: len(out)])
    np.testing.assert_allclose(features_of(out), expected, atol=1e-4)
    table.assign(Metadata_Plate="P9").to_parquet(tmp_path / "new.parquet", index=False)
    with pytest.raises(CamaeError, match="batch P9 was not seen"):
        maps.transform_parquet(loaded, [tmp_path / "new.parquet"], tmp_path / "never.parquet")
    assert not list(tmp_path.glob("*never*"))


def test_a_full_disk_of_scratch_files_is_one_sentence(tmp_path, monkeypatch):
    _, paths = _screen(tmp_path)
    monkeypatch.setattr(streaming, "open", lambda path, mode: FileIO("/dev/full", "w"), raising=False)
    with pytest.raises(OutputError, match=r"rows\.f32 cannot be written: "):
        maps.fit_parquet(maps.TVN(), paths)


def test_bad_input_is_one_sentence(tmp_path):
    table, paths = _screen(tmp_path)
    with pytest.raises(MissingFileError, match=r"gone\.parquet does not exist"):
        maps.fit_parquet(maps.TVN(), [tmp_path / "gone.parquet"])
    with pytest.raises(CamaeError, match="has no column Metadata_Batch"):
        maps.fit_parquet(maps.TVN(), paths, batch="Metadata_Batch")
    with pytest.raises(CamaeError, match="there are no negative controls"):
        maps.fit_parquet(maps.TVN(), paths, negative="DMSO")
    table.drop(columns="emb_0003").to_parquet(tmp_path / "x.parquet", index=False)
    with pytest.raises(CamaeError, match="other feature columns"):
        maps.fit_parquet(maps.TVN(), [*paths, tmp_path / "x.parquet"])


@pytest.mark.full
def test_memory_stays_under_a_cap_smaller_than_the_table(tmp_path):
    """A scaled-down run: a table of 205 MB (fp32) goes through a process that may take 180 MB beyond its start.

    The address space is capped before the work begins, so exceeding it is an error, not a measurement.
    """
    script = """
    import resource, sys
    from pathlib import Path
    import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq
    pa.set_cpu_count(1); pa.set_io_thread_count(1)
    from camae import maps
    folder = Path(sys.argv[1])
    names = [f"emb_{i:04d}" for i in range(256)]
    rng = np.random.default_rng(0)
    writer = None
    base = rng.normal(size=(8000, 256)).astype(np.float32)
    for k in range(25):
        x = np.roll(base, 5 * k, axis=1) + np.float32(0.1 * k)
        table = pa.table({"Metadata_Plate": [f"P{k}"] * 8000, "Metadata_control_type": ["negcon", *[""] * 15] * 500}
                         | dict(zip(names, x.T.copy())))
        writer = writer or pq.ParquetWriter(folder / "in.parquet", table.schema, use_dictionary=False)
        writer.write_table(table)
    writer.close()
    del table, x, base
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 180 * 2**20,) * 2)
    aligner = maps.align_parquet([folder / "in.parquet"], folder / "out.parquet", maps.TVN(), rows=4096)
    rows = pq.read_metadata(folder / "out.parquet").num_rows
    print(rows, aligner.rank_, (folder / "in.parquet").stat().st_size)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows, rank, size = map(int, done.stdout.split())
    assert (rows, rank) == (200_000, 256)
    assert size > 204e6


def test_an_aligned_file_replaces_none_that_is_read(tmp_path):
    table = pd.DataFrame({"Metadata_Plate": ["a"] * 4, "emb_0000": np.arange(4.0), "emb_0001": 1.0})
    path = tmp_path / "wells.parquet"
    table.to_parquet(path)
    before = path.read_bytes()
    with pytest.raises(CamaeError, match=r"wells.parquet is read here, and writing would replace it"):
        maps.align_parquet([path], path, maps.Center(), control=None)
    fitted = maps.fit_parquet(maps.Center(), [path], control=None)
    with pytest.raises(CamaeError, match="is read here"):
        maps.transform_parquet(fitted, [path], str(path))
    assert path.read_bytes() == before
