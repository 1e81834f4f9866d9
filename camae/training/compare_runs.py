"""Comparison of runs: losses, speed, and the settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from camae.errors import CamaeError, MissingFileError
from camae.files import path_of, write_text
from camae.training.run_log import read_log
from camae.training.toml_file import read_toml


def compare_runs(runs: Sequence[str | Path], out: str | Path | None = None) -> pd.DataFrame:
    """Comparison of runs: one row per quantity and setting that differs, one column per run.

    loss and mse are means over the last tenth of the rows; crops/s, mfu, data wait and memory are medians.
    out: folder for `compare.csv` and `curves.png`, the loss against the steps.
    Raises CamaeError for a folder that holds no run.
    """
    folders = [Path(r) for r in runs]
    names = _names(folders)
    logs = {name: _log(folder) for name, folder in zip(names, folders, strict=True)}
    settings = [_flat(read_toml(folder / "config.toml")) for folder in folders]
    measured = pd.DataFrame({name: _summary(log) for name, log in logs.items()})
    table = pd.concat([measured.dropna(how="all"), _differences(settings, names)])
    table.index.name = "quantity"
    if out is not None:
        from camae.reporting.figures import loss_curves, save_png

        folder = path_of(out, "out")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "compare.csv", table.to_csv())
        save_png(loss_curves(logs), folder / "curves.png")
    return table


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names, with as many of the folders above as make them differ."""
    for depth in range(1, 8):
        names = ["/".join(f.resolve().parts[-depth:]) for f in folders]
        if len(set(names)) == len(names):
            return names
    raise CamaeError(f"the same run is named twice: {', '.join(map(str, folders))}")


def _log(folder: Path) -> pd.DataFrame:
    if not (folder / "config.toml").is_file():
        raise MissingFileError(f"{folder}: not a run of camae.train (it has no config.toml)")
    rows = read_log(folder / "log.jsonl")
    if not rows:
        raise CamaeError(f"{folder}: the run has no logged step yet")
    return pd.DataFrame(rows)


def _summary(log: pd.DataFrame) -> pd.Series:
    from camae.reporting.run_folder import last_tenth

    last = last_tenth(log)
    found: dict[str, object] = {"steps": log["step"].iloc[-1], "crops": log["crops"].iloc[-1]}
    for name in ("loss", "mse", "fourier"):
        if name in log:
            found[f"{name} (last tenth)"] = last[name].mean()
    for name in ("val_loss", "probe_recall", "probe_accuracy"):
        if name in log and log[name].notna().any():
            found[f"{name} (last)"] = log[name].dropna().iloc[-1]
    if "val_loss" in log:
        found["val_loss (best)"] = log["val_loss"].min()
    for name in ("crops_per_second", "tflops", "mfu", "data_wait_share", "memory_gb"):
        if name in log:
            found[name] = log[name].median()
    if "skipped" in log:
        found["skipped"] = log["skipped"].iloc[-1]
    return pd.Series(found)


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _differences(settings: Sequence[dict[str, object]], names: Sequence[str]) -> pd.DataFrame:
    """Settings that are not the same in all runs, as text."""
    keys = sorted({key for s in settings for key in s})
    differing = [k for k in keys if len({repr(s.get(k)) for s in settings}) > 1]
    columns = {name: [str(s.get(k, "")) for k in differing] for name, s in zip(names, settings, strict=True)}
    return pd.DataFrame(columns, index=[f"setting {k}" for k in differing])
