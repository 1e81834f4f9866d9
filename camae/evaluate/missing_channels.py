"""`camae.evaluate.channels`: what an embedding loses when a channel is missing, and how well decoders impute it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from camae import maps
from camae.dataloader.center_crops import center_batch
from camae.dataloader.manifest import ILLUMINATION, Manifest
from camae.embedding.best_layer import with_chosen_layer
from camae.embedding.config import EmbedConfig
from camae.embedding.default_model import ModelSource, resolve_model
from camae.embedding.screen import embed_screen
from camae.embedding_table import features_of
from camae.errors import CamaeError
from camae.evaluate.config import ChannelsConfig, ChannelsOptions
from camae.evaluate.figures import channel_figure, imputed_figure
from camae.evaluate.imputation import Imputed, impute
from camae.evaluate.scores import check_screen, labeled_wells, score, standardized
from camae.files import path_of, remove_unfinished
from camae.inference.imputed_channels import ImputedChannels
from camae.maps.pairs import match_pairs
from camae.maps.profiles import column
from camae.model.ca_mae import CAMAE
from camae.model.interface import Model
from camae.omissions import Omissions
from camae.reporting.style import save_png
from camae.text_table import write_csv

_NEEDED = 2  # perturbations
_FIELDS = 16  # center crops whose channels are imputed


def channels(
    data: Manifest | str | Path,
    model: ModelSource | None = None,
    out: str | Path = "channels",
    *,
    config: ChannelsConfig | None = None,
    **options: Unpack[ChannelsOptions],
) -> pd.DataFrame:
    """Leave-one-channel-out scores of a model's embedding on a labeled screen.

    The screen is embedded with all channels and without each of them; with `imputed` also with each imputed from the
    others; with `nested` also without two, three ..., in the order in which the first scores say that channels can be
    spared. All sets are scored alike, on the same wells.

    data, model: as in `camae.embed_screen`. options: the fields of `ChannelsConfig`.
    Returns one row per set: left_out (channels, "+" between them; "" for none), n_channels, imputed, separability,
    separability_se, chance, consistency, consistency_se, with `pairs` recall and recall_se, and imputed_mse: the mean
    squared error of the channel's prediction from the others, over up to 16 center crops (1: no better than the mean),
    for models with decoders of these channels.
    Writes `channels.csv`, `channels.png`, for such models `imputed.png` (one field: original, imputed, error), and
    `embeddings/` into `out`; a run that was stopped goes on.
    Raises CamaeError for a screen of one channel, sites that differ in channels, a missing column, or fewer than two
    perturbations with replicates on two plates.
    """
    config = ChannelsConfig.of(config, **options)
    net = resolve_model(model, config.device)
    manifest, folder, left_out = config.read(data), path_of(out, "out"), Omissions()
    left_out.extend(manifest.left_out)
    check_screen(manifest, config, controls_needed=config.pairs is not None)
    _check(manifest)
    if config.imputed:
        ImputedChannels(
            net, manifest.channels
        )  # refuses what cannot impute them, before anything is embedded
    embedded = with_chosen_layer(config.embedding(), net)
    evaluation = _Evaluation(manifest, net, folder, config, embedded)
    rows = [evaluation.row((), left_out), *(evaluation.row((name,)) for name in manifest.channels)]
    if config.imputed:
        rows += [evaluation.row((name,), imputed=True) for name in manifest.channels]
    if config.nested:
        rows += [evaluation.row(names) for names in nested_sets(pd.DataFrame(rows))]
    table = pd.DataFrame(rows)
    imputed = _imputed(manifest, net, config)
    if imputed:
        errors = {field[0].channel: np.mean([i.mse for i in field]) for field in imputed}
        # Names may hold the "+" of sets.
        single = (table["n_channels"] == len(manifest.channels) - 1) & ~table["imputed"]
        table["imputed_mse"] = table["left_out"].map(errors).where(single)
    remove_unfinished(folder)
    write_csv(folder / "channels.csv", table)
    save_png(channel_figure(table), folder / "channels.png")
    if imputed:
        save_png(imputed_figure([field[0] for field in imputed]), folder / "imputed.png")
    left_out.write(folder)
    table.attrs["notes"] = [*evaluation.notes, _note(table)]
    table.attrs["left_out"] = left_out
    return table


class _Evaluation:
    """Embeds and scores one set of channels after another. notes: of the first set, which all share."""

    def __init__(
        self, manifest: Manifest, model: Model, folder: Path, config: ChannelsConfig, embedded: EmbedConfig
    ):
        self.manifest, self.model, self.folder = manifest, model, folder
        self.config, self.embedded = config, embedded
        self.notes: tuple[str, ...] = ()
        self.pairs = None if config.pairs is None else _known_pairs(config.pairs, manifest, config.label)

    def row(
        self, names: Sequence[str], left_out: Omissions | None = None, *, imputed: bool = False
    ) -> dict[str, object]:
        """Scores without the channels `names`, or with them imputed from the others.

        left_out: gets the perturbations that are not scored.
        """
        # A number, as names of channels may hold what folders may not.
        numbers = [str(self.manifest.channels.index(name)) for name in names]
        kind = "imputed_" if imputed else "without_"
        where = self.folder / "embeddings" / (kind + "_".join(numbers) if names else "all")
        config = replace(self.embedded, impute=tuple(names)) if imputed else self.embedded
        table = embed_screen(without(self.manifest, names), self.model, where, config=config)
        if not table.attrs["complete"]:
            raise CamaeError(f"{where}: other ranks still embed; run it again when all are done")
        wells = labeled_wells(table, self.config, _NEEDED, Omissions() if left_out is None else left_out)
        self.notes = wells.notes
        found: dict[str, object] = {
            "left_out": "+".join(names),
            "n_channels": len(self.manifest.channels) - len(names),
            "imputed": imputed,
        }
        return found | score(standardized(features_of(table), wells), wells).row() | self._recall(table)

    def _recall(self, table: pd.DataFrame) -> dict[str, float]:
        if self.pairs is None:
            return {}
        c = self.config
        mapped = maps.map_screen(
            table, perturbation=c.label, plate=c.plate, control=c.control, negative=c.negative
        )
        found = maps.recall(mapped.vectors, mapped.names, self.pairs, interval=True).iloc[0]
        return {"recall": float(found["recall"]), "recall_se": float(found["se"])}


def without(manifest: Manifest, names: Sequence[str]) -> Manifest:
    """The manifest without some channels, and without their illumination functions."""
    gone = [c for c in (*names, *(ILLUMINATION + name for name in names)) if c in manifest.table]
    return manifest.with_table(manifest.table.drop(columns=gone)) if gone else manifest


def nested_sets(scores: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Sets of two, three ... channels to leave out, all but one at most: those that can be spared best come first.

    scores: rows of all channels and without each. What a channel is worth is the mean of its ranks in separability and
    consistency.
    """
    single = scores[(scores["left_out"] != "") & ~scores["imputed"]]
    ranks = single[["separability", "consistency"]].rank(ascending=False).mean(axis=1)
    order = single.loc[ranks.sort_values(kind="stable").index, "left_out"].tolist()
    for count in range(2, len(order)):
        yield tuple(order[:count])


