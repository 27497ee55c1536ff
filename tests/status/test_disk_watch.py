"""The disk watch: real bytes counted once, a forecast with its uncertainty, levels by config, and a disk that is really full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from steelyard.config import DiskConfig
from steelyard.disk_watch import disk_watch, judged
from steelyard.file_systems import FileSystem, Health, Place, file_systems, health
from steelyard.forecast import Sample, forecast
from steelyard.metrics import render_metrics
from steelyard.page.picture import gather
from steelyard.page.write import render
from steelyard.samples import recent_samples, samples_of, take_samples
from steelyard.usage import _Claims, usage
from tests.status.scenes import Scene

START = datetime(2026, 1, 1, tzinfo=UTC)
GB = 1000**3


def line(days: int, per_day_gb: float, first_gb: float = 500, noise: float = 0.0) -> list[Sample]:
    wobble = [0, 1, -1, 2, -2]
    return [
        Sample(START + timedelta(days=day), int((first_gb + per_day_gb * day + noise * wobble[day % 5]) * GB), 1000 * GB)
        for day in range(days)
    ]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


# --- the forecast


def test_a_straight_line_ends_where_it_meets_zero() -> None:
    seen = forecast(line(21, -10))
    assert seen is not None and seen.days_left is not None
    assert seen.days_left == pytest.approx(30, abs=0.01)
    assert seen.is_sure
    assert seen.as_json()["full_on"] == "2026-02-20"


def test_noise_widens_the_interval_and_the_truth_lies_within_it() -> None:
    rough, smooth = forecast(line(21, -10, noise=20)), forecast(line(21, -10, noise=1))
    assert rough and smooth and rough.soonest_days and rough.latest_days and smooth.soonest_days and smooth.latest_days
    assert rough.low_per_day_bytes < -10 * GB < rough.high_per_day_bytes
    assert rough.latest_days - rough.soonest_days > smooth.latest_days - smooth.soonest_days > 0
    assert rough.soonest_days < 30 < rough.latest_days


def test_what_does_not_shrink_is_never_full_and_too_little_says_nothing() -> None:
    grows = forecast(line(21, 3))
    assert grows and grows.days_left is None and grows.as_json()["full_on"] is None
    unsure = forecast(line(21, -0.05, noise=30))
    assert unsure and not unsure.is_sure and unsure.latest_days is None
    assert forecast(line(4, -10)) is None
    assert forecast([Sample(START + timedelta(minutes=n), 10, 100) for n in range(500)]) is None
    assert forecast([]) is None


def test_samples_of_another_disk_under_the_same_name_are_not_used() -> None:
    other = [replace(one, total_bytes=1) for one in line(21, -400)]
    later = [replace(one, at=one.at + timedelta(days=25)) for one in line(10, -1)]
    seen = forecast(other + later)
    assert seen and seen.samples == 10 and seen.per_day_bytes == pytest.approx(-GB)


# --- what is whose


def test_a_second_name_of_the_same_bytes_is_counted_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "w", 2).build()
    site = scene.site()
    where = file_systems(site)[0]
    before = usage(site, where)
    stored = next((tmp_path / "w" / "models" / "mvdream").iterdir())
    size = stored.stat().st_blocks * 512
    assert before.kinds["weights"] >= size
    outputs = tmp_path / "w" / "outputs"
    outputs.mkdir()
    os.link(stored, outputs / "same")
    (outputs / "link").symlink_to(stored)
    (outputs / "own").write_bytes(os.urandom(300_000))
    linked = usage(site, where)
    assert linked.kinds["weights"] == before.kinds["weights"]
    assert linked.kinds["outputs"] == (outputs / "own").stat().st_blocks * 512
    assert linked.shared_bytes - before.shared_bytes == size
    staging = tmp_path / "w" / "models" / ".steelyard" / "staging"
    staging.mkdir()
    (staging / "x.partial").write_bytes(bytes(100_000))
    assert usage(site, where).kinds["partials"] >= 100_000
    assert usage(site, where, longest_s=0).complete is True, "so few are always counted"


def test_ranges_of_the_medium_are_claimed_once() -> None:
    claims = _Claims()
    assert claims.claim(100, 50) == 50
    assert claims.claim(100, 50) == 0
    assert claims.claim(120, 50) == 20
    assert claims.claim(0, 300) == 230
    assert claims.claim(500, 10) == 10
    assert claims.claim(290, 230) == 210
    assert claims.claim(0, 520) == 0


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root (loop mounts)")
def test_reflinked_files_are_counted_once(tmp_path: Path) -> None:
    image, point = tmp_path / "image", tmp_path / "xfs"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(400 * 1024**2)
    made = subprocess.run(["mkfs.xfs", "-q", image], capture_output=True, text=True, check=False) if _has("mkfs.xfs") else None
    if made is None or made.returncode or subprocess.run(["mount", "-o", "loop", image, point], capture_output=True).returncode:
        pytest.skip("no XFS here")
    try:
        scene = Scene(tmp_path / "w", 1, store=point).build()
        stored = next((point / "models" / "mvdream").iterdir())
        stored.write_bytes(os.urandom(8 * 1024**2))
        (point / "outputs").mkdir()
        subprocess.run(["cp", "--reflink=always", stored, point / "outputs" / "same"], check=True)
        os.sync()
        site = scene.site()
        seen = usage(site, next(one for one in file_systems(site) if one.point == str(point)))
        assert seen.kinds["weights"] >= 8 * 1024**2
        assert seen.kinds["outputs"] == 0
        assert seen.shared_bytes >= 8 * 1024**2
    finally:
        subprocess.run(["umount", point], check=True)


def _has(program: str) -> bool:
    from shutil import which

    return which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is not None


# --- levels

WHERE = FileSystem("/data", (Place("models", Path("/data/models")),), "ext4", 1, 1000 * GB, 100 * GB, 50 * GB, 1000, 900)
WELL = Health(0, "passed")
LIMITS = DiskConfig()


@pytest.mark.parametrize(("free_gb", "level"), [(25.1, "ok"), (24.9, "warning"), (15.1, "warning"), (14.9, "error"), (0, "error")])
def test_the_users_own_limits_are_the_defaults(free_gb: float, level: str) -> None:
    assert judged(replace(WHERE, free_bytes=int(free_gb * GB)), None, WELL, 0, LIMITS)[0] == level


def test_inodes_trend_and_errors_of_the_drive_count_too() -> None:
    assert judged(replace(WHERE, inodes_free=40), None, WELL, 0, LIMITS)[0] == "warning"
    assert judged(replace(WHERE, inodes_free=9), None, WELL, 0, LIMITS)[0] == "error"
    assert judged(replace(WHERE, inodes=0, inodes_free=0), None, WELL, 0, LIMITS)[0] == "ok"
    assert judged(WHERE, forecast(line(41, -10)), WELL, 0, LIMITS)[0] == "warning"
    assert judged(WHERE, forecast(line(21, -10)), WELL, 0, LIMITS)[0] == "ok"
    level, why, failing = judged(WHERE, None, Health(7, "unknown"), 5, LIMITS)
    assert (level, failing, why) == ("error", True, ("the kernel has counted 2 more I/O errors",))
    assert judged(WHERE, None, Health(5, "unknown"), 5, LIMITS)[0] == "ok"
    assert judged(WHERE, None, Health(None, "failing"), None, LIMITS)[0] == "error"
    assert judged(replace(WHERE, read_only=True), None, WELL, 0, LIMITS)[2] is True
    assert judged(replace(WHERE, total_bytes=0, free_bytes=0), None, WELL, 0, LIMITS)[0] == "ok"


def test_health_is_unknown_where_nothing_tells(tmp_path: Path) -> None:
    seen = health(tmp_path)
    assert seen.smart in {"passed", "failing", "unknown"}
    assert seen.io_errors is None or seen.io_errors >= 0


# --- a disk that is really full


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Scene]:
    point = tmp_path / "small"
    point.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,nr_inodes=4000", "tmpfs", point], capture_output=True).returncode
    ):
        pytest.skip("needs root (a small file system)")
    try:
        scene = Scene(tmp_path / "w", 2, store=point, per_day_bytes=-600_000).build()
        (point / "outputs").mkdir()
        with (point / "outputs" / "filler").open("wb") as file:
            left = os.statvfs(point)
            file.write(bytes(left.f_bavail * left.f_frsize - 65_536))
        yield scene
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.mark.root
def test_a_full_disk_is_told_everywhere(full: Scene, tmp_path: Path) -> None:
    site = full.site()
    report = disk_watch(site)
    row = next(row for row in report.rows if row.path == str(tmp_path / "small"))
    assert (row.outcome, row.exit_code, report.exit_code) == ("error", 1, 1)
    assert row.facts["free_bytes"] < 100_000
    assert row.facts["whose"]["outputs"] > 40 * 1024**2
    assert row.facts["reserved_bytes"] == 0
    picture = gather(site)
    text = render(picture)
    assert f'<p class="alarm error"><strong>{tmp_path}/small</strong>' in text
    metrics = render_metrics(picture).decode()
    assert f'steelyard_disk_level{{point="{tmp_path}/small"}} 2.0' in metrics
    shot(tmp_path, text)


def shot(home: Path, text: str) -> None:
    import shutil

    chromium = shutil.which("chromium")
    if chromium is None:
        return
    playwright = pytest.importorskip("playwright.sync_api")
    shots = Path(__file__).resolve().parents[2] / "out" / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    (home / "full.html").write_text(text)
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 1280, "height": 900})
        page.goto((home / "full.html").as_uri())
        page.screenshot(path=shots / "status full light.png", full_page=True)
        opened.close()


# --- samples and metrics


def test_a_sample_is_kept_at_each_round_and_not_twice_in_ten_minutes(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "w", 1, days=0).build()
    site = scene.site()
    point = file_systems(site)[0].point
    take_samples(site)
    before = len(samples_of(recent_samples(site), point))
    take_samples(site)
    assert len(samples_of(recent_samples(site), point)) == before >= 1
    disk_watch(site)
    assert len(samples_of(recent_samples(site), point)) == before + 1


def test_metrics_say_what_the_status_says(tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    scene = Scene(tmp_path / "w", 3, never_drilled=frozenset({"zero123-xl"})).build()
    picture = gather(scene.site())
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(render_metrics(picture).decode())
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float | None:
        return found.get((f"steelyard_{name}", tuple(sorted(labels.items()))))

    for model in picture.models:
        name = model["model"]
        assert value("model_whole_copies", model=name) == model["verified_copies"]
        assert value("model_restorable", model=name, state=model["restorable"]["state"]) == 1
        assert value("copy_verdict", model=name, copy="usb", verdict="ok") == 1
        proven = datetime.fromisoformat(model["copies"]["usb"]["last_proven"]).timestamp()
        assert value("copy_proven_timestamp_seconds", model=name, copy="usb") == pytest.approx(proven)
    assert value("drill_timestamp_seconds", model="zero123-xl", copy="usb") is None, "never has no age"
    assert value("run_exit_code", verb="keep") == 0
    assert value("disk_free_bytes", point=picture.disks[0].seen.where.point)


def test_each_level_is_news_once_and_ends_as_news() -> None:
    from steelyard.news import news_of
    from steelyard.report import Report, Row

    def events(verdict: str, failing: bool = False) -> dict[str, bool]:
        facts = {"verdict": verdict, "failing": failing, "why": "…", "io_errors": 3, "smart": "passed"}
        row = Row(path="/data", facts=facts, exit_code=int(verdict == "error"))
        return {one.event.removeprefix("steelyard."): bool(one.key) for one in news_of(Report("disk-watch", [row]))}

    assert [name for name, told in events("ok").items() if told] == []
    assert [name for name, told in events("warning").items() if told] == ["disk.low"]
    assert [name for name, told in events("error").items() if told] == ["disk.nearly-full"]
    assert [name for name, told in events("error", failing=True).items() if told] == ["disk.failing"]
