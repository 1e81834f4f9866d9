"""The four commands of docs/jump-lite.md, as they stand there, on a small release: one of them killed and run again."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from explored_screen import PageData
from jump_lite_release import INDEX, MECHANISMS, RELEASED, write_release
from PIL import Image
from shell_commands import PROGRAM, SLOW

from camae import maps
from camae.dataloader import read_manifest
from camae.dataloader.read_pixels import read_site
from camae.model import CAMAE, preset, save

pytest.importorskip("zarr")
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not pytest.importorskip("imagecodecs").JPEGXL.available, reason="no JPEG XL"),
]
PAGE = (Path(__file__).parents[1] / "docs" / "jump-lite.md").read_text()
GONE = ("source_7", "A02", 1)


def commands():
    """Name -> words of the page's commands."""
    block = next(b for b in re.findall(r"```bash\n(.*?)```", PAGE, re.S) if "camae embed" in b)
    lines = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert [words[0] for words in lines] == ["camae"] * 4
    return {words[1]: words[1:] for words in lines}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder as the page's first command leaves it, the stores where the plan's commands put them, and a model."""
    folder = tmp_path_factory.mktemp("here")
    write_release(folder / "cpg0016-jump" / "source_all", wells=2, sites=1, missing=[GONE])
    shutil.move(folder / "cpg0016-jump" / "source_all" / RELEASED["metadata"], folder / "jump_lite")
    torch.manual_seed(0)
    small = {"width": 32, "heads": 2, "depth": 1, "crop": 32, "patch": 8, "layer_scale": 0.5}
    decoder = {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4}
    channels = ("AGP", "DNA", "ER", "Mito", "RNA")
    save(
        CAMAE(preset("ca_mae_vit_ti16", channels=channels, decoder=decoder, **small)),
        folder / "model.safetensors",
    )
    return folder


def run(here, words, program=(PROGRAM,)):
    done = subprocess.run(
        [*program, *words],
        cwd=here,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def killed_after_two_shards(here, words):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(seconds=0.1), *words, "--threads", "1"],
        cwd=here,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(list((here / "emb" / "sites").glob("part-*"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (here / "emb" / "wells.parquet").exists()


def test_the_four_commands_of_the_page(here):
    typed = commands()
    said = run(here, typed["data"])
    assert "43 files on disk" in said
    assert "1 on S3, about" in said
    assert "jpegxl_lossy_mq.zarr/source_7__B2__CP_3__A02__1" in said

    embed = [*typed["embed"], "--sites-per-shard", "8"]  # so that a kill leaves a part
    killed_after_two_shards(here, embed)
    said = run(here, embed)
    assert "1 site left out: the file of its array in jpegxl_lossy_mq.zarr is not there" in said
    assert "44 of 44 rows matched" in said or "43 of 43 rows matched" in said
    whole = [w if w != "emb" else "whole" for w in embed]
    run(here, whole)
    for name in ("wells.parquet", "sites/part-00002.parquet"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(here / "emb" / name), pd.read_parquet(here / "whole" / name), check_exact=True
        )
    found = {
        out: sorted(p.relative_to(here / out) for p in (here / out).rglob("embedding.parquet"))
        for out in ("emb", "whole")
    }
    assert len(found["emb"]) == 43
    assert found["emb"] == found["whole"]
    folder = here / "emb/workspace_dl/embeddings/ca_mae_vit_ti16-jpegxl_lossy_mq/2026_jump_lite_v1.0"
    site = pd.read_parquet(folder / "source_7" / "B2" / "CP_3" / "A01-1" / "embedding.parquet")
    wells = pd.read_parquet(here / "emb" / "wells.parquet")
    row = wells[(wells["Metadata_Plate"] == "CP_3") & (wells["Metadata_Well"] == "A01")]
    np.testing.assert_array_equal(site["value"], row.filter(like="emb_").to_numpy()[0])

    run(here, typed["benchmark"])
    check_benchmark(here)
    run(here, typed["explore"])
    check_page(here)


def check_benchmark(here):
    """Recall of both sources after TVN, beside that of the map made anew in Python."""
    results = json.loads((here / "benchmark" / "benchmark.json").read_text())
    assert any("2 pairs left out: RefChemDB names no direction" in line for line in results["notes"]["wells"])
    pairs = maps.read_pairs_folder(here / "jump_lite" / "jump_lite_refchem_annotations.parquet")
    made = maps.map_screen(here / "emb" / "wells.parquet", perturbation="Metadata_JCP2022", method="tvn")
    expected = maps.recall(made.vectors, made.names, pairs)
    rows = {row["source"]: row for row in results["table3"] if row["step"] == "TVN"}
    assert {source: row["n_pairs"] for source, row in rows.items()} == {
        "RefChemDB_genes": 3,
        "RefChemDB_compounds": 2,
    }
    for source, row in rows.items():
        assert row["recall"] == pytest.approx(expected.loc[source, "recall"])


def check_page(here):
    """Perturbations, known pairs and thumbnails of the explorer."""
    page = PageData(here / "map" / "index.html").data
    assert sorted(page["sources"]) == ["RefChemDB_compounds", "RefChemDB_genes"]
    thumbnails = page["thumbnails"]["wells"]
    assert sorted(thumbnails) == sorted(MECHANISMS)
    shown = [w for wells in thumbnails.values() for w in wells]
    assert len(shown) == 2 * 2 * len(MECHANISMS) - 1 or len(shown) == 3 * len(MECHANISMS)
    assert all((here / "map" / w["file"]).is_file() for w in shown)
    assert all(w["channels"] == ["AGP", "DNA", "ER", "Mito", "RNA"] for w in shown)

    manifest = read_manifest(here / "jump_lite" / INDEX, variant="mq", incomplete="keep")
    for well in shown[::5]:
        strip, planes = shown_planes(here / "map" / well["file"]), planes_of(manifest, well)
        alike = np.corrcoef(strip, planes)[:5, 5:]
        # Each channel looks most like its own plane; how much is not asked, as what outshines the controls is white.
        assert alike.argmax(1).tolist() == [0, 1, 2, 3, 4]
        assert alike.argmax(0).tolist() == [0, 1, 2, 3, 4]


def planes_of(manifest, well):
    """Middle squares of the planes of the site that a thumbnail is of, (5, 1600)."""
    table = manifest.table
    place = table["Metadata_Source"] + "/" + table["Metadata_Batch"] + "/" + table["Metadata_Plate"]
    row = int(np.flatnonzero((place == well["plate"]) & (table["Metadata_Well"] == well["well"]))[0])
    return read_site(manifest, row)[0][:, :, 4:44].reshape(5, -1).astype(float)


def shown_planes(file):
    """Planes of a thumbnail's strip, without the composite, at the 40 px that were enlarged to 160: (5, 1600)."""
    strip = np.asarray(Image.open(file).convert("L"), float).reshape(40, 4, 6, 40, 4).mean((1, 4))
    return strip.transpose(1, 0, 2)[1:].reshape(5, -1)


def test_the_page_s_python_is_the_shell_s_command(here):
    code = next(b for b in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "embed_screen" in b)
    run(here, [code.replace('out="emb"', 'out="python"')], (sys.executable, "-c"))
    table = pd.read_parquet(here / "python" / "wells.parquet")
    assert len(table) == 43
    assert (here / "jump_lite" / INDEX).is_file()
    assert len(list((here / "python").rglob("embedding.parquet"))) == 43
