"""Which source code a run was started from."""

from __future__ import annotations

import os
import subprocess

COMMIT_VARIABLE = "T2I_RAY_COMMIT"


def git_commit() -> tuple[str, str]:
    """The commit of the working directory and its uncommitted diff.

    A Ray job's working directory has no .git: there T2I_RAY_COMMIT says it.
    """
    if commit := os.environ.get(COMMIT_VARIABLE):
        return commit, ""
    commit = _git("rev-parse", "HEAD")
    return (commit, _git("diff", "HEAD")) if commit else ("unknown", "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # Whatever the encodings of the files in a diff are.
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""
