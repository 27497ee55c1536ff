"""Listings: read by us, as botocore would read them; and begun before they are needed."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
from contract import S3Kind, entry_of, manifest_of

from steelyard.copies.s3_memory import SWEEP_FROM_FILES
from steelyard.copies.s3_objects import listing
from steelyard.copies.s3_pages import _split
from steelyard.errors import Unreachable
from steelyard.standins.s3_faults import cut_down
from steelyard.standins.s3_proxy import S3Proxy

ODD = ["a b.bin", "plus+and%41.bin", "naïve-ключ-鍵.bin", "quote'\"&<>.bin", "deep/er/x.bin", "tab\tand\nline.bin"]


@pytest.mark.s3
def test_keys_sizes_and_etags_of_a_listing_are_those_that_botocore_reads(s3: S3Kind, client: Any) -> None:
    for number, name in enumerate(ODD):
        client.put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/{name}", Body=b"x" * number)
    theirs = client.list_objects_v2(Bucket=s3.bucket, Prefix=f"{s3.prefix}/")["Contents"]
    ours = list(listing(s3.copy().bucket, f"{s3.prefix}/"))
    assert ours == [(one["Key"], one["Size"], one["ETag"].strip('"')) for one in theirs]
    assert {key for key, _, _ in ours} == {f"{s3.prefix}/{name}" for name in ODD}
    # Further pages, and folders of which only the name is wanted.
    replica = s3.copy()
    many = replica.bucket.call("list_objects_v2", Prefix=f"{s3.prefix}/", MaxKeys=2)
    assert many["IsTruncated"] and len(many["SteelyardObjects"]) == 2
    folders = list(listing(replica.bucket, f"{s3.prefix}/", delimiter="/"))
    assert (f"{s3.prefix}/deep/", -1, "") in folders


def test_a_page_is_split_with_and_without_a_name_space_and_an_encoding() -> None:
    for space in ("", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'):
        body = (
            f"<ListBucketResult{space}><Contents><Key>a+b%2F</Key><Size>7</Size><ETag>&quot;e&quot;</ETag></Contents><KeyCount>1</KeyCount>"
        )
        objects, rest = _split(f"{body}</ListBucketResult>".encode())
        assert objects == [("a+b%2F", 7, "e")]
        assert b"KeyCount" in rest and b"Contents" not in rest
        objects, _ = _split(f"{body}<EncodingType>url</EncodingType></ListBucketResult>".encode())
        assert objects == [("a b/", 7, "e")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<ListBucketResult><Contents>",
        b"<Error><Code>SlowDown</Code></Error>",
        b"<html></html>",
        b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Size>1</Size></Contents></ListBucketResult>",
    ],
)
def test_what_is_no_whole_page_is_left_to_botocore(body: bytes) -> None:
    with pytest.raises((ElementTree.ParseError, ValueError)):
        _split(body)


@pytest.mark.s3
def test_a_listing_that_was_foreseen_is_asked_for_once_and_its_trouble_is_told_by_who_needs_it(far: S3Kind, proxy: S3Proxy) -> None:
    entries = [entry_of(f"{number}.bin", bytes([number])) for number in range(SWEEP_FROM_FILES)]
    manifest = manifest_of(*entries)
    for number, entry in enumerate(entries):
        far.write(manifest, entry.path, bytes([number]))
    replica = far.copy()
    replica.foresee(manifest.model, manifest.commit, len(entries))
    replica.foresee(manifest.model, manifest.commit, len(entries))
    assert len(replica._listings.of(manifest)) == len(entries)
    assert replica.bucket.requests["list_objects_v2"] == 1
    replica.foresee(manifest.model, manifest.commit, SWEEP_FROM_FILES - 1)
    assert replica.bucket.requests["list_objects_v2"] == 1

    impatient = far.copy()
    impatient.bucket.patience_s = 0.2
    proxy.fault(cut_down(20), method="GET", query="list-type", times=1000)
    impatient.foresee(manifest.model, manifest.commit, len(entries))
    with pytest.raises(Unreachable):
        impatient._listings.of(manifest)
    proxy.clear()
    assert len(impatient._listings.of(manifest)) == len(entries)
