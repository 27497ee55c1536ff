"""A limit of bytes a second, hours of a day, and what requests cost."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import pytest

from steelyard.money import Prices, Shape, monthly
from steelyard.pace import SlowBody, Throttle, Window
from steelyard.units import parse_rate
from steelyard.watch import Watch


@pytest.mark.parametrize(
    ("text", "rate"), [("5 MB/s", 5_000_000), ("1.5MiB/s", 1_572_864), ("40 Mbit/s", 5_000_000), ("800kbit/s".replace("k", "K"), 100_000)]
)
def test_a_rate_is_read_as_people_write_it(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["5 MB", "fast", "5 MB/h", "x Mbit/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "now", "open_", "opens"),
    [
        ("22:00-06:00", "21:59", False, "22:00"),
        ("22:00-06:00", "22:00", True, "22:00"),
        ("22:00-06:00", "05:59", True, "05:59"),
        ("22:00-06:00", "06:00", False, "22:00"),
        ("01:30-05:00", "12:00", False, "01:30"),
        ("00:00-24:00", "12:00", True, "12:00"),
    ],
)
def test_hours_may_go_over_midnight(text: str, now: str, open_: bool, opens: str) -> None:
    window = Window.parse(text)
    assert isinstance(window, Window) and str(window) == text
    at = datetime.fromisoformat(f"2026-11-23T{now}")
    assert window.is_open(at) is open_
    assert f"{window.opens(at):%H:%M}" == opens and window.opens(at) >= at


@pytest.mark.parametrize("text", ["22-6", "25:00-06:00", "22:00-22:00", "22:70-23:00"])
def test_what_is_no_span_of_hours_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="span of hours"):
        Window.parse(text)


def test_a_throttle_gives_each_byte_its_time_and_lets_no_pause_be_made_up_for() -> None:
    now = [100.0]
    waited: list[float] = []

    class Patient(Watch):
        def pause(self, seconds: float) -> None:
            waited.append(seconds)
            now[0] += seconds

    throttle = Throttle(1_000_000, clock=lambda: now[0])
    body = SlowBody(bytearray(500_000), throttle, Patient())
    while body.read(16_384):
        pass
    assert sum(waited) == pytest.approx(0.5, abs=0.3)
    assert body.tell() == len(body) == 500_000
    body.seek(0)
    assert bytes(body.read(10)) == bytes(10)
    now[0] += 60
    waited.clear()
    throttle.take(1_000_000, Patient())
    assert waited and waited[0] > 0.7


def test_requests_are_counted_by_kind_and_priced_by_class() -> None:
    shape = Shape(Counter(put_object=2, upload_part=3, head_object=4, delete_object=9), bytes_up=10, bytes_down=2 * 1000**3)
    prices = Prices(writes_1000=5, reads_1000=0.5, egress_gb=0.1, gb_month=0.02)
    assert shape.by_kind() == {"delete": 9, "head": 4, "part": 3, "put": 2}
    assert shape.cost(prices) == pytest.approx(5 * 0.005 + 4 * 0.0005 + 0.2)
    assert "cost" not in shape.as_json()
    assert monthly(prices, 100 * 1000**3, 10 * 1000**3)["amount"] == pytest.approx(3.0)
