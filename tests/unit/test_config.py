"""Every wrong config is one clear sentence that names the key, with exit code 2."""

from pathlib import Path

import pytest

from steelyard.config import MountConfig, load_config, parse_duration, parse_size
from steelyard.errors import ConfigBroken, ConfigMissing, Refused, SteelyardError, UnknownModel
from steelyard.init import STARTER, init

STORE = '[store]\nmodels = "/x/models"\nhf_home = "/x/hf"\n'
MODEL = '[models.a]\nrepo_id = "A/b"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "steelyard.toml"
    path.write_text(text)
    return path


TWINS = "".join(f'[replicas.{n}]\nkind = "mount"\npath = "/u"\nmount_point = false\n' for n in "uv")
BROKEN = {
    "no store": (MODEL, "store"),
    "no model": (STORE + "[models]\n", "models"),
    "unknown table": (STORE + MODEL + "[stuff]\nx = 1\n", "stuff"),
    "unknown key": (STORE + "free = 3\n" + MODEL, "store.free"),
    "bad unit": (STORE + 'min_free = "15 GX"\n' + MODEL, "store.min_free"),
    "negative size": (STORE + "min_free = -1\n" + MODEL, "store.min_free"),
    "relative path": ('[store]\nmodels = "models"\nhf_home = "/x/hf"\n' + MODEL, "store.models"),
    "bad views": (STORE + 'views = "symlink"\n' + MODEL, "store.views"),
    "bad repo_id": (STORE + '[models.a]\nrepo_id = "../x"\n', "models.a.repo_id"),
    "repo_id of the wrong type": (STORE + "[models.a]\nrepo_id = 3\n", "models.a.repo_id"),
    "no repo_id": (STORE + "[models.a]\n", "models.a.repo_id"),
    "empty files": (STORE + MODEL + "files = []\n", "models.a.files"),
    "files that match nothing": (STORE + MODEL + 'files = ["/w.pt"]\n', "models.a.files"),
    "files that are no list": (STORE + MODEL + 'files = "w.pt"\n', "models.a.files"),
    "files of the wrong type": (STORE + MODEL + "files = [1]\n", "models.a.files.0"),
    "repo_id that is an address": (STORE + '[models.a]\nrepo_id = "https://huggingface.co/A/b"\n', "models.a.repo_id"),
    "model whose name has a space": (STORE + '[models."a b"]\nrepo_id = "A/b"\n', "models.a b"),
    "true for a size": (STORE + "min_free = true\n" + MODEL, "store.min_free"),
    "path of the wrong type": ('[store]\nmodels = 3\nhf_home = "/x/hf"\n' + MODEL, "store.models"),
    "text for a truth value": (STORE + MODEL + 'papers = "yes"\n', "models.a.papers"),
    "text for a number": (STORE + MODEL + '[replicas.u]\nkind = "s3"\nbucket = "b"\nkeep_last = "3"\n', "replicas.u.keep_last"),
    "truth value for a number": (STORE + MODEL + "[hub]\nconnections = true\n", "hub.connections"),
    "endpoint that is no address": (STORE + MODEL + '[hub]\nendpoint = "huggingface.co"\n', "hub.endpoint"),
    "mirror that is no address": (STORE + MODEL + '[hub]\nmirrors = ["https://a", "b"]\n', "hub.mirrors.1"),
    "s3 endpoint that is no address": (STORE + MODEL + '[replicas.u]\nkind = "s3"\nbucket = "b"\nendpoint_url = "x"\n', "replicas.u.endpoint_url"),
    "s3 replica called s3": (STORE + MODEL + '[replicas.s3]\nkind = "s3"\n', "replicas.s3.bucket"),
    "model called mount": (STORE + "[models.mount]\nrevision = 3\n", "models.mount.repo_id"),
    "table for a text": (STORE + MODEL + "[models.a.revision]\nx = 1\n", "models.a.revision"),
    "dir that leaves the store": (STORE + MODEL + 'dir = "../../etc"\n', "models.a.dir"),
    "two models over one another": (STORE + MODEL + '[models.b]\nrepo_id = "A/c"\ndir = "a"\n', "models.b"),
    "replica in the store": (STORE + MODEL + '[replicas.u]\nkind = "mount"\npath = "/x/models/u"\nmount_point = false\n', "replicas.u.path"),
    "store in the replica": (STORE + MODEL + '[replicas.u]\nkind = "mount"\npath = "/x"\nmount_point = false\n', "replicas.u.path"),
    "two replicas in one folder": (STORE + MODEL + TWINS, "replicas.v.path"),
    "replica without mount_point": (STORE + MODEL + '[replicas.u]\nkind = "mount"\npath = "/u"\n', "replicas.u.mount_point"),
    "replica beside its mount_point": (STORE + MODEL + '[replicas.u]\nkind = "mount"\npath = "/u"\nmount_point = "/v"\n', "replicas.u.path"),
    "replica of no kind": (STORE + MODEL + '[replicas.u]\npath = "/u"\n', "replicas.u"),
    "replica of a strange kind": (STORE + MODEL + '[replicas.u]\nkind = "tape"\n', "replicas.u"),
    "replica called store": (STORE + MODEL + '[replicas.store]\nkind = "s3"\nbucket = "b"\n', "replicas.store"),
    "s3 prefix that climbs": (STORE + MODEL + '[replicas.u]\nkind = "s3"\nbucket = "b"\nprefix = "a/../.."\n', "replicas.u.prefix"),
    "keep_last of zero": (STORE + MODEL + '[replicas.u]\nkind = "s3"\nbucket = "b"\nkeep_last = 0\n', "replicas.u.keep_last"),
}  # fmt: skip


