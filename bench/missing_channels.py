"""Missing channels: what one absent channel costs, with and without channel masking, on screens that no model has seen.

`python bench/missing_channels.py train ARM SEED` trains one encoder on the screens of TRAINED_ON, under
runs/missing_channels. `python bench/missing_channels.py score ARM SEED SCREEN [HOW]` scores it on one screen: all
channels, then each left out, by reading the others alone (HOW "missing") or with it imputed from them ("imputed").
A second call does nothing. `python bench/missing_channels_rows.py` makes rows and the figure of what has been scored.

Everything that could be chosen is fixed here, before SCREENS are drawn: what is looked at on the way is TRAINED_ON.
The score that counts is the recall of the default read-out, `pool="mean"`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rows import ROOT, commit

import camae
from camae import maps
from camae.dataloader import Manifest, read_manifest
from camae.embedding_table import feature_columns, features_of
from camae.evaluate.config import EvaluateConfig
from camae.evaluate.missing_channels import without
from camae.evaluate.scores import labeled_wells, standardized
from camae.evaluate.scores import score as evaluation_scores
from camae.files import write_json
from camae.model import CAMAE
from camae.omissions import Omissions
from camae.reproduction.demo.generate_screen import generate

TRAINED_ON = (4001, 4002, 4003, 4004)
# Not drawn before this file was written. Twelve were planned; cut to eight, for time, after four had been looked at.
SCREENS = tuple(range(6101, 6109))
SEEDS = (0, 1, 2)
# The recipe of the demo, longer, as the screens are more.
TRAINING: dict[str, Any] = {"recipe": "fast-cpu", "steps": 3000, "val": "plate", "checkpoint_every": 10**6}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mask_channels_04": {"mask_channels": 0.4},
}
# "never_DNA": trained as "plain", on the same screens without that channel. What an encoder of all channels loses to it
# where the channel is missing is what masking could win back; the rest of the drop is what the channel alone shows.
NEVER = "never_"
FOLDER = ROOT / "runs" / "missing_channels"


def screen(seed: int) -> tuple[Manifest, Path]:
    """A generated screen of one site per well, and its known pairs."""
    folder = generate(FOLDER.parent / "beyond" / "screens" / str(seed), sites=1, seed=seed, workers=1)
    return read_manifest(folder), folder / "relationships" / "demo_pairs.csv"


def train(arm: str, seed: str) -> None:
    out = FOLDER / arm / seed
    if (out / "trained.json").is_file():
        return
    began = time.perf_counter()
    data = [screen(number)[0] for number in TRAINED_ON]
    if lacking := arm.removeprefix(NEVER) if arm.startswith(NEVER) else "":
        data = [without(manifest, (lacking,)) for manifest in data]
    options = {} if lacking else ARMS[arm]
    camae.train(data, out=out / "model", seed=int(seed), quiet=True, **TRAINING, **options)
    write_json(out / "trained.json", {"seconds": time.perf_counter() - began, "commit": commit()})


def score(arm: str, seed: str, number: str, how: str = "missing") -> None:
    """Scores of one encoder on one screen: of all channels, and of each left out, "missing" or "imputed"."""
    out = FOLDER / arm / seed / number
    if (out / f"{how}.json").is_file():
        return
    began = time.perf_counter()
    manifest, pairs_file = screen(int(number))
    pairs, model = maps.read_pairs(pairs_file), camae.load(FOLDER / arm / seed / "model").eval()
    left_out = manifest.channels
    if arm.startswith(NEVER):
        manifest, left_out = without(manifest, (arm.removeprefix(NEVER),)), ()
    n_channels = len(manifest.channels)
    found: dict[str, Any] = {"all": scores(embedded(manifest, model, out / "all"), pairs, n_channels)}
    for name in left_out:
        impute = (name,) if how == "imputed" else ()
        table = embedded(without(manifest, (name,)), model, out / f"{how}_{name}", impute=impute)
        found[name] = scores(table, pairs, n_channels - 1 + len(impute))
    write_json(out / f"{how}.json", found | {"seconds": time.perf_counter() - began, "commit": commit()})


def embedded(manifest: Manifest, model: CAMAE, out: Path, **options: Any) -> pd.DataFrame:
    """Wells, with the features of one channel after another."""
    return camae.embed_screen(
        manifest, model, out, tiles="grid", pool="per_channel", quiet=True, threads=1, **options
    )


def scores(table: pd.DataFrame, pairs: np.ndarray, channels: int) -> dict[str, dict[str, float]]:
    """By read-out, the features of each channel or their mean over channels (`pool="mean"`): recall of the known
    pairs, the mean percentile of their cosines among all pairs, and consistency of replicates.
    """
    x_NCD = features_of(table).reshape(len(table), channels, -1)
    metadata = table.filter(regex="^Metadata_").reset_index(drop=True)
    found = {}
    for name, x_ND in (("per_channel", x_NCD.reshape(len(table), -1)), ("mean", x_NCD.mean(1))):
        wells = pd.concat([metadata, pd.DataFrame(x_ND, columns=feature_columns(x_ND.shape[1]))], axis=1)
        mapped = maps.map_screen(wells)
        recall = maps.recall(mapped.vectors, mapped.names, pairs).iloc[0]["recall"]
        labeled = labeled_wells(wells, EvaluateConfig(), 2, Omissions())
        found[name] = {
            "recall": float(recall),
            "percentile": percentile(mapped.vectors, list(mapped.names), pairs),
            "consistency": evaluation_scores(standardized(x_ND, labeled), labeled).row()["consistency"],
        }
    return found


def percentile(vectors_PD: np.ndarray, names: list[str], pairs: np.ndarray) -> float:
    """Mean share of all pairs' cosines that lie below a known pair's: 0.5 by chance, and less noisy than recall."""
    unit_PD = vectors_PD / np.linalg.norm(vectors_PD, axis=1, keepdims=True)
    cosine_PP = unit_PD @ unit_PD.T
    everything = np.sort(cosine_PP[np.triu_indices(len(names), 1)])
    place = {name: i for i, name in enumerate(names)}
    known = [cosine_PP[place[a], place[b]] for a, b in pairs]
    return float(np.mean(np.searchsorted(everything, known) / len(everything)))


if __name__ == "__main__":
    {"train": train, "score": score}[sys.argv[1]](*sys.argv[2:])
