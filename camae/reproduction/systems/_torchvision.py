"""Import of timm, and of torchvision beside a CPU torch.

PyPI's torchvision is built for CUDA. Beside a CPU torch its operators do not load, and `import torchvision` (and
timm with it) stops at "operator torchvision::nms does not exist". Nothing here uses those operators: where that
import fails, the two that it looks for are declared, without an implementation.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch

from camae.errors import MissingBackendError

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
_declared: list[torch.library.Library] = []  # libraries live as long as they are held


@cache
def import_timm() -> ModuleType:
    """Import timm. Raises MissingBackendError naming what to install where it or torchvision is absent."""
    for name in ("timm", "torchvision"):
        if find_spec(name) is None:
            raise MissingBackendError(
                f"{name} is not installed; DenseNet and ImageNet models need it: pip install 'camae[systems]' "
                "(beside a CPU torch: pip install --no-deps timm torchvision)"
            )
    _load_torchvision()
    return importlib.import_module("timm")


def _load_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in _OPERATORS:
            library.define(operator + _SIGNATURE)
        _declared.append(library)
        importlib.import_module("torchvision")


def describe() -> str:
    """Versions of timm and torchvision, or what is missing: one line for `camae doctor`."""
    try:
        timm = import_timm()
    except MissingBackendError as error:
        return str(error)
    torchvision = importlib.import_module("torchvision")
    how = f"; operators {', '.join(_OPERATORS)} declared here, not loaded" if _declared else ""
    return f"timm {timm.__version__}, torchvision {torchvision.__version__}{how}"
