"""Random embeddings: recall by chance (paper, Table 3: "Random 1024-dim embeddings")."""

from __future__ import annotations

import numpy as np
import pandas as pd

from camae.embedding_table import make_table


def random_table(like: pd.DataFrame, width: int = 1024, seed: int = 0) -> pd.DataFrame:
    """Table of standard normal vectors beside the `Metadata_*` columns of `like`, a row for each of its rows."""
    vectors_ND = np.random.default_rng(seed).standard_normal((len(like), width))
    return make_table(like.filter(regex="^Metadata_"), vectors_ND)
