"""Figure of the README: `python docs/figures/make_readme_figure.py [RUN]`, RUN a finished folder of `camae demo`.

Writes docs/figures/readme.png. RUN is runs/demo where it is not given.
"""

import sys
from pathlib import Path

from camae.reporting.overview_figure import write_overview

if __name__ == "__main__":
    run = sys.argv[1] if len(sys.argv) > 1 else "runs/demo"
    print(write_overview(run, Path(__file__).with_name("readme.png")))
