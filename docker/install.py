"""Install what the project needs to run, in the versions of requirements.lock; runs in the image.

The lock also pins the tools of development, which stay out, and so do the test suites that some
packages ship: with them the image is a quarter larger.
"""

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
EXTRAS = ("pipeline", "s3", "timm")
WITH_TESTS = ("matplotlib", "networkx", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "sympy")


def main() -> None:
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    lock = ["--constraint", str(HERE / "requirements.lock")]
    build = ["setuptools", "wheel"]
    pip = [sys.executable, "-m", "pip", "install", "--no-compile"]
    subprocess.run([*pip, *lock, *build, *wanted], check=True)
    for name in WITH_TESTS:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        for folder in list(Path(spec.origin).parent.rglob("tests")):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
