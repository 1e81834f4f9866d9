"""Calls of each system on each case, in the way its documentation shows: `prepare` is not timed, the call is.

Runs in camae's environment (camae, efaar, copairs, pycytominer) and in that of requirements-scverse.txt (mantispy,
harmony); what a system needs is imported in its own function.
"""

from __future__ import annotations

import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cases import Case, result_of_alignment

Result = dict[str, float]
Call = Callable[[], Any]


def camae_calls(kind: str, case: Case) -> dict[str, tuple[Call, Callable[[Any], Result]]]:
    from camae import maps

    aligned = lambda z: result_of_alignment(z, case)  # noqa: E731
    if kind == "tvn":
        return {
            f"camae {method}": (lambda m=method: maps.align(case.x, m, case.batch, case.control), aligned)
            for method in ("tvn_ando", "tvn")
        }
    if kind == "sphering":
        return {"camae": (lambda: maps.align(case.x, "spherize", None, case.control), aligned)}
    if kind.startswith("recall"):
        unit = case.x / np.linalg.norm(case.x, axis=1, keepdims=True)
        return {
            "camae": (lambda: maps.recall(case.x, case.perturbation, case.pairs), _recall_of_camae),
            "the product": (lambda: unit @ unit.T, lambda _: {}),
        }
    meta = pd.DataFrame({"pert": case.perturbation})
    return {
        "camae": (
            lambda: maps.retrieval(case.x, meta, ["pert"], [], [], ["pert"], 10_000, 0),
            lambda table: {"mean_ap": float(table["average_precision"].mean())},
        )
    }


def _recall_of_camae(table: pd.DataFrame) -> Result:
    return {"recall": float(table["recall"].iloc[0]), "pairs": float(table["n_pairs"].iloc[0])}


def mantispy_calls(kind: str, case: Case) -> dict[str, tuple[Call, Callable[[Any], Result]]]:
    import anndata
    import mantispy as mt

    n = len(case.x)
    wells = [f"{'ABCDEFGHIJKLMNOP'[i % 384 // 24]}{i % 24 + 1:02d}" for i in range(n)]
    data = anndata.AnnData(
        case.x,
        obs=pd.DataFrame(
            {
                "Metadata_Batch": case.batch,
                "Metadata_Plate": [f"plate{i // 384}" for i in range(n)],
                "Metadata_Well": wells,
                "Metadata_Perturbation": case.perturbation,
                "Metadata_Control_Type": np.where(case.control, "negcon", "treatment"),
                "Metadata_Control": case.control,
            },
            index=np.arange(n).astype(str),
        ),
    )
    mt.io.stamp(data, "well", feature_kind="embedding")
    if kind == "tvn":
        return {
            "mantispy": (
                lambda: mt.pp.tvn(data, use_rep=None),
                lambda _: result_of_alignment(data.obsm["X_tvn"], case),
            )
        }
    if kind.startswith("recall"):
        pairs = pd.DataFrame(case.pairs, columns=["a", "b"])
        net = pairs.assign(source=pairs.index.astype(str)).melt(id_vars="source", value_name="target")
        return {
            "mantispy": (
                lambda: mt.metrics.known_relationships(data, net[["source", "target"]]),
                lambda table: {"recall": float(table["value"].iloc[0])},
            )
        }
    # Average precision there is copairs', an extra of it.
    return {}


def harmony_calls(kind: str, case: Case) -> dict[str, tuple[Call, Callable[[Any], Result]]]:
    import harmonypy

    if kind != "tvn":
        return {}
    meta = pd.DataFrame({"batch": case.batch})

    def result(found: Any) -> Result:
        z = np.asarray(found.Z_corr)
        return result_of_alignment(z if z.shape == case.x.shape else z.T, case)

    return {
        "harmonypy": (lambda: harmonypy.run_harmony(case.x, meta, "batch", verbose=False), result),
    }


def efaar_calls(kind: str, case: Case) -> dict[str, tuple[Call, Callable[[Any], Result]]]:
    if "scvi" not in sys.modules:  # imported by it, and not used by these functions
        model = types.ModuleType("scvi.model")
        model.SCVI = None  # type: ignore[attr-defined]
        sys.modules |= {"scvi": types.ModuleType("scvi"), "scvi.model": model}
    from efaar_benchmarking import benchmarking, efaar
    from sklearn.utils import Bunch

    if kind == "tvn":
        meta = pd.DataFrame({"pert": np.where(case.control, "ctl", "x"), "batch": case.batch})
        return {
            "efaar": (
                lambda: efaar.tvn_on_controls(case.x.astype(np.float64), meta, "pert", "ctl", "batch"),
                lambda z: result_of_alignment(np.asarray(z, np.float32), case),
            )
        }
    if kind.startswith("recall"):
        folder = Path(tempfile.mkdtemp())
        pd.DataFrame(case.pairs, columns=["entity1", "entity2"]).to_csv(folder / "known.txt", index=False)
        table = Bunch(metadata=pd.DataFrame({"gene": case.perturbation}), features=pd.DataFrame(case.x))
        return {
            "efaar": (
                lambda: benchmarking.known_relationship_benchmark(
                    table, "gene", benchmark_sources=["known"], benchmark_data_dir=str(folder)
                ),
                lambda found: {"recall": float(found.iloc[0].filter(like="recall").iloc[0])},
            )
        }
    return {}


def copairs_calls(kind: str, case: Case) -> dict[str, tuple[Call, Callable[[Any], Result]]]:
    from copairs import map as copairs_map

    if kind != "average precision":
        return {}
    meta, folder = pd.DataFrame({"pert": case.perturbation}), tempfile.mkdtemp()

    def run() -> pd.DataFrame:
        ap = copairs_map.average_precision(meta, case.x, ["pert"], [], [], ["pert"], progress_bar=False)
        return copairs_map.mean_average_precision(
            ap, ["pert"], 10_000, 0.05, 0, cache_dir=folder, progress_bar=False
        )

    return {
        "copairs": (run, lambda table: {"mean_ap": float(table["mean_average_precision"].mean())}),
    }


def pycytominer_calls(kind: str, case: Case) -> dict[str, tuple[Call, Callable[[Any], Result]]]:
    from pycytominer.operations.transform import Spherize

    if kind != "sphering":
        return {}

    def run() -> np.ndarray:
        fitted = Spherize(method="ZCA", epsilon=1e-6).fit(pd.DataFrame(case.x[case.control]))
        return np.asarray(fitted.transform(pd.DataFrame(case.x)))

    return {"pycytominer": (run, lambda z: result_of_alignment(np.asarray(z, np.float32), case))}


SYSTEMS = {
    "camae": camae_calls,
    "mantispy": mantispy_calls,
    "harmonypy": harmony_calls,
    "efaar": efaar_calls,
    "copairs": copairs_calls,
    "pycytominer": pycytominer_calls,
}
PACKAGES = {"efaar": "efaar-benchmarking"}
