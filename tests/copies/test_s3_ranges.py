"""Ranges after the first go past boto3: the same bytes, the same counts, and boto3 again wherever it is not a plain answer."""

from __future__ import annotations

import random
from typing import Any

import pytest
from contract import PIECE, S3Kind, build, entry_of, manifest_of

from steelyard.copies import s3_ranges, s3_source
from steelyard.copies.base import Look
from steelyard.copies.s3_source import S3Source
from steelyard.errors import BadAnswer, Missing
from steelyard.source import read_at
from steelyard.standins.s3_faults import cut_down
from steelyard.standins.s3_proxy import S3Proxy

pytestmark = pytest.mark.s3
FILE = "weights.pt"
DATA = random.Random(6).randbytes(4 * PIECE + 5)
ENTRY = entry_of(FILE, DATA)
MANIFEST = manifest_of(ENTRY)


@pytest.fixture
def source(s3: S3Kind, built: list[str]) -> S3Source:
    s3.write(MANIFEST, FILE, DATA)
    found = s3.copy().open(MANIFEST, ENTRY)
    assert isinstance(found, S3Source)
    return found


@pytest.fixture
def built(s3: S3Kind) -> Any:
    """The ranges that boto3 built a request for."""
    client, seen = s3.copy().bucket.client(), []

    def note(params: dict[str, Any], **_: Any) -> None:
        seen.append(params["Range"])

    client.meta.events.register("before-parameter-build.s3.GetObject", note)
    yield seen
    client.meta.events.unregister("before-parameter-build.s3.GetObject", note)


def pieces(source: S3Source) -> list[bytes]:
    return [read_at(source, start, end - start) for start, end in ENTRY.ranges]


def test_boto3_builds_the_first_request_and_every_one_is_counted(source: S3Source, built: list[str]) -> None:
    assert b"".join(pieces(source)) == DATA
    assert built == [f"bytes=0-{PIECE - 1}"]
    assert source.bucket.requests["get_object"] == len(ENTRY.pieces)
    assert source.bucket.bytes_down == len(DATA)


def test_each_range_is_signed_with_the_credentials_of_its_time(source: S3Source, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces(source)
    sent = source._ranges._sent
    assert sent is not None
    signed: list[Any] = []

    def sign() -> Any:
        signed.append(sent.sign())
        return signed[-1]

    monkeypatch.setattr(source._ranges, "_sent", s3_ranges.Sent(sent.url, sent.headers, sign, sent.session, sent.config))
    assert b"".join(pieces(source)) == DATA
    assert len(signed) == len({id(one) for one in signed}) == len(ENTRY.pieces)


def test_what_the_store_refuses_is_asked_through_boto3_and_then_always(source: S3Source, built: list[str]) -> None:
    pieces(source)
    sent = source._ranges._sent
    assert sent is not None
    built.clear()
    wrong = sent.url.replace(FILE, "no-such-file")
    source._ranges._sent = s3_ranges.Sent(wrong, sent.headers, sent.sign, sent.session, sent.config)
    before = source.bucket.requests["get_object"]
    assert b"".join(pieces(source)) == DATA
    assert len(built) == len(ENTRY.pieces)
    assert source.bucket.requests["get_object"] - before == len(ENTRY.pieces) + 1


def test_a_signature_of_another_kind_is_left_to_boto3(s3: S3Kind, built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_ranges, "_SCOPE", s3_ranges.re.compile("none is like this"))
    s3.write(MANIFEST, FILE, DATA)
    assert b"".join(pieces(s3.copy().open(MANIFEST, ENTRY))) == DATA
    assert len(built) == len(ENTRY.pieces)


def test_an_object_that_changes_or_goes_between_two_ranges_is_an_error_and_no_mix(s3: S3Kind, source: S3Source) -> None:
    assert read_at(source, 0, 10) == DATA[:10]
    s3.write(MANIFEST, FILE, DATA[::-1])
    with pytest.raises(BadAnswer) as caught:
        read_at(source, 10, 10)
    assert "changed while it was being read" in caught.value.message
    s3.delete(MANIFEST, FILE)
    with pytest.raises(Missing):
        read_at(source, 20, 10)


def test_a_piece_that_comes_in_drops_with_a_silence_after_each_is_given_up_and_named(
    far: S3Kind, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SeaweedFS does with bytes that rotted below it: a quarter of a MiB, 13 s of silence, the end, and so on for each try."""
    far.write(MANIFEST, FILE, DATA)
    monkeypatch.setattr(s3_source, "SILENCE_BEFORE_S", 0.0)
    monkeypatch.setattr(s3_source, "SILENT_S", 0.0)
    proxy.fault(cut_down(1000), method="GET", key=FILE, times=s3_source.SILENCES)
    found = build(far.spec() | {"settings": far.spec()["settings"] | {"connections": 1}}).judge(MANIFEST, ENTRY, Look("deep"))
    assert (found.verdict, found.bad_ranges) == ("unreadable", (ENTRY.ranges[0],))
    assert proxy.count("GET", key=FILE) == s3_source.SILENCES + len(ENTRY.pieces) - 1

    # Fewer than that are waited out, and bytes that keep coming are never given up.
    proxy.fault(cut_down(1000), method="GET", key=FILE, times=s3_source.SILENCES - 1)
    assert far.copy().judge(MANIFEST, ENTRY, Look("deep")).ok
    monkeypatch.setattr(s3_source, "SILENCE_BEFORE_S", 3.0)
    proxy.fault(cut_down(1000), method="GET", key=FILE, times=4 * s3_source.SILENCES)
    assert far.copy().judge(MANIFEST, ENTRY, Look("deep")).ok
