"""`make bench`: every bench_*.py of this folder in turn, each in a process of its own. ARGS="--gib 1" is passed on; ARGS="verify --gib 4" runs one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Run the benches named in front of the options, or all; the worst exit code."""
    here = Path(__file__).parent
    known = {path.stem.removeprefix("bench_"): path for path in sorted(here.glob("bench_*.py"))}
    arguments = sys.argv[1:]
    names = []
    while arguments and not arguments[0].startswith("-"):
        names.append(arguments.pop(0))
    if unknown := [name for name in names if name not in known]:
        sys.stderr.write(f"no bench is called {unknown[0]!r}; there are {', '.join(known)}\n")
        return 2
    return max(
        (subprocess.run([sys.executable, str(known[name]), *arguments], check=False).returncode for name in names or known), default=0
    )


if __name__ == "__main__":
    sys.exit(main())
