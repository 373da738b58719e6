"""The command in this process: one of its own imports torch for seconds, at every test."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

THEIRS = "theirs"  # the module of a user's factory, another one in each folder
WIDE = {"COLUMNS": "200"}


def ngf(*words, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """What `ngf` does with these words there: exit code, output, errors.

    What is raised and not caught is raised here. Warnings are pytest's: `in_a_process` has them.
    """
    from ngf.cli import main

    command = ["ngf", *map(str, words)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.modules.pop(THEIRS, None)
    importlib.invalidate_caches()
    with (
        mock.patch.object(sys, "argv", command),
        mock.patch.dict(os.environ, WIDE),
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def in_a_process(*words, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """The same in one of its own: all that a person would see."""
    command = [sys.executable, "-c", "from ngf.cli import main; main()", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=os.environ | WIDE, capture_output=True, text=True)
