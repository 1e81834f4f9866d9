"""Versions of Python, the platform and the packages that a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform

_PACKAGES = ("camae", "torch", "triton", "numpy", "cupy-cuda13x", "nvidia-dali-cuda130", "flash-attn", "ray")


def versions() -> dict[str, str]:
    """Python, platform and the packages that matter; "absent" when not installed."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found
