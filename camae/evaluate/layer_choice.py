"""`camae.evaluate.layers`: the encoder block whose embedding tells perturbations apart best."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from camae.dataloader.manifest import Manifest
from camae.embedding.default_model import ModelSource, resolve_model
from camae.embedding.screen import embed_screen
from camae.embedding_table import features_of
from camae.errors import CamaeError
from camae.evaluate.config import EvaluateConfig, EvaluateOptions
from camae.evaluate.figures import layer_figure
from camae.evaluate.scores import Wells, check_screen, labeled_wells, score, standardized
from camae.files import path_of, remove_unfinished
from camae.model.chosen_layer import ChosenLayer, store_layer
from camae.model.interface import Model, TokenModel, TransformerConfig
from camae.omissions import Omissions
from camae.reporting.style import save_png
from camae.text_table import write_csv

HELD_OUT = "held_out_"
_NEEDED = 4  # perturbations: two in either half


def layers(
    data: Manifest | str | Path,
    model: ModelSource | None = None,
    out: str | Path = "layers",
    *,
    config: EvaluateConfig | None = None,
    **options: Unpack[EvaluateOptions],
) -> pd.DataFrame:
    """Choose the encoder block to embed with, on a labeled screen.

    One pass embeds all wells by every block. The block is chosen on a random half of the perturbations, by the mean of
    its ranks in separability and in consistency (`camae.evaluate.scores.Score`), and scored on the other half too,
    which the choice never saw. Features are standardized by each plate's negative controls.

    data, model: as in `camae.embed_screen`. options: the fields of `EvaluateConfig`.
    Returns one row per block: block, separability, separability_se, chance, consistency, consistency_se, the same of
    the held-out half as `held_out_...`, rank and chosen; `attrs["notes"]` says what was chosen and how.
    Writes `layers.csv`, `layers.png` and `embeddings/` (a run that was stopped goes on) into `out`, and the choice
    beside the model's file, where `embed(layers="best")` finds it.
    Raises CamaeError for a model without blocks, a missing column, or fewer than four perturbations with replicates on
    two plates.
    """
    config = EvaluateConfig.of(config, **options)
    net = resolve_model(model, config.device)
    depth = _depth(net)
    manifest, folder = config.read(data), path_of(out, "out")
    check_screen(manifest, config)
    embedded = config.embedding(range(depth))
    wells_table = embed_screen(manifest, net, folder / "embeddings", config=embedded)
    if not wells_table.attrs["complete"]:
        raise CamaeError(f"{folder}: other ranks still embed; run it again when all are done")
    left_out = Omissions()
    left_out.extend(manifest.left_out)
    wells = labeled_wells(wells_table, config, _NEEDED, left_out)
    table = _score_blocks(features_of(wells_table), wells, depth, config.seed)
    chosen = ChosenLayer(int(table.index[table["chosen"]][0]), depth, config.pool, _note(table, data, wells))
    remove_unfinished(folder)
    write_csv(folder / "layers.csv", table)
    save_png(layer_figure(table), folder / "layers.png")
    left_out.write(folder)
    path = store_layer(net, chosen)
    kept = f"kept in {path}" if path else "not kept, because the model was not read from a file"
    table.attrs["notes"] = [
        *wells.notes,
        f"best block: {chosen.block} of 0 to {depth - 1}, {kept}",
        chosen.note,
    ]
    table.attrs["left_out"] = left_out
    return table


def _depth(model: Model) -> int:
    """Blocks of the encoder. Raises CamaeError for a model without."""
    if not isinstance(model, TokenModel) or not isinstance(model.config, TransformerConfig):
        raise CamaeError(f"{model.config.name} has no encoder blocks to choose from; give a CA-MAE")
    return model.config.depth


def _score_blocks(x_NLD: np.ndarray, wells: Wells, depth: int, seed: int) -> pd.DataFrame:
    """Scores of every block. x_NLD: (n, depth * D), features of the blocks side by side."""
    choosing, held_out = wells.halves(seed)
    rows = []
    for block, x_ND in enumerate(np.split(x_NLD, depth, axis=1)):
        z_MD = standardized(x_ND, wells)
        of_half = [score(z_MD, wells, names) for names in (choosing, held_out)]
        rows.append({"block": block} | of_half[0].row() | of_half[1].row(HELD_OUT))
    table = pd.DataFrame(rows)
    ranks = [table[name].rank(ascending=False) for name in ("separability", "consistency")]
    table["rank"] = (ranks[0] + ranks[1]) / 2
    # Of equal ranks the more separable block, and then the later one.
    order = table.sort_values(["rank", "separability", "block"], ascending=[True, False, False])
    table["chosen"] = table.index == order.index[0]
    return table


def _note(table: pd.DataFrame, data: Manifest | str | Path, wells: Wells) -> str:
    """One sentence on the choice, with its held-out scores beside the last block's."""
    best, last = table[table["chosen"]].iloc[0], table.iloc[-1]
    where = "a manifest" if isinstance(data, Manifest) else Path(data).name

    def shown(name: str) -> str:
        value, error = best[HELD_OUT + name], best[f"{HELD_OUT}{name}_se"]
        return f"{name} {value:.3f} +- {error:.3f} (last block {last[HELD_OUT + name]:.3f})"

    return (
        f"chosen on {where} by half of its {len(wells.perturbations)} perturbations; on the other half "
        f"{shown('separability')}, {shown('consistency')}"
    )
