"""Real containers without a Docker engine: podman and buildah as root, with storage of their own.

Nothing of the machine's own configuration of containers is read or changed. crun refuses cgroups in
hybrid mode, hence runc; limits are set because the engine's defaults may lie above the machine's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

TOOLS = ("podman", "buildah", "runc", "mmdebstrap")
SUITE = "bookworm"  # its Python is 3.11
STORAGE = '[storage]\ndriver = "overlay"\nrunroot = "{run}"\ngraphroot = "{store}"\n'
SETTINGS = """[containers]
default_ulimits = ["nofile=16384:16384", "nproc=16384:16384"]
netns = "host"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
"""
# As pip and curl find them in Debian; the machine's own may hold a proxy's certificate.
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
HOOK = f"""set -e
rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED
ln -sf /usr/bin/python3 "$1"/usr/local/bin/python3
ln -sf /usr/bin/python3 "$1"/usr/local/bin/python
cp -L {AUTHORITIES} "$1"{AUTHORITIES}
"""


def lacking() -> str | None:
    """Why no container can run here; None where one can."""
    if os.getuid() != 0:
        return "containers need root here"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: {' '.join(TOOLS)})"
    return None


class Engine:
    """podman and buildah, everything they write below one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        storage = STORAGE.format(run=folder / "run", store=folder / "store")
        (folder / "storage.conf").write_text(storage)
        (folder / "containers.conf").write_text(SETTINGS)
        self.environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "TMPDIR": str(folder),
        }

    def __call__(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*map(str, words)], env=self.environment, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, f"{words}\n{done.stdout[-4000:]}\n{done.stderr}"
        return done

    def has(self, image: str) -> bool:
        return self("podman", "image", "exists", image, check=False).returncode == 0

    def base(self, image: str) -> None:
        """Debian with its Python: what `FROM` needs where no registry of images is reached."""
        if self.has(image):
            return
        hook = self.folder / "hook"
        hook.write_text(f"#!/bin/sh\n{HOOK}")
        hook.chmod(0o755)
        tar = self.folder / "base.tar"
        packages = "python3,python3-pip,python3-venv,ca-certificates"
        variant = ["--variant=minbase", f"--include={packages}", f"--customize-hook={hook}"]
        self("mmdebstrap", *variant, SUITE, tar)
        self("podman", "import", tar, image)
        tar.unlink()

    def build(self, image: str, file: Path, context: Path, target: str, **arguments: str) -> None:
        given = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        shared = [f"--volume={here}:{there}:ro" for here, there in self._pip().items()]
        self(
            "buildah", "bud", "--isolation=chroot", "--pull=never", "--layers", *given, *shared,
            f"--file={file}", f"--target={target}", f"--tag={image}", context,
        )  # fmt: skip

    def _pip(self) -> dict[Path, Path]:
        """What a build sees of this machine's pip: {path here: path there}.

        Its settings as one file, and the files and folders that they name.
        """
        shared, settings = {}, {"cert": AUTHORITIES}
        listed = self("python3", "-m", "pip", "config", "list").stdout
        for line in listed.splitlines():
            key, _, value = line.partition("=")
            words = value.strip("'").replace("\\n", " ").split()
            settings.setdefault(key.rpartition(".")[2], " ".join(words))
            paths = (Path(word.removeprefix("file://")) for word in words)
            shared |= {path: path for path in paths if path.is_absolute() and path.exists()}
        place = self.folder / "pip.conf"
        lines = [f"{key} = {value}" for key, value in settings.items()]
        place.write_text("\n".join(["[global]", *lines, ""]))
        return {**shared, place: Path("/etc/pip.conf")}

    @contextlib.contextmanager
    def socket(self) -> Iterator[str]:
        """The address at which podman speaks Docker's protocol."""
        place = self.folder / "podman.sock"
        place.unlink(missing_ok=True)
        command = ["podman", "system", "service", "--time=0", f"unix://{place}"]
        with subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL) as server:
            try:
                deadline = time.monotonic() + 20
                while not place.exists():
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                yield f"unix://{place}"
            finally:
                server.terminate()


def run_docker_container(client, image, command, volumes, **options) -> int:
    """As KFP's own, but the container stays until its exit code was read.

    KFP lets the engine remove it, and takes one that is gone for one that succeeded. Docker answers
    `wait` first; podman does not, so a failure would pass as a success.
    """
    container = client.containers.run(
        image=image, command=command, detach=True, volumes=volumes, **options
    )
    try:
        for line in container.logs(stream=True):
            print(line.decode(), end="")
        return container.wait()["StatusCode"]
    finally:
        container.remove(force=True)
