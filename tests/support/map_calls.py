"""A call of every public function of camae.maps that takes arrays, for the kinds of arrays that tests compare."""

import numpy as np
import pandas as pd

from camae import maps

RNG = np.random.default_rng(0)
N = 160
PERT = np.array([f"p{i:02d}" for i in np.arange(N) % 20])
PLATE = np.array([f"P{i % 2}" for i in RNG.permutation(N)])
CONTROL = np.arange(N) % 20 < 4
META = pd.DataFrame({"pert": PERT, "plate": PLATE, "control": CONTROL})
X = RNG.normal(size=(N, 8)) + RNG.normal(size=(20, 8))[np.arange(N) % 20]
Y = RNG.normal(size=(N, 3))
NAMES = np.unique(PERT)
V = RNG.normal(size=(20, 8))
PAIRS = [(NAMES[i], NAMES[(7 * i + 3) % 20]) for i in range(20)]
ARMS = {name: f"chr{i % 3}p" for i, name in enumerate(NAMES)}
SILENT = dict.fromkeys(NAMES.tolist(), -4.0)
RULES = ("pert", [], "plate", "control")

# By name; `t` turns a NumPy array into the kind under test.
CALLS = {
    **{
        f"align {m}": lambda t, m=m: maps.align(
            t(X), m, None if m == "spherize" else PLATE, CONTROL, perturbation=PERT
        )
        for m in maps.METHODS
    },
    "activity": lambda t: maps.activity(t(X), PERT, t(CONTROL), PLATE, permutations=20),
    "aggregate": lambda t: maps.aggregate(t(X), PERT, control=CONTROL),
    "aggregate median": lambda t: maps.aggregate(t(X), PERT, "median", origin=t(V[0])),
    "arm_bias": lambda t: maps.arm_bias(t(V), NAMES, ARMS),
    "average_precision": lambda t: maps.average_precision(t(X), META, *RULES),
    "calibration": lambda t: maps.calibration(t(X), t(CONTROL), PLATE, replicates=2, permutations=20),
    "consistency": lambda t: maps.consistency(t(X), PERT),
    "correct_arms": lambda t: maps.correct_arms(t(V), NAMES, ARMS, SILENT, more_than=3),
    "feature_regression": lambda t: maps.feature_regression(t(X), t(Y), t(X), t(Y), list("abc")),
    "linear_probe": lambda t: maps.linear_probe(t(X), PERT, PLATE),
    "magnitude": lambda t: maps.magnitude(t(X), PERT, t(CONTROL)),
    "map_profiles": lambda t: maps.map_profiles(t(X), PERT, PLATE, CONTROL).vectors,
    "matched_recall": lambda t: maps.matched_recall(t(V), NAMES, np.arange(20) % 3, PAIRS, draws=3),
    "nearest_neighbor": lambda t: maps.nearest_neighbor(t(V), NAMES[np.arange(20) % 5]),
    "pooled_recall": lambda t: maps.pooled_recall([t(V), t(-V)], NAMES, PAIRS),
    "recall": lambda t: maps.recall(t(V), NAMES, PAIRS, interval=True),
    "recall_at_fpr": lambda t: maps.recall_at_fpr(t(V), NAMES, PAIRS),
    "recall_curve": lambda t: maps.recall_curve(t(V), NAMES, PAIRS),
    "recall_difference": lambda t: maps.recall_difference([t(V)], (V[:, :4],), NAMES, PAIRS),
    "relate": lambda t: maps.relate(t(V), origin=t(V[0])),
    "retrieval": lambda t: maps.retrieval(t(X), META, *RULES, 100, query=t(~CONTROL)),
    "split_controls": lambda t: maps.split_controls(t(CONTROL), PLATE),
    "strongest": lambda t: maps.strongest(t(V), NAMES, 9),
    "TVN": lambda t: maps.TVN().fit(t(X), PLATE, t(CONTROL)).transform(t(X[:9]), PLATE[:9]),
    "ShrunkTVN": lambda t: maps.ShrunkTVN(0.3).fit(t(X), PLATE, t(CONTROL)).transform(t(X[:9]), PLATE[:9]),
    "ReplicateWhitening": lambda t: (
        maps.ReplicateWhitening()
        .fit(t(X), PLATE, t(CONTROL), perturbation=PERT)
        .transform(t(X[:9]), PLATE[:9], PERT[:9])
    ),
    "keyword first": lambda t: maps.align(method="tvn", control=CONTROL, batch=PLATE, x=t(X)),
}
