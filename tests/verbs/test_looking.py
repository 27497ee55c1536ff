"""What is in a file is looked at before it is fetched and before it gets its name; each aspect has its own verdict; unknown is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steelyard import use
from steelyard.errors import NotLoadable, UsageError
from steelyard.inspecting import inspect_sources
from steelyard.manifest import seal
from steelyard.standins.weights import second_revision, write_torch_zip
from steelyard.verbs import Call, run_locally
from tests.checkpoint.assemble import safetensors_of
from tests.conftest import FILE, REPO, Done, World

torch = pytest.importorskip("torch", reason="the extra steelyard[torch] is not installed")
ASPECTS = ["container", "bytes", "values", "fit", "trust"]
LAYER = "model.diffusion_model.l{}.weight"


def hostile(canary: Path) -> bytes:
    """Three megabytes that would leave *canary* behind if they were unpickled."""
    return (
        b"\x80\x02cos\nsystem\nX" + len(f"touch {canary}").to_bytes(4, "little") + f"touch {canary}".encode() + b"\x85R." + bytes(3_000_000)
    )


def needs_more(path: Path) -> bytes:
    import argparse

    torch.save({"state_dict": {"w": torch.ones(1024, 600)}, "args": argparse.Namespace(lr=1)}, path)
    return path.read_bytes()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "PREFECT_API_URL", "STEELYARD_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def run(world: World, verb: str, **params: Any) -> Done:
    """The verb in this process: what is tested here is what it says, and torch is loaded in a child anyway."""
    report = run_locally(Call(verb, world.config, {"device": "cpu"} | params if verb == "load" else params))
    return Done(report.exit_code, report.as_json(), "", "")


def look(world: World, *sources: str, fits: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = inspect_sources(sources, world.site(), model=fits).as_json()["results"][0]
    return found


def setting(world: World, line: str, *, hub: str = "") -> None:
    world.configure(hub=hub)
    world.config.write_text(world.config.read_text().replace('dir = "."', f'dir = "."\n{line}'))


def states(row: dict[str, object]) -> dict[str, str]:
    aspects = row["aspects"]
    assert isinstance(aspects, dict)
    assert list(aspects) == ASPECTS
    assert all(one["reason"] and one["seconds"] >= 0 for one in aspects.values())
    return {name: one["verdict"] for name, one in aspects.items()}


def refused(done: Done) -> str:
    assert (done.code, [error["code"] for error in done.errors]) == (1, ["untrusted"]), done.stdout
    assert done.of(FILE)["action"] == "refused"
    return str(done.errors[0]["message"] + done.errors[0]["hint"])


# --- before the bytes


def test_a_hostile_file_is_refused_before_it_is_downloaded(world: World) -> None:
    canary = world.home / "canary"
    world.hub.add_revision(REPO, {FILE: hostile(canary)})
    done = run(world, "download")
    assert "os.system" in refused(done) or "posix.system" in refused(done)
    assert done.of(FILE)["trust"] == "hostile"
    assert world.hub.bytes_sent("cdn") < 1 << 20
    assert not world.weights.exists() and not canary.exists()


def test_whoever_wants_it_all_the_same_says_so(world: World) -> None:
    canary = world.home / "canary"
    world.hub.add_revision(REPO, {FILE: hostile(canary)})
    setting(world, 'trust = "off"')
    assert run(world, "download").code == 0
    done = run(world, "load")
    assert (done.code, done.of(FILE)["verdict"]) == (1, "untrusted")
    assert states(done.of(FILE))["trust"] == "bad"
    assert not canary.exists()


def test_the_look_costs_no_byte_twice_and_its_verdict_stands_in_the_row(world: World) -> None:
    done = run(world, "download")
    row = done.of(FILE)
    assert (done.code, row["trust"]) == (0, "ok")
    assert "warning" not in row
    assert world.hub.bytes_sent("cdn") == row["bytes_fetched"] == row["size_bytes"]


def test_what_is_no_checkpoint_is_told_and_taken_where_nothing_else_is_asked(world: World) -> None:
    world.hub.add_revision(REPO, {FILE: b"<html>" + b"x" * 2_000_000})
    row = run(world, "download").of(FILE)
    assert (row["action"], row["trust"], row["warnings"]) == ("downloaded", "broken", ["html-page"])


def test_with_trust_required_it_is_refused(world: World) -> None:
    setting(world, 'trust = "require"')
    world.hub.add_revision(REPO, {FILE: b"<html>" + b"x" * 2_000_000})
    refused(run(world, "download"))
    assert world.hub.bytes_sent("cdn") < 1 << 20
    assert not world.weights.exists()


def test_a_small_hostile_file_gets_no_name_either(world: World) -> None:
    world.hub.add_revision(REPO, {FILE: hostile(world.home / "canary")[:500] + bytes(100)})
    done = run(world, "download")
    assert (done.code, done.errors[0]["code"]) == (1, "untrusted")
    assert not world.weights.exists()


def test_an_update_to_a_hostile_file_fetches_nothing_of_it(world: World) -> None:
    assert run(world, "download").code == 0
    before = world.weights.read_bytes()
    world.hub.add_revision(REPO, {FILE: hostile(world.home / "canary")})
    world.hub.reset_counters()
    done = run(world, "update", model="mvdream")
    assert (done.code, done.errors[0]["code"]) == (1, "untrusted")
    assert world.hub.bytes_sent("cdn") < 1 << 20
    assert world.weights.read_bytes() == before


# --- loading before the name


def test_with_load_check_what_does_not_load_gets_no_name_and_is_not_fetched_again(world: World) -> None:
    path = world.home / "nan.pt"
    torch.save({"w": torch.full((1024, 600), float("nan"))}, path)
    world.hub.add_revision(REPO, {FILE: path})
    setting(world, "load_check = true")
    done = run(world, "download")
    assert (done.code, done.errors[0]["code"], done.of(FILE)["action"]) == (1, "not-loadable", "refused")
    assert not world.weights.exists()
    world.hub.reset_counters()
    setting(world, "load_check = false")
    assert run(world, "download").code == 0
    assert world.hub.bytes_sent("cdn") == 0


# --- what may be allowed, for which bytes


def test_what_needs_more_is_untrusted_with_the_names_and_the_line_that_allows_it(world: World, tmp_path: Path) -> None:
    world.hub.add_revision(REPO, {FILE: needs_more(tmp_path / "n.pt")})
    row = run(world, "download").of(FILE)
    assert (row["action"], row["trust"]) == ("downloaded", "untrusted")
    done = run(world, "load")
    assert (done.code, done.of(FILE)["verdict"]) == (1, "untrusted")
    assert "argparse.Namespace" in json.dumps(done.of(FILE)["reasons"])
    line = done.of(FILE)["hint"].partition("allow_globals")[2]
    setting(world, f"allow_globals{line}")
    allowed = run(world, "load")
    assert (allowed.code, allowed.of(FILE)["verdict"]) == (0, "ok"), allowed.stdout
    assert allowed.of(FILE)["aspects"]["trust"]["reason"] == "allowed-global"
    assert look(world, str(world.weights))["verdict"] == "ok"


def test_an_allowance_is_for_those_bytes_and_no_others(world: World, tmp_path: Path) -> None:
    world.hub.add_revision(REPO, {FILE: needs_more(tmp_path / "n.pt")})
    setting(world, f'allow_globals = {{ "{"0" * 64}" = ["argparse.Namespace"] }}')
    assert run(world, "download").code == 0
    assert run(world, "load").of(FILE)["verdict"] == "untrusted"
    assert look(world, f"hf://{REPO}/{FILE}")["verdict"] == "untrusted"
    setting(world, 'allow_globals = ["argparse.Namespace"]')
    assert run(world, "load").of(FILE)["verdict"] == "ok"


# --- aspects


def test_every_aspect_has_its_verdict_and_unknown_is_shown(world: World) -> None:
    remote = look(world, f"hf://{REPO}/{FILE}")
    assert states(remote) == {"container": "unknown", "bytes": "unknown", "values": "unknown", "fit": "unknown", "trust": "ok"} or (
        states(remote)["container"] == "ok"
    )
    assert (remote["verdict"], remote["whole"]) == ("ok", "unknown")
    run(world, "download")
    first, second = (run(world, "load").of(FILE) for _ in range(2))
    assert (states(first)["fit"], first["whole"]) == ("unknown", "unknown")
    assert set(states(second).values()) == {second["whole"]} == {"ok"}
    local = look(world, str(world.weights))
    assert states(local) == {"container": "ok", "bytes": "ok", "values": "unknown", "fit": "ok", "trust": "ok"}
    process = world.start("inspect", str(world.weights))
    told, _ = process.communicate(timeout=60)
    assert "values unknown (not-loaded)" in told and "fit ok (fits)" in told and told.count("→ unknown") == 1


def test_bytes_that_are_not_those_agreed_on_do_not_count_as_loaded(world: World) -> None:
    """A safetensors file has no checksum: one flipped bit loads without a word."""
    header = b'{"w":{"dtype":"F32","shape":[700,700],"data_offsets":[0,1960000]}}'
    world.hub.add_revision(REPO, {"w.safetensors": safetensors_of(header, bytes(range(1, 41)) * 49_000), FILE: None})
    world.configure(files='["w.safetensors"]')
    assert run(world, "download").code == 0
    world.flip(world.models / "w.safetensors", 1_000_000)
    done = run(world, "load")
    row = done.of("w.safetensors")
    assert (done.code, row["verdict"], states(row)["bytes"], row["whole"]) == (1, "broken", "bad", "bad")
    assert not (world.models / "w.safetensors.steelyard.json").exists()


# --- fit


def test_a_header_alone_tells_whether_a_strict_loader_takes_it(world: World, checkpoint: Path, tmp_path: Path) -> None:
    assert run(world, "download").code == 0
    assert run(world, "load").code == 0
    second_revision(checkpoint, tmp_path / "same.pt", {LAYER.format(3)})
    specs = {LAYER.format(n): ("float32", (512, 1024) if n else (256, 1024), n) for n in range(10)}
    write_torch_zip(tmp_path / "other.pt", specs, under="state_dict")
    write_torch_zip(tmp_path / "moved.pt", {LAYER.format(n): ("float32", (512, 1024), n) for n in range(10)}, under="model")
    taken = look(world, str(tmp_path / "same.pt"), fits="mvdream")
    assert (taken["compatible"], states(taken)["fit"]) == (True, "ok")
    other = look(world, str(tmp_path / "other.pt"), fits="mvdream")
    assert (other["compatible"], other["fit"]["reshaped"], other["whole"]) == (False, [LAYER.format(0)], "bad")
    moved = look(world, str(tmp_path / "moved.pt"), fits="mvdream")
    assert (moved["compatible"], moved["fit"]["moved"]) == (False, ["state_dict", "model"])


def test_a_programs_own_word_decides_what_fits(world: World) -> None:
    assert run(world, "download").code == 0
    expected = {f"model.diffusion_model.l{n}.weight": torch.empty(512, 1024, device="meta") for n in range(9)}
    use.expect("mvdream", expected, config=world.config)
    row = look(world, str(world.weights))
    assert (row["verdict"], row["aspects"]["fit"]["verdict"], row["whole"]) == ("ok", "bad", "bad")
    assert "1 unexpected" in row["aspects"]["fit"]["sentence"]


# --- the Hub's own scan


def test_the_scan_is_recorded_for_our_files_and_watched(world: World) -> None:
    world.hub.set_scan(REPO, "README.md", "unsafe")
    assert run(world, "download").code == 0
    assert json.loads((world.home / "steelyard.lock").read_text())["models"]["mvdream"]["scan"] == "safe"
    row = run(world, "check-updates").rows[0]
    assert (row["verdict"], row["scan"], row["flagged"]) == ("unchanged", "safe", {})
    world.hub.set_scan(REPO, FILE, "unsafe", imports=("os.system",))
    row = run(world, "check-updates").rows[0]
    assert (row["verdict"], row["flagged"]) == ("scan-flagged", {FILE: "unsafe"})
    assert f"{FILE} unsafe" in row["why"]


def test_what_was_agreed_on_as_flagged_is_not_news(world: World) -> None:
    world.hub.set_scan(REPO, FILE, "suspicious")
    assert run(world, "download").code == 0
    assert json.loads((world.home / "steelyard.lock").read_text())["models"]["mvdream"]["flagged"] == {FILE: "suspicious"}
    assert run(world, "check-updates").rows[0]["verdict"] == "unchanged"
    world.hub.set_scan(REPO, FILE, "unsafe")
    assert run(world, "check-updates").rows[0]["verdict"] == "scan-flagged"


def test_the_held_commit_is_watched_when_upstream_has_gone_on(world: World) -> None:
    assert run(world, "download").code == 0
    world.hub.add_revision(REPO, {FILE: None, "new.pt": b"another"})
    world.hub.set_scan(REPO, FILE, "unsafe")
    assert run(world, "check-updates").rows[0]["flagged"] == {FILE: "unsafe"}


def test_the_gate_refuses_where_the_config_shuts_it(world: World) -> None:
    world.hub.set_scan(REPO, FILE, "unsafe")
    world.configure(hub='scan_gate = "refuse"')
    done = run(world, "download")
    assert (done.code, done.errors[0]["code"]) == (1, "untrusted")
    assert "scan_gate" in done.errors[0]["hint"]
    assert not (world.home / "steelyard.lock").exists()
    assert world.hub.bytes_sent("cdn") == 0


# --- signed certificates


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    private, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    key = Ed25519PrivateKey.generate()
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_with_trusted_keys_only_what_one_of_them_signed_is_given_out(world: World, keys: tuple[Path, Path]) -> None:
    private, public = keys
    assert run(world, "download").code == 0
    world.configure(f'[certificates]\ntrusted_keys = ["{public}"]')
    with pytest.raises(NotLoadable, match="no trusted key vouches for it"):
        use.weights("mvdream", config=world.config)
    assert run(world, "load", sign=private).code == 0
    assert use.weights("mvdream", config=world.config) == world.weights
    certificate = world.models / f"{FILE}.steelyard.json"
    record = json.loads(certificate.read_text())
    assert record["signature"]["algorithm"] == "ed25519"
    certificate.write_text(json.dumps(record | {"finite": None}))
    with pytest.raises(NotLoadable, match="its digest does not match its content"):
        use.weights("mvdream", config=world.config)
    forged = {key: value for key, value in record.items() if key != "digest"} | {"finite": None}
    certificate.write_bytes(seal(forged))
    with pytest.raises(NotLoadable, match="none of the 1 trusted keys signed it"):
        use.weights("mvdream", config=world.config)


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_key_that_can_not_sign_is_a_sentence_before_the_load(world: World, tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.pem").write_text(text)
    with pytest.raises(UsageError) as told:
        run(world, "load", sign=tmp_path / "bad.pem")
    assert "openssl genpkey" in told.value.hint
