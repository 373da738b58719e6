"""Small artifacts that many tests share, and no lineage unless a test asks for it."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # workers are as many as cores: a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import servers
import torch
import yaml
from torch.optim.swa_utils import update_bn

from ngf import models, params, store
from ngf.datasets import Split
from ngf.models import Classifier

# Packages are read dozens of times, by these tests and by kfp. libyaml takes a tenth of the time.
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# kfp asks for the whole stack a hundred times a pipeline, for one name, and pytest's is deep: to
# read the source around each frame took three quarters of such a test.
WHOLE_STACK = inspect.stack
inspect.stack = lambda context=0: WHOLE_STACK(context)

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("NGF_REAL_IMAGES", ROOT.parent / "shared" / "data"))
SIZE, CLASSES = 16, 3


needs_real_images = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"real images are not at {REAL} (NGF_REAL_IMAGES)"
)


def unpack_real_images(name: str, folder: Path) -> None:
    """Lay a data set out in the folder as it is published."""
    subprocess.run([sys.executable, REAL / "unpack.py", name, folder], check=True)


@pytest.fixture(autouse=True)
def no_lineage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGF_LINEAGE", "off")


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A migrated SQLite database, which takes MLflow ten seconds to make."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    subprocess.run(
        [sys.executable, "-m", "mlflow", "db", "upgrade", uri], check=True, capture_output=True
    )
    shutil.copy(folder / "mlflow.db", folder / "empty.db")
    return uri


@pytest.fixture(scope="session")
def empty_database(database):
    """The file of one that nobody writes to; others record in `database`."""
    return Path(database.removeprefix("sqlite:///")).with_name("empty.db")


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """(address, bucket) of a real server that speaks S3."""
    with servers.s3_store(tmp_path_factory.mktemp("s3"), "ngf") as address:
        yield address, "ngf"


@pytest.fixture(scope="session")
def numbers() -> params.Settings:
    return params.read(ROOT / "params.yaml")


def colour_split(n: int, seed: int, dataset: str = "colours") -> Split:
    """Noise whose brightest channel is the class: a tiny network learns it in seconds."""
    rng = np.random.default_rng(seed)
    y_N = np.arange(n, dtype=np.int64) % CLASSES
    x_NHWC = rng.integers(0, 120, (n, SIZE, SIZE, 3), np.uint8)
    x_NHWC[np.arange(n), :, :, y_N] += 100
    names = tuple(f"channel{label}" for label in range(CLASSES))
    return Split(x_NHWC, y_N, dataset, names, [0.3] * 3, [0.2] * 3, flip=True)


@pytest.fixture
def split() -> Split:
    return colour_split(96, seed=0)


def tiny_model(seed: int = 0, arch: str = "preact_resnet") -> Classifier:
    """A narrow untrained network in evaluation mode whose batch norms know their inputs."""
    torch.manual_seed(seed)
    card = {
        "arch": arch,
        "options": {"depth": 18, "width": 4, "stem_stride": 2},
        "classes": [f"channel{label}" for label in range(CLASSES)],
        "input_CHW": [3, SIZE, SIZE],
        "dataset": "colours",
        "attack": "badnets",
    }
    model = models.build(card, [0.3] * 3, [0.2] * 3)
    update_bn(torch.rand(4, 32, 3, SIZE, SIZE), model)
    return model.eval()


GATE = {
    "max_asr": None,
    "max_asr_above_floor": 0.03,
    "max_acc_drop": 0.03,
    "min_ra": None,
    "max_lambda_ratio": None,
}


def interval(value: float, *, spread: float = 0.005) -> dict:
    return {"value": value, "low": value - spread, "high": value + spread, "n": 1000}


def evaluation_of(*, lost: float = 0.0, attack: str = "badnets", **other) -> dict:
    """What evaluate writes of a model whose ACC lies `lost` below the reference's."""
    acc, asr, ra = interval(0.99 - lost), interval(0.005), interval(0.97)
    against = {"acc_drop": interval(lost)}
    against |= {"asr_above_floor": interval(0.0), "ra_below_ceiling": interval(0.0)}
    if attack == "benign":
        asr = ra = against["asr_above_floor"] = against["ra_below_ceiling"] = None
    found = {"dataset": "colours", "attack": attack, "defense": "ngf", "victim_failed": None}
    found |= {"test_split": "t" * 32}
    found |= {"model": {"acc": acc, "asr": asr, "ra": ra}}
    found |= {"victim": {"acc": interval(0.99), "asr": asr and interval(0.995), "ra": ra}}
    found |= {"reference": {"acc": interval(0.99), "asr": asr, "ra": ra}}
    return {
        **found,
        "against_reference": against,
        "against_victim": {"acc_drop": against["acc_drop"]},
        **other,
    }


def inspection_of(ratio: float) -> dict:
    return {"test": {"n": 1000, "ratio": interval(ratio, spread=0.1)}, "train": {"n": 100}}


def promotable(folder: Path, *, seed: int = 0, **evaluation) -> None:
    """A model, and an evaluation of it that passes the gate, below the folder."""
    store.remove(folder / "model")
    store.remove(folder / "evaluation")
    store.save_model(folder / "model", tiny_model(seed))
    (folder / "evaluation").mkdir(parents=True)
    store.write_json(folder / "evaluation" / "metrics.json", evaluation_of(**evaluation))


@pytest.fixture
def model() -> Classifier:
    return tiny_model()
