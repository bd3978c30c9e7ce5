"""A disk so small that it can be filled."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

BALLAST = "ballast"


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[str]:
    """Mount one at this folder meanwhile; why it can't be done, or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        yield "no mount command to make a small disk with"
        return
    if done.returncode:
        yield f"may not mount a small disk: {done.stderr.strip()}"
        return
    try:
        yield ""
    finally:
        # Lazily: a process that is about to end may still have a file open there.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave no byte on the disk, until the ballast is removed."""
    with (folder / BALLAST).open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
