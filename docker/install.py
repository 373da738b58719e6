"""Install what the project needs to run, in the versions of requirements.lock; runs in the image.

The lock also pins the tools of development, which stay out, and so do the test suites that some
packages ship. Bytecode is kept of what tasks import, and of nothing else: without any, each task
would compile for ten seconds, and all of it is a quarter of a gigabyte.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
EXTRAS = ("pipeline", "s3", "timm")
WITH_TESTS = ("matplotlib", "networkx", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "sympy")
IMPORTED = (
    "curvlinops", "dvc.repo.get", "dvc_s3", "jinja2", "kfp.dsl.executor_main", "matplotlib.figure",
    "mlflow.pytorch", "mlflow.store.tracking", "safetensors.torch", "sklearn.manifold", "timm",
    "torch.export", "torch.func", "torch.optim.swa_utils", "torchvision.transforms", "typer",
    "yaml",
)  # fmt: skip


def main() -> None:
    install()
    drop_tests()
    for module in IMPORTED:
        code = f"import {module}"
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        subprocess.run([sys.executable, "-c", code], env=environment, check=False)


def install() -> None:
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    wanted = ["setuptools", "wheel", *project["dependencies"]]
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    pip = [sys.executable, "-m", "pip", "install", "--no-compile"]
    lock = ["--constraint", str(HERE / "requirements.lock")]
    subprocess.run([*pip, *lock, *wanted], check=True)


def drop_tests() -> None:
    for name in WITH_TESTS:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            for folder in list(Path(spec.origin).parent.rglob("tests")):
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
