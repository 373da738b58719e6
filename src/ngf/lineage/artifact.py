"""The files of a registered model: two exported graphs, and what MLflow writes around them.

Nothing in them is code, and no pickle names any: graphs and tensors in PT2 archives, YAML, JSON.

    data/model.pt2      for `mlflow.pytorch`: takes bytes and floats by their kind
    served/model.pt2    for `mlflow.pyfunc` and `mlflow models serve`: float32, and which is white
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ngf.serving import export

if TYPE_CHECKING:
    from ngf.models import Classifier

GRAPH, SERVED = "model.pt2", "served"


def write(folder: Path, model: Classifier) -> None:
    """Write a model on the CPU into a folder that is not there yet."""
    import mlflow
    import numpy as np
    import torch
    from mlflow.models import Model, infer_signature

    # Two images, because an example of one would fix the batch size of the export at one.
    example_NCHW = np.zeros((2, *model.card["input_CHW"]), np.float32)
    with torch.inference_mode():
        logits_NC = model(torch.from_numpy(example_NCHW)).numpy()
    with warnings.catch_warnings():
        # Torch's archive says so of tensors that share memory; on the CPU the first will do.
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        mlflow.pytorch.save_model(
            model,
            folder,
            signature=infer_signature(example_NCHW, logits_NC, params={"white": 1}),
            input_example=example_NCHW,
            serialization_format="pt2",
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
            metadata={"classes": model.card["classes"]},
        )
    (folder / SERVED).mkdir()
    export(
        model,
        torch.from_numpy(example_NCHW),
        kind=folder / "data" / GRAPH,
        word=folder / SERVED / GRAPH,
    )
    described = Model.load(folder)
    described.flavors["python_function"]["data"] = SERVED
    described.save(folder / "MLmodel")


def address(folder: Path, *, run_id: str, model_id: str, location: str) -> None:
    """Note in the files under which run and as which logged model they go to MLflow."""
    from mlflow.models import Model

    described = Model.load(folder)
    described.run_id, described.artifact_path = run_id, location
    described.model_id = described.model_uuid = model_id
    described.save(folder / "MLmodel")
