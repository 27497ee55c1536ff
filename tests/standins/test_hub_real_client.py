"""What huggingface_hub itself makes of the stand-in."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from asking import FILE, README, REPO, WEIGHTS
from huggingface_hub import HfApi, hf_hub_download, scan_cache_dir, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from steelyard.standins.hub import LoopbackHub

SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{SHA256}\nsize {len(WEIGHTS)}\n".encode()


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)


def test_model_info_tells_the_commit_and_size_and_digest_of_every_file(hub: LoopbackHub, api: HfApi) -> None:
    info = api.model_info(REPO, files_metadata=True, securityStatus=True)
    files = {sibling.rfilename: sibling for sibling in info.siblings or []}
    assert info.sha == hub.repo(REPO).branches["main"]
    assert (info.private, info.gated, info.disabled) == (False, False, False)
    assert info.security_repo_status == {"scansDone": True, "filesWithIssues": []}
    assert files[FILE].size == len(WEIGHTS)
    assert files[FILE].lfs is not None
    assert (files[FILE].lfs.sha256, files[FILE].lfs.pointer_size) == (SHA256, len(POINTER))
    assert files[FILE].blob_id == git_blob(POINTER)
    assert files["README.md"].lfs is None
    assert files["README.md"].blob_id == git_blob(README)


def test_model_info_with_expand_tells_only_what_was_asked_for(api: HfApi) -> None:
    info = api.model_info(REPO, expand=["sha", "gated"])
    assert info.sha
    assert info.siblings is None


def test_a_flagged_file_shows_in_the_repo_and_at_the_file(hub: LoopbackHub, api: HfApi) -> None:
    hub.set_scan(REPO, FILE, "unsafe", imports=("os.system",))
    info = api.model_info(REPO, securityStatus=True)
    assert info.security_repo_status == {"scansDone": True, "filesWithIssues": [{"path": FILE, "level": "unsafe"}]}
    (file,) = api.get_paths_info(REPO, FILE, expand=True)
    assert file.security is not None
    assert (file.security.status, file.security.safe) == ("unsafe", False)
    assert file.security.pickle_import_scan["pickleImports"][0]["module"] == "os"


def test_a_queued_scan_leaves_the_repo_undone(hub: LoopbackHub, api: HfApi) -> None:
    hub.set_scan(REPO, FILE, "queued")
    assert api.model_info(REPO, securityStatus=True).security_repo_status == {"scansDone": False, "filesWithIssues": []}


def test_the_tree_lists_one_level_or_all_and_pages_are_followed(hub: LoopbackHub, api: HfApi) -> None:
    hub.routes.page_entries = 2
    hub.routes.page_expanded = 1
    assert [entry.path for entry in api.list_repo_tree(REPO)] == ["README.md", "configs", FILE]
    assert [entry.path for entry in api.list_repo_tree(REPO, "configs")] == ["configs/a.json"]
    hub.reset_counters()
    deep = list(api.list_repo_tree(REPO, recursive=True, expand=True))
    assert [entry.path for entry in deep] == ["README.md", "configs", "configs/a.json", FILE]
    assert all(entry.last_commit and entry.last_commit.title == "First weights" for entry in deep)
    assert len(hub.requests) == 4


def test_paths_info_names_the_last_commit_that_changed_each_file(hub: LoopbackHub, api: HfApi) -> None:
    first = hub.repo(REPO).branches["main"]
    second = hub.add_revision(REPO, {"README.md": b"# Changed\n"}, title="Better words", date=datetime(2026, 5, 4, tzinfo=UTC))
    found = {info.path: info for info in api.get_paths_info(REPO, [FILE, "README.md", "absent"], expand=True)}
    assert set(found) == {FILE, "README.md"}
    assert found[FILE].last_commit.oid == first
    assert (found["README.md"].last_commit.oid, found["README.md"].last_commit.date.month) == (second, 5)


def test_commits_and_refs_tell_the_history(hub: LoopbackHub, api: HfApi) -> None:
    hub.routes.page_expanded = 2
    second = hub.add_revision(REPO, {"README.md": None}, title="Without words", author="kim", tag="v1")
    third = hub.add_revision(REPO, {FILE: WEIGHTS[::-1]}, branch="fp16")
    commits = api.list_repo_commits(REPO, revision="fp16")
    assert [commit.commit_id for commit in commits][:2] == [third, second]
    assert (commits[1].title, commits[1].authors, len(commits)) == ("Without words", ["kim"], 3)
    refs = api.list_repo_refs(REPO)
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": second, "fp16": third}
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", second)]
    assert [entry.path for entry in api.list_repo_tree(REPO, revision="v1", recursive=True)] == ["configs", "configs/a.json", FILE]


def test_after_a_force_push_the_old_commit_is_gone(hub: LoopbackHub, api: HfApi) -> None:
    old = hub.repo(REPO).branches["main"]
    new = hub.force_push(REPO, {FILE: WEIGHTS[::-1]})
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)] == [new]
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision=old)


def test_the_same_files_in_the_same_order_give_the_same_commit_ids() -> None:
    made = []
    for _ in range(2):
        with LoopbackHub() as hub:
            hub.add_revision(REPO, {FILE: WEIGHTS})
            made.append(hub.add_revision(REPO, {"README.md": README}))
    assert made[0] == made[1]


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_commit_ids_are_those_that_git_gives(hub: LoopbackHub, tmp_path: Path) -> None:
    when = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
    files = {"b.txt": b"b\n", "b/c.txt": b"c\n", "a/d/e.txt": b"e\n"}
    commit = hub.add_revision("org/plain", files, title="Like git", date=when)
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    stamp = f"{int(when.timestamp())} +0000"
    who = {"NAME": "founder", "EMAIL": "founder@example.invalid", "DATE": stamp}
    env = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
    env |= {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "PATH": "/usr/bin:/bin:/usr/local/bin",
        "HOME": str(tmp_path),
    }

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=tmp_path, env=env, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "Like git")
    assert git("rev-parse", "HEAD") == commit


def test_files_download_into_the_cache_and_no_token_reaches_the_cdn(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_token("hf_secret")
    cached = Path(hf_hub_download(REPO, FILE, endpoint=hub.endpoint, cache_dir=tmp_path, token="hf_secret"))
    assert cached.read_bytes() == WEIGHTS
    assert cached.resolve().name == SHA256
    assert any(line.had_token for line in hub.requests if line.port == "hub")
    assert hub.cdn_saw_token == 0
    assert hub.bytes_sent("cdn") == len(WEIGHTS)


def test_a_snapshot_downloads_whole_and_the_cache_scans_clean(hub: LoopbackHub, tmp_path: Path) -> None:
    folder = Path(snapshot_download(REPO, endpoint=hub.endpoint, cache_dir=tmp_path, token=False))
    assert (folder / "README.md").read_bytes() == README
    assert (folder / "configs/a.json").read_bytes() == b"{}"
    assert folder.name == hub.repo(REPO).branches["main"]
    report = scan_cache_dir(tmp_path)
    assert not report.warnings
    (repo,) = report.repos
    assert (repo.repo_id, repo.nb_files) == (REPO, 3)


def test_file_metadata_is_that_of_the_linked_file(hub: LoopbackHub, api: HfApi) -> None:
    large = api.get_hf_file_metadata(url=f"{hub.endpoint}/{REPO}/resolve/main/{FILE}")
    small = api.get_hf_file_metadata(url=f"{hub.endpoint}/{REPO}/resolve/main/README.md")
    assert (large.etag, large.size, large.commit_hash) == (SHA256, len(WEIGHTS), hub.repo(REPO).branches["main"])
    assert large.location.startswith(hub.cdn_endpoint)
    assert large.xet_file_data is None
    assert (small.etag, small.size, small.location) == (git_blob(README), len(README), f"{hub.endpoint}/{REPO}/resolve/main/README.md")


def test_xet_is_offered_only_when_asked_for(hub: LoopbackHub, api: HfApi) -> None:
    hub.routes.offer_xet = True
    found = api.get_hf_file_metadata(url=f"{hub.endpoint}/{REPO}/resolve/main/{FILE}")
    assert found.xet_file_data is not None
    assert api.get_paths_info(REPO, FILE)[0].xet_hash == found.xet_file_data.file_hash


def test_what_is_not_there_is_named(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("nobody/nothing")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="v9")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(REPO, "absent.pt", endpoint=hub.endpoint, cache_dir=tmp_path, token=False)
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "absent"))
    hub.delete_repo(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(REPO)


def test_a_renamed_repo_is_found_under_its_old_name(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.rename_repo(REPO, "bytedance/MVDream")
    assert api.model_info(REPO).id == "bytedance/MVDream"
    assert Path(hf_hub_download(REPO, FILE, endpoint=hub.endpoint, cache_dir=tmp_path, token=False)).read_bytes() == WEIGHTS


def test_a_gated_repo_shows_its_metadata_and_keeps_its_files(hub: LoopbackHub, api: HfApi) -> None:
    hub.repo(REPO).gated = "manual"
    hub.add_token("hf_reader", "kim")
    hub.add_token("hf_stranger", "lee")
    hub.repo(REPO).readers.add("kim")
    url = f"{hub.endpoint}/{REPO}/resolve/main/{FILE}"
    assert api.model_info(REPO).gated == "manual"
    for token, status in ((False, 401), ("hf_stranger", 403)):
        with pytest.raises(GatedRepoError) as refused:
            api.get_hf_file_metadata(url=url, token=token)
        assert refused.value.response.status_code == status
    assert api.get_hf_file_metadata(url=url, token="hf_reader").etag == SHA256
    api.auth_check(REPO, token="hf_reader")


def test_a_private_repo_does_not_exist_for_strangers(hub: LoopbackHub, api: HfApi) -> None:
    hub.repo(REPO).private = True
    hub.repo(REPO).readers.add("kim")
    hub.add_token("hf_reader", "kim")
    hub.add_token("hf_stranger", "lee")
    for token in (False, "hf_stranger"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(REPO, token=token)
    assert api.model_info(REPO, token="hf_reader").private


def test_a_disabled_repo_says_so(hub: LoopbackHub, api: HfApi) -> None:
    hub.repo(REPO).disabled = True
    with pytest.raises(DisabledRepoError):
        api.model_info(REPO)


def test_tokens_are_known_expired_or_wrong(hub: LoopbackHub, api: HfApi) -> None:
    hub.add_token("hf_good", "kim")
    hub.add_token("hf_old", "kim", expired=True)
    assert api.whoami(token="hf_good")["name"] == "kim"
    for token in ("hf_old", "hf_never"):
        with pytest.raises(HfHubHTTPError) as refused:
            api.model_info(REPO, token=token)
        assert refused.value.response.status_code == 401


def test_while_the_hub_is_down_nothing_is_found_and_after_it_all_is(hub: LoopbackHub, api: HfApi) -> None:
    # Not hf_hub_download: it waits 23 s in all before it gives up on a refused connection.
    hub.down()
    with pytest.raises(httpx2.ConnectError):
        api.model_info(REPO)
    hub.up()
    assert api.model_info(REPO).id == REPO
