"""Coverage of the 95 % intervals of recall: screens drawn again and again, and how often the interval holds the truth.

    python bench/coverage.py --screens 1000 --seed 9000 --out bench/results/coverage.json

A screen is noise and effects of perturbations in 24 dimensions. The truth is the mean over all screens drawn. Kinds:
cliques of four with a medium effect, with effects of varied strength, without effect, with a strong one; sparse random
pairs, each with an effect of its own (perturbations share several); complexes of 2 to 12 with sparse pairs between
them. Sizes: 60 pairs of 40 perturbations among 120, as on the demo screen, and 120 or so perturbations all in pairs.
The formula was chosen on seeds 1 to 5 (and 9000 and 9100, for pooled screens); committed rows have seed 9200.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from camae import maps
from camae.reproduction.demo.evaluate import pool_scores

WIDTH = 24
KINDS = ("cliques", "varied", "no signal", "strong", "sparse", "complexes")
EFFECT = {"cliques": 0.7, "varied": 0.7, "no signal": 0.0, "strong": 1.6, "sparse": 1.0, "complexes": 0.6}
SIZES = {"demo": (40, 80), "all related": (120, 0)}  # related perturbations, and others
SCREENS_POOLED = 5
GROUPINGS = 10  # of the screens by five, to know the coverage of pooled ones better

Rows = npt.NDArray[np.float64]


def design(kind: str, number: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Group of each perturbation (-1: none) and loose pairs (pairs, 2): the same for every screen of a kind."""
    rng = np.random.default_rng(0)
    if kind == "sparse":
        return np.full(number, -1), _sparse(rng, number, number)
    if kind != "complexes":
        return np.arange(number) // 4, np.zeros((0, 2), np.int64)
    sizes = rng.integers(2, 13, number)
    group = np.repeat(np.arange(number), sizes)[:number]
    group[int(0.7 * number) :] = -1
    return group, _sparse(rng, number, number // 3)


def _sparse(rng: np.random.Generator, number: int, count: int) -> npt.NDArray[np.int64]:
    first, second = np.triu_indices(number, 1)
    chosen = rng.choice(len(first), count, replace=False)
    return np.stack([first[chosen], second[chosen]], axis=1)


def known_pairs(group: npt.NDArray[np.int64], loose: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """All pairs of one group and the loose ones, (pairs, 2)."""
    first, second = np.triu_indices(len(group), 1)
    inside = (group[first] == group[second]) & (group[first] >= 0)
    return np.unique(np.concatenate([np.stack([first, second], axis=1)[inside], loose]), axis=0)


def effects(kind: str, number: int, rng: np.random.Generator) -> Rows:
    """Effects (number, WIDTH) of a screen: one of each group, and one of each loose pair."""
    group, loose = design(kind, number)
    shared = rng.normal(size=(number, WIDTH)) * EFFECT[kind]
    if kind in ("varied", "complexes"):
        shared *= np.exp(0.8 * rng.normal(size=(number, 1)))
    out: Rows = np.where(group[:, None] >= 0, shared[group], 0.0)
    own = rng.normal(size=(len(loose), WIDTH)) * EFFECT[kind]
    np.add.at(out, loose[:, 0], own)
    np.add.at(out, loose[:, 1], own)
    return out


def screen(kind: str, size: str, rng: np.random.Generator, seeds: int = 3) -> tuple[list[Rows], list[Rows]]:
    """Maps of two encoders of a screen, `seeds` of each; the second sees weaker effects. All see the same wells."""
    related, others = SIZES[size]
    own = effects(kind, related, rng)
    effect = np.concatenate([own, np.zeros((others, WIDTH))])
    wells = rng.normal(size=effect.shape)

    def encoder(strength: float) -> list[Rows]:
        turn = [np.eye(WIDTH) + 0.3 * rng.normal(size=(WIDTH, WIDTH)) for _ in range(seeds)]
        return [(strength * effect + wells) @ m + 0.3 * rng.normal(size=wells.shape) for m in turn]

    return encoder(1.0), encoder(0.8)


def coverage(kind: str, size: str, screens: int, seed: int) -> dict[str, float | str | int]:
    """Coverage of the intervals of recall, of a paired difference, and of both pooled over screens."""
    related, others = SIZES[size]
    names = np.arange(related + others).astype(str)
    pairs = names[known_pairs(*design(kind, related))]
    rng = np.random.default_rng([seed, KINDS.index(kind), list(SIZES).index(size)])
    found: dict[str, list[dict[str, float]]] = {"recall": [], "one map": [], "difference": []}
    for _ in range(screens):
        first, second = screen(kind, size, rng)
        both = maps.recall_difference(first, second, names, pairs)
        found["recall"].append(both["trained"])
        found["difference"].append(both["difference"])
        row = maps.recall(first[0], names, pairs, interval=True).iloc[0]
        found["one map"].append({"value": row.recall, "se": row.se, "low": row.low, "high": row.high})
    for what in ("recall", "difference"):
        found[f"{what}, pooled"] = [
            pool_scores([found[what][k] for k in order[at : at + SCREENS_POOLED]], what == "difference")
            for order in (rng.permutation(screens).tolist() for _ in range(GROUPINGS))
            for at in range(0, screens - SCREENS_POOLED + 1, SCREENS_POOLED)
        ]
    out: dict[str, float | str | int] = {"kind": kind, "size": size, "screens": screens, "seed": seed}
    for what, scores in found.items():
        value = np.array([score["value"] for score in scores])
        # A pooled score's truth is known better from all screens.
        truth = np.mean([score["value"] for score in found[what.removesuffix(", pooled")]])
        held = [score["low"] <= truth <= score["high"] for score in scores]
        error = np.sqrt(np.mean([score["se"] ** 2 for score in scores]))
        out |= {
            what: round(float(truth), 4),
            f"{what}: coverage": round(float(np.mean(held)), 4),
            f"{what}: se over spread": round(float(error / value.std(ddof=1)), 3),
        }
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the rows, one for each kind and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screens", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=9000)
    parser.add_argument("--kind", action="append", choices=KINDS, help="again for more; all without it")
    parser.add_argument("--out", type=Path, default=Path("bench/results/coverage.json"))
    options = parser.parse_args(arguments)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in options.kind or KINDS:
            for size in SIZES:
                rows.append(coverage(kind, size, options.screens, options.seed))
                print(rows[-1], flush=True)
                options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