@pytest.mark.parametrize("text, key", BROKEN.values(), ids=BROKEN)
def test_a_wrong_config_is_one_sentence_that_names_the_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigBroken) as caught:
        load_config(write(tmp_path, text))
    error = caught.value
    assert error.facts["key"] == key
    assert error.exit_code == 2
    assert "\n" not in error.message
    assert error.hint


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigBroken, match="line 2"):
        load_config(write(tmp_path, "[store]\nmodels = \n"))


def test_no_config_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigMissing) as caught:
        load_config(tmp_path / "none.toml")
    assert "steelyard init" in caught.value.hint


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELYARD_STORE__MODELS", "/y/models")
    monkeypatch.setenv("STEELYARD_STORE__MIN_FREE", "3 GB")
    monkeypatch.setenv("STEELYARD_MODELS__A__REVISION", "v2")
    config = load_config(write(tmp_path, STORE + MODEL))
    assert config.store.models == Path("/y/models")
    assert config.store.min_free == 3_000_000_000
    assert config.models["a"].revision == "v2"


@pytest.mark.parametrize(
    "name, value, key",
    [
        ("STEELYARD_STORE__MIN_FREE", "much", "store.min_free"),
        ("STEELYARD_STORE__MODELS", "", "store.models"),
        ("STEELYARD_STORE__MODLES", "/y", "store.modles"),
        ("STEELYARD_STROE__MODELS", "/y", "stroe"),
        ("STEELYARD_STORE__MODELS__X", "/y", "store.models"),
        ("STEELYARD_HUB__CONNECTIONS", "many", "hub.connections"),
        ("STEELYARD_HUB__MIRRORS", "https://a", "hub.mirrors"),
        ("STEELYARD_HUB__MIRRORS", '["https://a', "hub.mirrors"),
        ("STEELYARD_MODELS__A__FILES", "w.pt", "models.a.files"),
        ("STEELYARD_MODELS__A__PAPERS", "perhaps", "models.a.papers"),
        ("STEELYARD_MODELS", "a", "models"),
    ],
)
def test_a_wrong_value_from_the_environment_names_the_key_and_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, key: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigBroken) as caught:
        load_config(write(tmp_path, STORE + MODEL))
    assert caught.value.facts["key"] == key
    assert name in caught.value.message
    assert name in caught.value.hint


