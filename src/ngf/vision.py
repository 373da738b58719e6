"""torchvision on any build of torch.

torchvision's wheels on the package index are CUDA builds. Beside a CPU build of torch their
compiled operators do not load, and the import dies because `torchvision::nms` does not exist,
although readers and models never call it. Declaring the two operators that the import looks up
is enough (pytorch/vision issues 9077 and 9085).
"""

import importlib
import sys
from types import ModuleType
from typing import Any

_KEEP: list[Any] = []  # the Library must stay alive, or its definitions go away


def load_torchvision() -> ModuleType:
    """Import torchvision; `import torchvision...` works afterwards."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    import torch

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEEP.append(library)
    return importlib.import_module("torchvision")
