"""Figure of docs/maps.md: `python docs/figures/make_calibration_figure.py RESULTS`, a folder of `camae benchmark`.

Writes docs/figures/calibration.png from the p values of controls in RESULTS (the first model's).
"""

import sys
from pathlib import Path

import pandas as pd

from camae.reporting.calibration_figure import p_values_against_uniform
from camae.reporting.style import save_png

if __name__ == "__main__":
    table = pd.read_csv(Path(sys.argv[1]) / "calibration_p_values.csv")
    table = table[table.model == table.model.iloc[0]]
    panels = {
        f"{alignment}: {groups}": part
        for (alignment, groups), part in table.groupby(["alignment", "groups"], sort=False)
    }
    print(save_png(p_values_against_uniform(panels), Path(__file__).with_name("calibration.png")))
