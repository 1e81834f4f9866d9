"""mantispy's own check of AnnData files that camae wrote, and some of its tools run on those of wells.

    ENV/bin/python bench/competitors/validate.py emb/wells.h5ad ...     # ENV: requirements-scverse.txt

Prints one line for each file and tool; exit code 1 where a file is not valid or a tool fails.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import anndata
import mantispy as mt
import numpy as np

TOOLS: dict[str, Callable[[anndata.AnnData], object]] = {
    "pp.normalize": lambda data: mt.pp.normalize(data, reference="negcon"),
    "pp.sphere": lambda data: mt.pp.sphere(data),
    "pp.tvn": lambda data: mt.pp.tvn(data, batch_key="Metadata_Plate", use_rep=None),
    "tl.consensus": lambda data: mt.tl.consensus(data, by=_perturbation(data)),
    "tl.similarity": lambda data: mt.tl.similarity(mt.tl.consensus(data, by=_perturbation(data))),
}


def _perturbation(data: anndata.AnnData) -> str:
    """The column that names perturbations: the screen's own."""
    return next(name for name in ("Metadata_Perturbation", "Metadata_Gene") if name in data.obs)


def main(paths: list[str]) -> int:
    """Check every file; the number of failures."""
    warnings.simplefilter("ignore")
    failures = 0
    for path in paths:
        data = anndata.read_h5ad(path)
        report = mt.io.validate(data)
        print(f"{path}: {'valid' if report else 'not valid'} {report}".replace("\n", " "))
        failures += not report
        if data.uns["mantispy"]["resolution"] != "well":
            continue
        for name, tool in TOOLS.items():
            try:
                tool(data.copy())
            except Exception as error:  # whatever it raises is the finding
                failures += 1
                print(f"  {name}: {type(error).__name__}: {str(error)[:200]}")
            else:
                print(f"  {name}: ran")
        assert np.isfinite(data.X).all()
    return failures


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
