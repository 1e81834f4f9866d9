"""Real images embed from their own files with one command each: RxRx1, NF1, JUMP and ImageXpress samples."""

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from camae.cli import app
from camae.embedding_table import features_of, read_table
from camae.model import CAMAE, preset, save

# folder, options, wells, channels (of the first site), the first well
SAMPLES = {
    "rxrx1": ("rxrx1_sample", ["--format", "rxrx1", "--incomplete", "skip"], 18, "HEPG2-01_1"),
    "nf1": (
        "cytodataframe/NF1_cellpainting_data_shrunken",
        [
            "--pattern",
            r"(?P<plate>Plate_\d+)_images/(?P<well>[A-P]\d+)_01_\d_(?P<site>\d+)_(?P<channel>DAPI|GFP|RFP)_001\.tif$",
        ],
        5,
        "Plate_2",
    ),
    "jump_zarr": ("jump_rab30_mini", [], 2, "BR00123947"),
    "jump_tiff": ("cytodataframe/JUMP_plate_BR00117006/images/orig", [], 1, "orig"),
    "imagexpress": ("faim_imagexpress_projection_mix", [], 2, "Projection-Mix"),
}


@pytest.fixture(scope="module")
def own_model(tmp_path_factory):
    """A tiny model with 128-px crops."""
    torch.manual_seed(0)
    config = preset(
        "ca_mae_vit_ti16", width=32, heads=2, depth=1, crop=128, decoder={"width": 32, "depth": 1, "heads": 4}
    )
    return save(CAMAE(config), tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.filterwarnings("ignore:.*are incomplete.*")
def test_one_command(name, real_data, own_model, tmp_path):
    if name == "jump_zarr":
        pytest.importorskip("zarr", reason="needs zarr")
    folder, options, wells, plate = SAMPLES[name]
    command = ["embed", str(real_data / "images" / folder), "--model", str(own_model), "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, (result.output, result.exception)
    table, about = read_table(tmp_path / "wells.parquet")
    vectors = features_of(table)
    assert vectors.shape == (wells, 32)
    assert np.isfinite(vectors).all()
    assert plate in set(table["Metadata_Plate"])
    assert about["tiles"] == "grid"
    assert len(pd.DataFrame(vectors).drop_duplicates()) == wells
