"""The tags of a version that say who decided, when, and with which code and grid."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from ngf.lineage._who import git_revision, user


def circumstances() -> dict[str, str]:
    """Of this process in its working directory; nothing is said of what is not there."""
    tags = {
        "ngf.promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "ngf.promoted_by": user(),
    }
    if revision := git_revision():
        tags["ngf.git.commit"] = revision
    lock = Path("dvc.lock")
    if lock.is_file():
        tags["ngf.digest.dvc_lock"] = "sha256:" + hashlib.sha256(lock.read_bytes()).hexdigest()
    return tags
