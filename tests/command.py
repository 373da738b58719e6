"""The command in this process: one of its own imports torch for seconds, at every test."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

THEIRS = "theirs"  # the module of a user's factory, another one in each folder


def ngf(*words, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """What `ngf` does with these words there: exit code, output, errors."""
    from ngf.cli import main

    command = ["ngf", *map(str, words)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.modules.pop(THEIRS, None)
    with (
        mock.patch.object(sys, "argv", command),
        mock.patch.dict(os.environ, {"COLUMNS": "200"}),
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
