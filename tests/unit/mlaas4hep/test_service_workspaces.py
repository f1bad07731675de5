"""Workspaces over HTTP, and archives that mean no good."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlaas4hep.errors import UsageError
from mlaas4hep.service.archive import Bounds, pack, unpack
from mlaas4hep.service.policy import Policy
from mlaas4hep.service.settings import Limits
from mlaas4hep.service.workspaces import AbsentError, Workspaces
from tests.unit.mlaas4hep.service_parts import ALICE, BOB, WORKFLOW, Running, running, tar_gz, upload

SPACES = "/api/v1/workspaces"


@pytest.fixture
def service(tmp_path):
    with running(tmp_path) as service:
        yield service


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


def archive(*members: tarfile.TarInfo, content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(content) if info.size else None)
    return buffer.getvalue()


BAD = {
    "absolute": archive(member("/etc/cron.d/x")),
    "parent": archive(member("a/../../x")),
    "symbolic link": archive(member("x", tarfile.SYMTYPE, link="/etc/passwd")),
    "file through a link": archive(member("d", tarfile.SYMTYPE, link="/tmp"), member("d/x")),
    "hard link": archive(member("x", tarfile.LNKTYPE, link="/etc/passwd")),
    "device": archive(member("x", tarfile.CHRTYPE)),
    "pipe": archive(member("x", tarfile.FIFOTYPE)),
    "sparse": archive(member("x", tarfile.GNUTYPE_SPARSE)),
    "newline": archive(member("a\nb")),
    "escape": archive(member("a\x1b[2Jb")),
    "backslash": archive(member("..\\x")),
    "long name": archive(member("x" * 300)),
    "deep": archive(member("/".join("x" * 40))),
    "file and folder": archive(member("x"), member("x/y")),
    "folder and file": archive(member("x/y"), member("x")),
    "no archive": b"hello",
    "empty": b"",
    "no gzip": gzip.decompress(archive(member("x"))),
    "cut": archive(member("x", size=100_000), content=os.urandom(100_000))[:50_000],
    "garbage inside": gzip.compress(os.urandom(4096)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_archive_is_refused_and_changes_nothing(tmp_path, name):
    spaces = Workspaces(tmp_path, Bounds(10**6, 100))
    spaces.replace("u1", "w", io.BytesIO(tar_gz({"a.txt": "old"})), lambda _: 10**6)
    with pytest.raises(UsageError):
        spaces.replace("u1", "w", io.BytesIO(BAD[name]), lambda _: 10**6)
    assert [file.path for file in spaces.files("u1", "w")] == ["a.txt"]
    assert sorted(path.name for path in (tmp_path / "u1").iterdir()) == [".lock", "w"]


def test_bombs_are_stopped_early(tmp_path):
    most = Bounds(10**6, 100)
    for number, bomb in enumerate(
        [
            archive(member("zeros", size=2 * 10**6), content=bytes(2 * 10**6)),
            archive(*(member(f"f{number}") for number in range(101))),
            # a header that claims a gigabyte of extended attributes
            gzip.compress(member("x", tarfile.XHDTYPE, size=2**30).tobuf() + bytes(2**25), 1),
            gzip.compress(bytes(2**26), 1),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(UsageError):
            unpack(io.BytesIO(bomb), folder, most)
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= most.unpacked


def test_a_single_folder_is_left_out_of_the_paths(tmp_path):
    unpack(io.BytesIO(tar_gz({"f/a": "1", "b": "2"}, "f/")), tmp_path, Bounds(100, 10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "f"]
    assert (tmp_path / "f" / "a").read_text() == "1"


def test_what_was_packed_is_unpacked(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    target.mkdir()
    content = {"a": b"", "b": os.urandom(3_000_000), "sub/ümlaut" + "x" * 150: b"1"}
    for name, data in content.items():
        (source / name).write_bytes(data)
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "pipe")
    unpack(io.BytesIO(b"".join(pack(source, "source"))), target, Bounds(10**7, 10))
    assert {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()} == content


def test_workspaces_are_made_listed_changed_and_deleted(service: Running):
    client = service.client()
    upload(client)
    assert client.post(SPACES, json={"name": "empty"}).status_code == 201
    assert client.post(SPACES, json={"name": "empty"}).status_code == 409
    listed = client.get(SPACES).json()["workspaces"]
    assert [(space["name"], space["files"]) for space in listed] == [("empty", 0), ("higgs", 4)]
    assert client.put(f"{SPACES}/empty/files/sub/data.bin", content=b"123").json() == {
        "path": "sub/data.bin",
        "bytes": 3,
    }
    assert client.get(f"{SPACES}/empty/files").json() == {"files": [{"path": "sub/data.bin", "bytes": 3}]}
    assert client.get(f"{SPACES}/empty/files/sub/data.bin").content == b"123"
    assert client.put(f"{SPACES}/empty/files/sub/data.bin/x", content=b"").status_code == 422
    assert client.put(f"{SPACES}/empty/files/..%2f..%2fx", content=b"").status_code == 422
    assert client.delete(f"{SPACES}/empty/files/sub/data.bin").status_code == 204
    assert client.get(f"{SPACES}/empty/files/sub/data.bin").status_code == 404
    with tarfile.open(fileobj=io.BytesIO(client.get(f"{SPACES}/higgs/archive").content)) as tar:
        assert sorted(tar.getnames()) == sorted(f"higgs/{name}" for name in WORKFLOW)
    assert client.delete(f"{SPACES}/higgs").status_code == 204
    assert client.get(f"{SPACES}/higgs").status_code == 404


@pytest.mark.parametrize("name", ["..", ".lock", "a b", "$(id)", "x" * 62, "a%2f..%2fb", "ü"])
def test_names_are_bounded(service: Running, name):
    client = service.client()
    assert client.put(f"{SPACES}/{name}", content=tar_gz(WORKFLOW)).status_code in (404, 405, 422)
    assert client.post(SPACES, json={"name": name}).status_code == 422


def test_another_user_s_workspace_does_not_exist(service: Running):
    upload(service.client(ALICE))
    other = service.client(BOB)
    for method, path in [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/files"),
        ("GET", "/archive"),
        ("GET", "/files/model.py"),
    ]:
        foreign, absent = (other.request(method, f"{SPACES}/{name}{path}") for name in ("higgs", "nothing"))
        assert foreign.status_code == absent.status_code == 404
        assert foreign.text == absent.text
    assert other.put(f"{SPACES}/higgs/files/model.py", content=b"evil").status_code == 404
    assert other.post("/api/v1/jobs", json={"workspace": "higgs"}).status_code == 404
    upload(other, files={"files.txt": "mine"})
    assert service.client(ALICE).get(f"{SPACES}/higgs/files/files.txt").text == WORKFLOW["files.txt"]


def test_concurrent_uploads_of_one_name_leave_one_of_them_whole(tmp_path):
    spaces = Workspaces(tmp_path, Bounds(10**7, 1000))
    archives = [tar_gz({f"f{file}": str(number) for file in range(50)}) for number in range(12)]
    torn: list[set[str]] = []
    over = threading.Event()

    def watch() -> None:
        count = 0
        while not over.is_set():
            target = tmp_path / f"copy{(count := count + 1)}"
            try:
                spaces.copy("u1", "w", target)
            except AbsentError:
                continue
            if len(values := {path.read_text() for path in target.iterdir()}) != 1 or len(list(target.iterdir())) != 50:
                torn.append(values)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda data: spaces.replace("u1", "w", io.BytesIO(data), lambda _: 10**7), archives))
    over.set()
    watcher.join()
    assert torn == []
    assert len({path.read_text() for path in spaces.folder("u1", "w").iterdir()}) == 1


def test_a_kill_in_the_middle_of_a_swap_loses_nothing(tmp_path):
    spaces = Workspaces(tmp_path, Bounds(10**6, 10))
    spaces.replace("u1", "w", io.BytesIO(tar_gz({"a": "old"})), lambda _: 10**6)
    (tmp_path / "u1" / "w").rename(tmp_path / "u1" / ".old-w")
    (tmp_path / "u1" / ".incoming-x").mkdir()
    spaces.sweep(before=2**40)
    assert (spaces.folder("u1", "w") / "a").read_text() == "old"
    assert sorted(path.name for path in (tmp_path / "u1").iterdir()) == [".lock", "w"]


def test_quota_and_sizes_are_held(tmp_path):
    policy = Policy.model_validate({"everyone": {"quota": {"disk": "10 KiB"}}})
    limits = Limits(upload=20_000, body=5_000)
    with running(tmp_path, policy=policy, limits=limits) as service:
        client = service.client()
        upload(client, "one", {"a": os.urandom(6_000)})
        assert client.put(f"{SPACES}/two", content=tar_gz({"a": os.urandom(6_000)})).status_code == 403
        assert client.put(f"{SPACES}/one/files/b", content=os.urandom(6_000)).status_code == 403
        upload(client, "one", {"a": os.urandom(9_000)})
        assert client.get(SPACES).json()["left"] == 10 * 1024 - 9_000
        assert client.put(f"{SPACES}/two", content=os.urandom(20_001)).status_code == 413
        # without a length told beforehand
        assert client.put(f"{SPACES}/two", content=iter([os.urandom(15_000)] * 2)).status_code == 413
        assert client.post("/api/v1/jobs", content=b" " * 5_001).status_code == 413
        assert [space["name"] for space in client.get(SPACES).json()["workspaces"]] == ["one"]
        # published models count as well
        models = service.service.repository.folder / ALICE.key / "model" / "1"
        models.mkdir(parents=True)
        (models / "model.onnx").write_bytes(b" " * 1_000)
        assert client.get(SPACES).json()["left"] == 10 * 1024 - 10_000


def test_nobody_uploads_without_a_token(service: Running):
    client = service.client(None)
    for path in (f"{SPACES}/w", f"{SPACES}/w/files/x"):
        assert client.put(path, content=tar_gz(WORKFLOW)).status_code == 401
    assert list((service.settings.data / "workspaces").iterdir()) == []


def test_damaged_compression_is_told(tmp_path):
    damaged = bytearray(archive(member("x", size=100_000), content=os.urandom(100_000)))
    damaged[5_000:5_100] = bytes(100)
    with pytest.raises(UsageError, match="damaged"):
        unpack(io.BytesIO(bytes(damaged)), tmp_path, Bounds(10**6, 10))
