"""How time and memory grow with file size, file count and model count: linear, and flat.

    python -m bench growth                                    up to 4 GiB, 10,000 files, 1,000 models; some minutes
    python -m bench growth --sizes 64 256 --files 100 1000 --models 10 100

Each figure is one whole command in a process of its own. The slope is of a straight line in log-log: 1 is linear, less is better, 0 is flat.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from bench_backup import PROGRAM, fill
from measure import COSTS, as_installed, run, seconds
from table import machine

from steelyard.lock import Lock, LockedModel, lock_path, read_lock, write_lock
from steelyard.manifest import Manifest
from steelyard.site import Site

HERE = Path(__file__).parent
VERBS = {
    "backup": ["backup"],
    "verify": ["verify"],
    "verify a replica": ["verify", "--copy", "usb"],
    "backup, nothing to do": ["backup"],
    "status": ["status"],
}


def measured(home: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Median wall seconds and peak MiB of each verb; the first backup is a copy and is measured once."""
    found: dict[str, dict[str, float]] = {}
    for name, command in VERBS.items():
        COSTS.clear()
        for _ in range(1 if name == "backup" else rounds):
            seconds(lambda command=command: run(home, *PROGRAM, *command, "--here", "--json"), name)  # type: ignore[misc]
        found[name] = {
            "wall_s": statistics.median(one.wall_s for one in COSTS[name]),
            "cpu_s": statistics.median(one.cpu_s for one in COSTS[name]),
            "peak_mib": max(one.peak_mib for one in COSTS[name]),
        }
    return found


def of_size(home: Path, mib: int) -> None:
    fill(home, 1, mib << 20)


def of_files(home: Path, count: int) -> None:
    fill(home, count, 4096)


def of_models(home: Path, count: int) -> None:
    """*count* models of one small file each: one filled as a download leaves it, the others beside it in the same way."""
    site = fill(home, 1, 4096)
    held = site.locked_model("big")
    assert held is not None
    manifest = site.manifest("big", held.commit)
    config = home / "steelyard.toml"
    names = [f"m{number:05}" for number in range(count - 1)]
    with config.open("a") as out:
        out.writelines(f'[models.{name}]\nrepo_id = "bench/{name}"\n' for name in names)
    models = dict(read_lock(lock_path(config)).models)
    again = Site.open(config)
    for name in names:
        shutil.copytree(home / "models" / "big", home / "models" / name)
        models[name] = LockedModel(f"bench/{name}", "main", held.commit, held.files)
        again.store.seal(Manifest(name, f"bench/{name}", "main", held.commit, manifest.files))
    write_lock(lock_path(config), Lock(models))