def _known_pairs(path: str, manifest: Manifest, label: str) -> np.ndarray:
    """Known pairs of a file; raises CamaeError where none is of the screen's perturbations, before it is embedded."""
    pairs = maps.read_pairs(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the recall counts the unknown pairs
        match_pairs(sorted(set(column(manifest.table, label, "perturbations").tolist())), pairs, path)
    return pairs


def _check(manifest: Manifest) -> None:
    if len(manifest.channels) < 2:
        raise CamaeError(
            f"the screen has the channel {manifest.channels[0]!r} alone; leaving one out needs two or more"
        )
    empty = (manifest.table[list(manifest.channels)] == "").to_numpy()
    if empty.any():
        row, place = np.argwhere(empty)[0]
        raise CamaeError(
            f"{manifest.where(int(row))} lacks channel {manifest.channels[place]!r}; give sites that all have the same "
            "channels (channels= chooses)"
        )


def _imputed(manifest: Manifest, model: Model, config: ChannelsConfig) -> list[list[Imputed]]:
    """Every channel of up to 16 fields, imputed from the others; empty for a model without their decoders."""
    if not isinstance(model, CAMAE) or not set(manifest.channels) <= set(model.channels):
        return []
    fields = range(0, len(manifest), max(1, len(manifest) // _FIELDS))[:_FIELDS]
    found: list[list[Imputed]] = [[] for _ in manifest.channels]
    for row in fields:
        batch, _ = center_batch(
            manifest, [row], model.config.crop, value_range=config.value_range, reader=config.reader
        )
        names = batch.names_K
        for place, name in enumerate(manifest.channels):
            found[place].append(impute(model, batch.planes_KHW, names, name, value_range=config.value_range))
    return found


def _note(table: pd.DataFrame) -> str:
    """One sentence: the channel without which most is left, and what that is."""
    whole = table.iloc[0]
    single = table[(table["n_channels"] == whole["n_channels"] - 1) & ~table["imputed"]]
    ranks = single[["separability", "consistency"]].rank(ascending=False).mean(axis=1)
    spared = single.loc[ranks.idxmin()]
    # The sets share their wells, so two standard errors of one score are more than their difference needs.
    lost = [
        f"{row['left_out']} ({name})"
        for row in single.to_dict("records")
        for name in ("separability", "consistency")
        if whole[name] - row[name] > 2 * max(whole[f"{name}_se"], row[f"{name}_se"])
    ]
    beyond = f"what is lost by more than two standard errors: {', '.join(lost)}"
    return (
        f"{spared['left_out']} can be spared best: without it separability is {spared['separability']:.3f} +- "
        f"{spared['separability_se']:.3f} (all channels {whole['separability']:.3f}) and consistency "
        f"{spared['consistency']:.3f} +- {spared['consistency_se']:.3f} (all channels {whole['consistency']:.3f}); "
        + (beyond if lost else "no channel's loss is above two standard errors, so the order says little")
    )
