"""The hub for tests against the real `huggingface_hub`, and what that library does which our downloads rely on."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import (
    HfApi,
    constants,
    file_download,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.support.hub.server import Faults, Hub

ROOT = Path(__file__).parents[3]
REPO, NAME = "bees/demo", "demo-Q4_K_M.gguf"
FILE = f"{REPO}/{NAME}"
CONTENT = bytes(range(256)) * 4096 * 2
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Bar:
    """The least that the library asks of a progress bar."""

    seen: list[tuple[int, int]]
    made: list[dict[str, Any]]

    def __init__(self, **options: Any) -> None:
        self.made.append(options)
        self.done = options["initial"]

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        self.done += count
        self.seen.append((self.done, self.made[-1]["total"]))


@pytest.fixture(autouse=True)
def _plain_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64 * 1024)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=[False, True], ids=["one-origin", "separate-storage"])
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    with Hub(separate_storage=request.param) as hub:
        hub.add_repo(REPO, {NAME: CONTENT, "README.md": b"# demo\n"})
        yield hub


@pytest.fixture
def plain() -> Iterator[Hub]:
    with Hub() as hub:
        hub.add_repo(REPO, {NAME: CONTENT, "README.md": b"# demo\n"})
        yield hub


def download(hub: Hub, cache: Path, name: str = NAME, *, repo: str = REPO, **options: Any) -> Path:
    options.setdefault("token", False)
    return Path(hf_hub_download(repo, name, endpoint=hub.url, cache_dir=cache, **options))


def test_download_once(hub: Hub, tmp_path: Path) -> None:
    path = download(hub, tmp_path)
    assert path.read_bytes() == CONTENT
    assert path.resolve().name == SHA256
    assert download(hub, tmp_path) == path
    assert hub.bytes_sent(FILE) == len(CONTENT)
    assert download(hub, tmp_path, "README.md").read_text() == "# demo\n"


def test_model_info_has_sizes_and_hashes(plain: Hub) -> None:
    info = HfApi(endpoint=plain.url, token=False).model_info(REPO, files_metadata=True, timeout=5)
    files = {file.rfilename: file for file in info.siblings or []}
    assert set(files) == {NAME, "README.md"}
    lfs = files[NAME].lfs
    assert lfs is not None and (lfs.sha256, lfs.size, files[NAME].size) == (SHA256, len(CONTENT), len(CONTENT))
    assert files["README.md"].lfs is None
    assert info.sha == plain.repos[REPO].revisions["main"]


def test_tree_and_paths_info(plain: Hub) -> None:
    api = HfApi(endpoint=plain.url, token=False)
    assert {entry.path for entry in api.list_repo_tree(REPO, recursive=True)} == {NAME, "README.md"}
    (entry,) = api.get_paths_info(REPO, [NAME, "absent"])
    assert entry.path == NAME


def test_snapshot_by_pattern(plain: Hub, tmp_path: Path) -> None:
    folder = snapshot_download(REPO, endpoint=plain.url, cache_dir=tmp_path, allow_patterns="*.gguf", token=False)
    assert [path.name for path in Path(folder).iterdir()] == [NAME]


def test_revisions(plain: Hub, tmp_path: Path) -> None:
    commit = plain.add_repo(REPO, {NAME: b"older"}, revision="v1")
    assert download(plain, tmp_path, revision="v1").read_bytes() == b"older"
    assert download(plain, tmp_path, revision=commit).read_bytes() == b"older"
    assert download(plain, tmp_path).read_bytes() == CONTENT
    with pytest.raises(RevisionNotFoundError):
        download(plain, tmp_path, revision="v2")


def test_what_is_missing_says_which(plain: Hub, tmp_path: Path) -> None:
    with pytest.raises(EntryNotFoundError):
        download(plain, tmp_path, "absent.gguf")
    with pytest.raises(RepositoryNotFoundError) as missing:
        download(plain, tmp_path, repo="bees/absent")
    assert not isinstance(missing.value, GatedRepoError)
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=plain.url, token=False).model_info("bees/absent", timeout=5)


def test_gated(hub: Hub, tmp_path: Path) -> None:
    hub.add_repo("bees/gated", {NAME: CONTENT}, gated=True)
    hub.add_token("hf_member")
    hub.add_token("hf_stranger", access=False)
    with pytest.raises(GatedRepoError) as anonymous:
        download(hub, tmp_path, repo="bees/gated")
    with pytest.raises(GatedRepoError) as stranger:
        download(hub, tmp_path, repo="bees/gated", token="hf_stranger")
    with pytest.raises(HfHubHTTPError, match="401") as unknown:
        download(hub, tmp_path, repo="bees/gated", token="hf_wrong")
    assert [error.value.response.status_code for error in (anonymous, stranger)] == [401, 403]
    assert not isinstance(unknown.value, RepositoryNotFoundError)
    info = HfApi(endpoint=hub.url, token=False).model_info("bees/gated", files_metadata=True, timeout=5)
    assert info.gated == "manual"
    assert hub.bytes_sent(f"bees/gated/{NAME}") == 0
    assert download(hub, tmp_path, repo="bees/gated", token="hf_member").read_bytes() == CONTENT


def test_private_looks_absent(plain: Hub, tmp_path: Path) -> None:
    plain.add_repo("bees/private", {NAME: CONTENT}, private=True)
    plain.add_token("hf_member")
    plain.add_token("hf_stranger", access=False)
    for token in (False, "hf_stranger"):
        with pytest.raises(RepositoryNotFoundError):
            download(plain, tmp_path, repo="bees/private", token=token)
    assert download(plain, tmp_path, repo="bees/private", token="hf_member").read_bytes() == CONTENT


def test_cut_connection_is_resumed_within_a_call(hub: Hub, tmp_path: Path) -> None:
    hub.faults = Faults(cut_after=700_000, cuts=2)
    assert download(hub, tmp_path).read_bytes() == CONTENT
    starts = [seen.first_byte for seen in hub.bodies(FILE)]
    assert len(starts) == 3 and 0 == starts[0] < starts[1] < starts[2]
    assert starts[1] <= 700_000


def test_failed_call_keeps_no_byte(plain: Hub, tmp_path: Path) -> None:
    """Why a download that shall survive its process cannot leave the temporary file to the library."""
    plain.faults = Faults(bytes_per_second=2_000_000)

    class Stop(Bar):
        made, seen = [], []

        def update(self, count: int) -> None:
            super().update(count)
            if self.done > 500_000:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(plain, tmp_path, tqdm_class=Stop)
    assert list(tmp_path.rglob("*.incomplete")) == []
    plain.faults = Faults()
    download(plain, tmp_path)
    assert [seen.first_byte for seen in plain.bodies(FILE)] == [0, 0]


def resumable(hub: Hub, cache: Path) -> Path:
    """The way that resumes: our own partial file, the library's transfer, then the library's cache layout."""
    meta = get_hf_file_metadata(hf_hub_url(REPO, NAME, endpoint=hub.url), token=False, timeout=5)
    assert meta.etag and meta.size
    blob = cache / file_download.repo_folder_name(repo_id=REPO, repo_type="model") / "blobs" / meta.etag
    partial = blob.with_name(f"{blob.name}.part")
    blob.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("ab") as stream:
        file_download.http_get(meta.location, stream, resume_size=stream.tell(), expected_size=meta.size)
    assert hashlib.sha256(partial.read_bytes()).hexdigest() == meta.etag
    partial.replace(blob)
    return download(hub, cache)


def test_second_call_resumes_from_its_own_partial_file(hub: Hub, tmp_path: Path) -> None:
    hub.faults = Faults(stall_after=700_000)
    script = (
        "import sys; from pathlib import Path; from huggingface_hub import constants\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 65536\n"
        "from tests.integration.hive import test_hub as t\n"
        "class H: url = sys.argv[1]\n"
        "t.resumable(H, Path(sys.argv[2]))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, hub.url, str(tmp_path)],
        env={**os.environ, "HF_HUB_DISABLE_XET": "1"},
        cwd=ROOT,
    )
    deadline = time.monotonic() + 20
    while sum(part.stat().st_size for part in tmp_path.rglob("*.part")) < 500_000:
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    (partial,) = tmp_path.rglob("*.part")
    kept = partial.stat().st_size
    hub.faults = Faults()
    assert resumable(hub, tmp_path).read_bytes() == CONTENT
    assert hub.bodies(FILE)[-1].first_byte == kept
    assert hub.bodies(FILE)[-1].sent == len(CONTENT) - kept


def test_server_that_ignores_ranges_is_asked_for_all(plain: Hub, tmp_path: Path) -> None:
    plain.faults = Faults(cut_after=700_000, cuts=1, ignore_range=True)
    assert download(plain, tmp_path).read_bytes() == CONTENT
    assert plain.bytes_sent(FILE) == 700_000 + len(CONTENT)


def test_library_does_not_see_wrong_bytes(plain: Hub, tmp_path: Path) -> None:
    """Why we check the hash ourselves: the size is right, and the file's name claims the right hash."""
    plain.faults = Faults(corrupt=True)
    path = download(plain, tmp_path)
    assert path.resolve().name == SHA256
    assert hashlib.sha256(path.read_bytes()).hexdigest() != SHA256