AXES: dict[str, Callable[[Path, int], None]] = {"file size [MiB]": of_size, "files": of_files, "models": of_models}


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of a straight line through the logarithms."""
    if len(xs) < 2:
        return math.nan
    return statistics.linear_regression([math.log(x) for x in xs], [math.log(max(y, 1e-6)) for y in ys]).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 256, 1024, 4096], help="MiB")
    parser.add_argument("--files", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--models", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--docs", action="store_true", help="write docs/scaling.md and docs/scaling.svg")
    asked = parser.parse_args()
    as_installed()
    points: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for axis, wanted in zip(AXES, (asked.sizes, asked.files, asked.models), strict=True):
        for number in wanted:
            with tempfile.TemporaryDirectory(dir=asked.dir, prefix="steelyard-growth-") as folder:
                home = Path(folder)
                AXES[axis](home, number)
                Site.open(home / "steelyard.toml").write_model_info()
                points.setdefault(axis, {})[number] = measured(home, asked.rounds)
                print(
                    f"{axis} {number:,}: "
                    + ", ".join(f"{verb} {one['wall_s']:.2f} s {one['peak_mib']:.0f} MiB" for verb, one in points[axis][number].items()),
                    flush=True,
                )
    text = as_markdown(points)
    print(f"\n{text}")
    out = HERE.parent / "out"
    out.mkdir(exist_ok=True)
    (out / "growth.json").write_text(json.dumps({"machine": machine(), "points": points}, indent=1))
    if asked.docs:
        (HERE.parent / "docs" / "scaling.md").write_text(text)
        (HERE.parent / "docs" / "scaling.svg").write_text(as_svg(points))


def as_markdown(points: dict[str, dict[int, dict[str, dict[str, float]]]]) -> str:
    about = machine()
    lines = [
        "# How it grows",
        "",
        f"`python -m bench growth --docs`, {about['date']}, {about['cores']} cores, {about['memory_gib']} GiB. Whole commands, start-up included; medians.",
        "Slope: of the line through the logarithms of the two largest; 1 is linear, 0 is flat.",
        "",
        "![seconds and MiB](scaling.svg)",
    ]
    for axis, found in points.items():
        numbers = list(found)
        lines += ["", f"| {axis} | " + " | ".join(VERBS) + " |", "| ---: |" + " ---: |" * len(VERBS)]
        for number in numbers:
            lines.append(
                f"| {number:,} | "
                + " | ".join(f"{one['wall_s']:.2f} s, {one['peak_mib']:.0f} MiB" for one in found[number].values())
                + " |"
            )
        last = numbers[-2:]
        slopes = [
            f"{slope(last, [found[n][verb]['wall_s'] for n in last]):.2f}, {slope(last, [found[n][verb]['peak_mib'] for n in last]):.2f}"
            for verb in VERBS
        ]
        lines.append("| slope of time, of memory | " + " | ".join(slopes) + " |")
    return "\n".join(lines) + "\n"


def as_svg(points: dict[str, dict[int, dict[str, dict[str, float]]]]) -> str:
    """Six small charts, log-log: a row for time and one for memory, a column for each axis."""
    wide, tall, gap = 300, 190, 60
    colours = ("#1f77b4", "#2a7f4f", "#b4532a", "#7a4fb4", "#8a8a8a")
    parts = []
    for column, (axis, found) in enumerate(points.items()):
        for line, (key, unit) in enumerate((("wall_s", "s"), ("peak_mib", "MiB"))):
            left, top = gap + column * (wide + gap), 30 + line * (tall + gap)
            numbers = list(found)
            values = [found[number][verb][key] for number in numbers for verb in VERBS]
            low, high = math.log(max(min(values) / 1.5, 1e-3)), math.log(max(values) * 1.5)
            first, last = math.log(numbers[0]), math.log(max(numbers[-1], numbers[0] + 1))
            parts.append(f'<rect x="{left}" y="{top}" width="{wide}" height="{tall}" fill="none" stroke="#999999"/>')
            parts.append(f'<text x="{left}" y="{top - 6}">{escape(unit)} by {escape(axis)}</text>')
            for edge, y in ((math.exp(high), top + 10), (math.exp(low), top + tall)):
                parts.append(f'<text x="{left - 4}" y="{y}" text-anchor="end">{edge:.3g}</text>')
            for verb, colour in zip(VERBS, colours, strict=True):
                spots = []
                for number in numbers:
                    x = left + (math.log(number) - first) / (last - first) * wide
                    y = top + tall - (math.log(max(found[number][verb][key], 1e-3)) - low) / (high - low) * tall
                    spots.append(f"{x:.1f},{y:.1f}")
                parts.append(f'<polyline points="{" ".join(spots)}" fill="none" stroke="{colour}" stroke-width="2"/>')
            for number in numbers:
                x = left + (math.log(number) - first) / (last - first) * wide
                parts.append(f'<text x="{x:.0f}" y="{top + tall + 14}" text-anchor="middle">{number:,}</text>')
    width, height = gap + 3 * (wide + gap), 30 + 2 * (tall + gap) + 10
    for number, (verb, colour) in enumerate(zip(VERBS, colours, strict=True)):
        parts.append(f'<text x="{gap + number * 170}" y="{height - 8}" fill="{colour}">— {escape(verb)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#ffffff"/>', *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
