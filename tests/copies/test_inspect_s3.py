"""inspect s3://bucket/key: by ranges, with the replica's way to the store or boto3's own, and every failure a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from contract import S3Kind

from steelyard.cli import main
from steelyard.standins.weights import write_torch_zip

pytestmark = pytest.mark.s3


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "steelyard.toml"
    path.write_text(f'[store]\nmodels = "{tmp_path}/m"\nhf_home = "{tmp_path}/hf"\n[models.m]\nrepo_id = "a/b"\n')
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *arguments, "--json"])
    code = ended.value.code
    assert isinstance(code, int)
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def weights(s3: S3Kind, client: object, tmp_path: Path) -> str:
    path = tmp_path / "w.pt"
    write_torch_zip(path, {f"layer{n}.weight": ("float32", (256, 1024), n) for n in range(8)}, under="state_dict")
    client.upload_file(str(path), s3.bucket, f"{s3.prefix}/x/w.pt")  # type: ignore[attr-defined]
    return f"s3://{s3.bucket}/{s3.prefix}/x/w.pt"


def test_by_boto3s_own_settings(
    weights: str, s3: S3Kind, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    code, told = run(capsys, weights, "--config", str(config))
    row = told["results"][0]  # type: ignore[index]
    assert (code, row["verdict"], row["tensors"], row["weights_key"]) == (0, "ok", 8, "state_dict")
    assert row["requests"] <= 3 and row["bytes_read"] < 1 << 20
    assert row["aspects"]["bytes"]["verdict"] == "unknown"


def test_by_the_replica_that_lies_in_that_bucket(weights: str, s3: S3Kind, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text() + f'[replicas.far]\nkind = "s3"\nbucket = "{s3.bucket}"\nendpoint_url = "{s3.endpoint_url}"\n')
    code, told = run(capsys, weights, "--config", str(config))
    assert (code, told["results"][0]["verdict"]) == (0, "ok")  # type: ignore[index]


@pytest.mark.parametrize(
    ("source", "code", "word"),
    [
        ("s3://{bucket}/no/such.pt", 4, "has no object"),
        ("s3://{bucket}/{prefix}/x/other.pt", 4, "has no object"),
        ("s3://no-such-bucket-here/w.pt", 4, "no-such-bucket-here"),
        ("s3://{bucket}", 2, "not an object"),
        ("s3://{bucket}/", 2, "not an object"),
        ("s3://", 2, "not an object"),
        ("s3://b ad/x", 2, "not an object"),
        ("gs://bucket/x", 2, "only paths"),
    ],
)
def test_what_is_not_there_is_a_sentence(
    source: str, code: int, word: str, weights: str, s3: S3Kind, config: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    got, told = run(capsys, source.format(bucket=s3.bucket, prefix=s3.prefix), "--config", str(config))
    (error,) = told["errors"]  # type: ignore[misc]
    assert (got, word in error["message"]) == (code, True), error  # type: ignore[has-type]
    assert error["hint"]  # type: ignore[has-type]


def test_wrong_credentials_are_a_sentence(
    weights: str, s3: S3Kind, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    code, told = run(capsys, weights, "--config", str(config))
    assert (code, told["errors"][0]["code"]) == (4, "access-denied")  # type: ignore[index]


def test_a_sharded_set_is_inspected_through_its_index(
    s3: S3Kind, client: object, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    names = ["a.safetensors", "b.safetensors"]
    for name in names:
        header = json.dumps({name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
        data = len(header).to_bytes(8, "little") + header + bytes(16)
        client.put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/set/{name}", Body=data)  # type: ignore[attr-defined]
    index = {"metadata": {"total_size": 32}, "weight_map": {name: name for name in names}}
    client.put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/set/model.index.json", Body=json.dumps(index).encode())  # type: ignore[attr-defined]
    code, told = run(capsys, f"s3://{s3.bucket}/{s3.prefix}/set/model.index.json", "--config", str(config))
    assert (code, told["results"][0]["verdict"], told["results"][0]["tensors"]) == (0, "ok", 2)  # type: ignore[index]
    client.delete_object(Bucket=s3.bucket, Key=f"{s3.prefix}/set/b.safetensors")  # type: ignore[attr-defined]
    code, told = run(capsys, f"s3://{s3.bucket}/{s3.prefix}/set/model.index.json", "--config", str(config))
    assert (code, told["results"][0]["reasons"][0]["code"]) == (1, "shard-missing")  # type: ignore[index]