def test_stall_ends_by_the_time_out(plain: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    plain.faults = Faults(stall_after=0)
    with pytest.raises(httpx2.TimeoutException):
        download(plain, tmp_path)
    assert list(tmp_path.rglob("*.incomplete")) == []


def test_unavailable_at_first(plain: Hub, tmp_path: Path) -> None:
    plain.faults = Faults(unavailable=2)
    assert download(plain, tmp_path).read_bytes() == CONTENT
    plain.faults = Faults(unavailable=1)
    with pytest.raises(HfHubHTTPError) as refused:
        HfApi(endpoint=plain.url, token=False).model_info(REPO, timeout=5)
    assert refused.value.response.status_code == 503


def test_silent_hub_ends_by_the_time_out(plain: Hub) -> None:
    plain.faults = Faults(silent=True)
    with pytest.raises(httpx2.TimeoutException):
        HfApi(endpoint=plain.url, token=False).model_info(REPO, timeout=0.3)


def test_hub_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub() as hub:
        hub.add_repo(REPO, {NAME: CONTENT})
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(LocalEntryNotFoundError):
        download(hub, tmp_path)


def test_progress_by_tqdm_class(plain: Hub, tmp_path: Path) -> None:
    class Mine(Bar):
        made, seen = [], []

    plain.faults = Faults(cut_after=700_000, cuts=1)
    download(plain, tmp_path, tqdm_class=Mine)
    assert len(Mine.made) == 1
    assert Mine.made[0]["total"] == len(CONTENT)
    done = [count for count, _ in Mine.seen]
    assert done == sorted(done) and done[-1] == len(CONTENT) and len(done) > 20


def test_rate_limit_holds(plain: Hub, tmp_path: Path) -> None:
    plain.add_repo("bees/small", {NAME: CONTENT[:300_000]})
    plain.faults = Faults(bytes_per_second=1_000_000)
    started = time.monotonic()
    download(plain, tmp_path, repo="bees/small")
    assert time.monotonic() - started > 0.25


def test_served_by_hand(tmp_path: Path) -> None:
    source = tmp_path / "models" / REPO / NAME
    source.parent.mkdir(parents=True)
    source.write_bytes(CONTENT)
    command = [sys.executable, "-m", "tests.support.hub.server", "--dir", str(tmp_path / "models")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            path = hf_hub_download(REPO, NAME, endpoint=url, cache_dir=tmp_path / "cache", token=False)
            assert Path(path).read_bytes() == CONTENT
        finally:
            process.terminate()
            assert process.wait(10) == 0
