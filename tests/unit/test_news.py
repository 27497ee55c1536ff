"""One event an outcome, and never twice for the same thing."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from steelyard.errors import Busy, MountAbsent
from steelyard.history import History
from steelyard.news import News, news_of
from steelyard.report import Report, Row


def report(command: str, *facts: dict[str, Any], exit_code: int = 0, **place: str) -> Report:
    return Report(command, [Row(**{"model": "mvdream", "copy": "hub", **place}, facts=one, exit_code=exit_code) for one in facts]).close()


def told(history: History, made: Report, scope: str = "") -> list[str]:
    """The events that a flow would send for *made*."""
    sent = []
    for one in news_of(made, scope):
        if not one.key:
            history.forget_ended([(one.event, one.subject)])
        elif history.tell_once(one.event, one.subject, one.key):
            sent.append(one.event.removeprefix("steelyard."))
    return sent


def check(verdict: str, upstream: str | None = "a" * 40, **facts: Any) -> Report:
    code = 4 if verdict in {"unreachable", "gone", "access-denied"} else 1 if verdict in {"history-rewritten", "scan-flagged"} else 0
    return report("check-updates", {"verdict": verdict, "upstream_commit": upstream, **facts}, exit_code=code)


def test_an_update_is_told_once_a_commit_and_never_again(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite")
    assert told(history, check("update-available")) == ["update.available"]
    assert told(history, check("update-available")) == []
    assert told(history, check("update-available", "b" * 40)) == ["update.available"]
    assert told(history, check("unchanged")) == []
    assert told(history, check("update-available")) == [], "the same commit was told before"


def test_each_outcome_of_a_check_has_its_event(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite")
    assert told(history, check("history-rewritten")) == ["upstream.history-rewritten"]
    assert told(history, check("scan-flagged")) == ["upstream.scan-flagged"]
    assert told(history, check("scan-flagged")) == []
    assert told(history, check("access-denied", None)) == ["upstream.access-lost"]
    assert told(history, check("gone", None)) == ["upstream.gone"]
    assert told(history, check("unchanged", renamed_to="org/new")) == ["upstream.renamed"]
    assert told(history, check("gone", None)) == ["upstream.gone"], "it was back in between"


def test_an_outage_is_told_once_and_once_more_when_it_lasts(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite")
    now = datetime.now(UTC)
    assert told(history, check("unreachable", None, since=now.isoformat())) == ["upstream.unreachable"]
    assert told(history, check("unreachable", None, since=now.isoformat())) == []
    long_ago = (now - timedelta(days=4)).isoformat()
    assert told(history, check("unreachable", None, since=long_ago)) == ["upstream.stale"]
    assert told(history, check("unreachable", None, since=long_ago)) == []
    assert told(history, check("unchanged")) == []
    assert told(history, check("unreachable", None, since=now.isoformat())) == ["upstream.unreachable"]


def verified(verdict: str, *ranges: list[int]) -> Report:
    facts = {"verdict": verdict, "bad_ranges": list(ranges), "commit": "c"}
    return report("verify", facts, exit_code=0 if verdict == "ok" else 1, copy="store", file="w.pt")


def test_damage_is_told_once_other_damage_again_and_the_same_after_it_was_mended(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite")
    assert told(history, verified("corrupt", [0, 8])) == ["verify.failed"]
    assert told(history, verified("corrupt", [0, 8])) == []
    assert told(history, verified("corrupt", [0, 8], [16, 24])) == ["verify.failed"]
    assert told(history, verified("ok")) == []
    assert told(history, verified("corrupt", [0, 8])) == ["verify.failed"]


def test_a_failure_that_has_no_event_of_its_own_is_a_failed_run_told_once(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite")

    def backup(error: Exception | None, scope: str = "all") -> list[str]:
        made = Report("backup")
        made.errors += [error] if error else []  # type: ignore[list-item]
        return told(history, made.close(), scope)

    assert backup(MountAbsent(why="usb is not mounted", copy="usb")) == ["run.failed"]
    assert backup(MountAbsent(why="usb is not mounted", copy="usb")) == []
    assert backup(Busy(what="store mvdream", holder="process 7")) == ["run.failed"]
    assert backup(Busy(what="store mvdream", holder="process 8")) == [], "another process is not another thing"
    assert backup(MountAbsent(why="usb is not mounted", copy="usb"), "other models") == ["run.failed"]
    assert backup(None) == []
    assert backup(Busy(what="store mvdream", holder="process 9")) == ["run.failed"]


def test_what_one_event_tells_a_failed_run_does_not_tell_again(tmp_path: Path) -> None:
    assert told(History(tmp_path / "h.sqlite"), verified("corrupt", [0, 8])) == ["verify.failed"]


def test_every_update_and_every_way_back_is_an_act_of_its_own(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite")
    for _ in range(2):
        assert told(history, report("update", {"action": "updated", "commit": "b"})) == ["update.applied"]
        assert told(history, report("rollback", {"action": "rolled-back", "commit": "a"})) == ["update.rolled-back"]
    assert told(history, report("update", {"action": "unchanged", "commit": "b"})) == []


def test_of_two_runs_at_once_one_tells(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite")
    history.tell_once("x", "y", "made before")
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(history.tell_once("e", "s", "k"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 7 + [True]


def test_what_could_not_be_sent_is_told_the_next_time(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite")
    assert history.tell_once("e", "s", "k")
    history.forget_told("e", "s", "k")
    assert history.tell_once("e", "s", "k")


def test_a_store_that_keeps_no_record_is_told_rather_than_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = History(tmp_path / "file" / "h.sqlite")
    assert history.tell_once("e", "s", "k") and history.tell_once("e", "s", "k")


def test_every_event_that_someone_should_hear_of_has_its_automation() -> None:
    from deployments.automations import TOLD
    from steelyard import news

    named = {value for key, value in vars(news).items() if key.isupper() and isinstance(value, str) and value.startswith("steelyard.")}
    assert named - set(TOLD) == {news.UNREACHABLE}, "one evening offline is no reason to call anyone"
    assert News("e", "s", "").key == ""


def test_a_slow_drill_and_a_drive_past_its_max_age_are_told_once_until_they_have_ended(tmp_path: Path) -> None:
    from steelyard.news import news_of_state

    history = History(tmp_path / "h.sqlite")
    slow = report("drill", {"verdict": "ok", "slower": True, "seconds": 90.0, "usual_seconds": 30.0}, copy="usb")
    assert [told(history, slow), told(history, slow)] == [["drill.slower"], []]
    assert told(history, report("drill", {"verdict": "ok", "slower": False}, copy="usb")) == []
    failed = report("drill", {"verdict": "failed", "why": "it is corrupt"}, copy="usb", exit_code=1)
    assert [told(history, failed), told(history, slow)] == [["drill.failed"], ["drill.slower"]]

    def state(*drives: dict[str, Any], overdue: bool) -> list[str]:
        made = Report("status")
        made.extra["store"] = {"models": "/m", "free_bytes": 2, "min_free_bytes": 1}
        usb = {"verdict": "ok", "overdue": overdue, "last_good_at": "2026-01-01T00:00:00+00:00", "drives": list(drives)}
        few = {"model": "mvdream", "commit": "c", "verified_copies": 1, "min_copies": 1, "copies": {"store": {"verdict": "ok"}, "usb": usb}}
        made.extra["models"] = [few]
        sent = []
        for one in news_of_state(made):
            if not one.key:
                history.forget_ended([(one.event, one.subject)])
            elif history.tell_once(one.event, one.subject, one.key):
                sent.append(one.told)
        return sent

    (first,) = state(overdue=True)
    assert first.startswith("usb: its last good copy of mvdream is") and first.endswith("days old")
    assert state(overdue=True) == [] and state(overdue=False) == [] and len(state(overdue=True)) == 1
    young = {"id": "a1", "label": "A", "overdue": False, "last_good_at": "2026-01-01T00:00:00+00:00"}
    never = {"id": "b2", "label": "B", "overdue": True, "last_good_at": None}
    assert state(young, never, overdue=False) == ["usb, drive B never had a good copy of mvdream"]


def test_an_automation_waits_for_each_of_the_events_of_drives() -> None:
    from deployments.automations import TOLD
    from steelyard.news import DRILL_SLOWER, OVERDUE

    assert {DRILL_SLOWER, OVERDUE} <= set(TOLD)
