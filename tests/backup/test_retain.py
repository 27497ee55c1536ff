"""Retention is restic's forget: https://restic.readthedocs.io/en/stable/060_forget.html"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from steelyard.retain import Keep, RetentionPlan, Snapshot, plan_retention

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)


def days(*ago: float, verified: bool | None = True) -> list[Snapshot]:
    return [Snapshot(f"{number:040x}", NOON - timedelta(days=day), verified) for number, day in enumerate(ago)]


def stays(plan: RetentionPlan) -> list[int]:
    return sorted(int(commit, 16) for commit in plan.stay)


def test_the_last_n_stay() -> None:
    plan = plan_retention(days(0, 1, 2, 3, 4), Keep(last=2))
    assert stays(plan) == [0, 1]
    assert [one.commit for one in plan.go] == [f"{n:040x}" for n in (4, 3, 2)], "oldest first"


def test_daily_keeps_the_newest_of_each_day_that_has_one_however_far_apart() -> None:
    # Two on the first day; days without any are not counted, as in restic.
    assert stays(plan_retention(days(0, 0.1, 5, 9, 9.2, 20), Keep(last=1, daily=3))) == [0, 2, 3]


def test_weekly_and_monthly_are_independent_of_each_other_and_of_last() -> None:
    plan = plan_retention(days(*range(120)), Keep(last=2, daily=0, weekly=3, monthly=3))
    # 2026-03-31 is a Tuesday: Sundays before it are 2, 9, … days ago; months end 0, 31, 59 days ago.
    assert stays(plan) == [0, 1, 2, 9, 31, 59]
    assert plan.stay[f"{0:040x}"] == ("the newest verified one", "last", "weekly", "monthly")


def test_the_oldest_stays_while_a_rule_has_not_found_its_number() -> None:
    assert stays(plan_retention(days(0, 1, 2, 3), Keep(last=1, monthly=12))) == [0, 3]


def test_one_that_failed_its_verification_never_counts_and_stays_as_evidence() -> None:
    snapshots = [*days(1, 2, 3), Snapshot("f" * 40, NOON, verified=False)]
    plan = plan_retention(snapshots, Keep(last=2))
    assert plan.stay["f" * 40] == ("failed its last verification: to be repaired",)
    assert stays(plan)[:2] == [0, 1] and [one.commit for one in plan.go] == [f"{2:040x}"]


def test_where_none_is_verified_all_stay() -> None:
    assert plan_retention(days(0, 1, 2, 3, verified=None), Keep(last=1)).go == ()


def test_the_locked_commit_stays_whatever_its_age() -> None:
    assert stays(plan_retention(days(0, 1, 2, 300), Keep(last=1), current=f"{3:040x}")) == [0, 3]


snapshots_of_any_kind = st.lists(st.tuples(st.floats(0, 900), st.sampled_from([True, False, None])), min_size=0, max_size=40).map(
    lambda rows: [Snapshot(f"{n:040x}", NOON - timedelta(days=day), ok) for n, (day, ok) in enumerate(rows)]
)
keeps = st.builds(Keep, st.integers(1, 6), st.integers(0, 6), st.integers(0, 6), st.integers(0, 6))


def restic(snapshots: list[Snapshot], keep: Keep) -> set[str]:
    """What `restic forget` keeps, written from its manual and not from our code: newest first; each rule takes the newest of each of its last
    n periods that have one, and the oldest of all while it has counts left.
    """
    newest_first = sorted(snapshots, key=lambda one: (one.at, one.commit), reverse=True)
    periods = {
        "last": [one.commit for one in newest_first],
        "daily": [one.at.strftime("%Y-%m-%d") for one in newest_first],
        "weekly": [one.at.strftime("%G-W%V") for one in newest_first],
        "monthly": [one.at.strftime("%Y-%m") for one in newest_first],
    }
    kept: set[str] = set()
    for rule, names in periods.items():
        wanted = getattr(keep, rule)
        firsts = {name: index for index, name in reversed(list(enumerate(names)))}
        taken = sorted(firsts.values())[:wanted]
        if taken and len(taken) < wanted:
            taken.append(len(names) - 1)
        kept |= {newest_first[index].commit for index in taken}
    return kept


@given(snapshots_of_any_kind, keeps)
def test_what_stays_is_what_restic_keeps_and_what_must_not_go(snapshots: list[Snapshot], keep: Keep) -> None:
    counting = [one for one in snapshots if one.verified is not False]
    expected = restic(counting, keep) | {one.commit for one in snapshots if one.verified is False}
    proven = sorted((one for one in snapshots if one.verified), key=lambda one: (one.at, one.commit))
    expected |= {proven[-1].commit} if proven else {one.commit for one in snapshots}
    assert set(plan_retention(snapshots, keep).stay) == expected


@given(snapshots_of_any_kind, keeps)
def test_every_snapshot_either_stays_or_goes_and_the_newest_verified_never_goes(snapshots: list[Snapshot], keep: Keep) -> None:
    plan = plan_retention(snapshots, keep)
    gone = {one.commit for one in plan.go}
    assert gone | set(plan.stay) == {one.commit for one in snapshots} and not gone & set(plan.stay)
    good = sorted((one for one in snapshots if one.verified), key=lambda one: (one.at, one.commit))
    assert not good or good[-1].commit in plan.stay
    assert good or not gone, "nothing goes where nothing is proven"
    assert not any(one.verified is False for one in plan.go)


@given(snapshots_of_any_kind, keeps)
def test_asking_again_after_a_clean_removes_nothing_more_of_the_newest(snapshots: list[Snapshot], keep: Keep) -> None:
    plan = plan_retention(snapshots, keep)
    left = [one for one in snapshots if one.commit in plan.stay]
    counting = sorted((one for one in left if one.verified is not False), key=lambda one: (one.at, one.commit), reverse=True)
    again = plan_retention(left, keep)
    assert not {one.commit for one in counting[: keep.last]} & {one.commit for one in again.go}


@given(snapshots_of_any_kind, keeps, st.integers(0, 4))
def test_asking_for_more_never_keeps_less(snapshots: list[Snapshot], keep: Keep, more: int) -> None:
    fewer = set(plan_retention(snapshots, Keep(keep.last)).stay)
    assert fewer <= set(plan_retention(snapshots, keep).stay)
    assert fewer <= set(plan_retention(snapshots, Keep(keep.last + more)).stay)


@given(snapshots_of_any_kind, keeps, st.randoms(use_true_random=False))
def test_the_order_of_the_list_does_not_matter(snapshots: list[Snapshot], keep: Keep, random: object) -> None:
    shuffled = list(snapshots)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan_retention(shuffled, keep) == plan_retention(snapshots, keep) or {
        one.commit for one in plan_retention(shuffled, keep).go
    } == {one.commit for one in plan_retention(snapshots, keep).go}