def test_any_value_can_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists as JSON, false where it is one of the values, names that a variable can't spell; and the file is judged as strictly as ever."""
    text = STORE + '[models."My-Model.v2"]\nrepo_id = "A/b"\n[replicas.s3]\nkind = "mount"\npath = "/u"\n'
    for name, value in {
        "MODELS__MY_MODEL_V2__FILES": '["*.pt", "x.bin"]',
        "MODELS__MY_MODEL_V2__PAPERS": "false",
        "MODELS__OTHER": '{"repo_id": "C/d", "min_copies": 2}',
        "REPLICAS__S3__MOUNT_POINT": "false",
        "REPLICAS__S3__KEEP_LAST": "5",
        "DISK__WARN_INODES": "7.5",
    }.items():
        monkeypatch.setenv(f"STEELYARD_{name}", value)
    config = load_config(write(tmp_path, text))
    assert list(config.models) == ["My-Model.v2", "other"]
    assert config.models["My-Model.v2"].files == ("*.pt", "x.bin")
    assert config.models["My-Model.v2"].papers is False
    assert config.models["other"].min_copies == 2
    replica = config.replicas["s3"]
    assert isinstance(replica, MountConfig)
    assert (replica.mount_point, replica.keep_last) == (False, 5)
    with pytest.raises(ConfigBroken, match=r"steelyard\.toml: hub\.connections: must be a whole number"):
        load_config(write(tmp_path, text + '[hub]\nconnections = "4"\n'))
    monkeypatch.setenv("STEELYARD_HUB__CONNECTIONS", "4")
    assert load_config(tmp_path / "steelyard.toml").hub.connections == 4


def test_a_config_saved_with_a_byte_order_mark_opens(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    path.write_bytes(b"\xef\xbb\xbf" + (STORE + MODEL).encode())
    assert list(load_config(path).models) == ["a"]


@pytest.mark.parametrize("text, size", [("15 GB", 15 * 10**9), ("1.5 GiB", 3 << 29), ("500 mib", 500 << 20), ("7", 7), (7, 7)])
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text, seconds", [("30min", 1800), ("26h", 93600), ("35 days", 35 * 86400), ("90s", 90), (5, 5)])
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_the_starter_config_opens_and_keeps_mvdream_where_the_seed_had_it(tmp_path: Path) -> None:
    path = write(tmp_path, STARTER)
    config = load_config(path)
    assert config.models["mvdream"].repo_id == "MVDream/MVDream"
    assert config.folder("mvdream") == Path("/mnt/datadrive_m2/dream-cad/models")


def test_init_refuses_to_overwrite(tmp_path: Path) -> None:
    init(tmp_path)
    (tmp_path / "steelyard.toml").write_text("mine")
    with pytest.raises(Refused):
        init(tmp_path)
    assert (tmp_path / "steelyard.toml").read_text() == "mine"


def test_init_writes_where_every_command_will_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert init(None).rows[0].path == str(tmp_path / "steelyard.toml")
    monkeypatch.setenv("STEELYARD_CONFIG", str(tmp_path / "of-the-environment.toml"))
    assert init(None).rows[0].path == str(tmp_path / "of-the-environment.toml")
    assert init(None, Path("given.toml")).rows[0].path == str(tmp_path / "given.toml")
    assert init(Path("named.toml"), Path("given.toml")).rows[0].path == "named.toml"
    for path in ("steelyard.toml/x", "n" * 300, "/proc/steelyard.toml"):
        with pytest.raises(Refused) as caught:
            init(Path(path))
        assert caught.value.hint


def test_every_error_has_a_next_step() -> None:
    kinds = [SteelyardError]
    while kinds:
        kinds += (kind := kinds.pop()).__subclasses__()
        assert kind.hint or kind is SteelyardError, kind


def test_an_unknown_model_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="a"):
        load_config(write(tmp_path, STORE + MODEL)).chosen(["b"])
