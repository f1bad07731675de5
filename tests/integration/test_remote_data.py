"""Data on real servers, XRootD and nginx on loopback: the same values as locally, few requests, clear failures."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import awkward as ak
import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import uproot

from mlaas4hep.data import remote, root
from mlaas4hep.data.formats import inspect_source, open_source
from mlaas4hep.data.sources import Source, format_of, resolve_files
from mlaas4hep.errors import MlaasError, UsageError
from tests.debian import do_without, lacking
from tests.integration.data_servers import PROGRAMS, DataServer, nginx_server, xrootd_server

EVENTS, COLLECTIONS, MEMBERS = 6_000, 6, 5


@pytest.fixture(scope="session")
def servers() -> Iterator[tuple[DataServer, DataServer]]:
    """XRootD and nginx; skips where they cannot be had, which is a failure under CI."""
    if reason := lacking(PROGRAMS):
        do_without(reason)
    with xrootd_server() as xrootd, nginx_server() as nginx:
        yield xrootd, nginx


@pytest.fixture
def xrootd(servers: tuple[DataServer, DataServer]) -> DataServer:
    return servers[0]


@pytest.fixture
def nginx(servers: tuple[DataServer, DataServer]) -> DataServer:
    servers[1].requests()
    return servers[1]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server gets little time."""
    monkeypatch.setattr(remote, "PATIENCE", replace(remote.PATIENCE, connect=0.2, answer=0.2, rate=1e9, pause=0))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root, "_BLOCK_BYTES", 200_000)


def columns(seed: int = 1) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    data: dict[str, Any] = {"met": generator.normal(size=EVENTS)}
    for collection in range(COLLECTIONS):
        counts = generator.poisson(2.0, EVENTS)
        for member in range(MEMBERS):
            data[f"c{collection}_m{member}"] = ak.unflatten(generator.random(int(counts.sum()), np.float32), counts)
    return data


def write_root(path: Path, data: dict[str, Any]) -> None:
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        types = {name: getattr(column, "dtype", None) or column.type for name, column in data.items()}
        tree = file.mktree("events", types)
        for start in range(0, EVENTS, 1_000):
            tree.extend({name: column[start : start + 1_000] for name, column in data.items()})


def write_rntuple(path: Path, data: dict[str, Any]) -> None:
    with uproot.recreate(path) as file:
        file.mkrntuple("events", data)


def write_flat(path: Path) -> None:
    """A small file of the format that its suffix says."""
    values = {"x": [1.5, 2.5, 3.5], "n": [1, 2, 2**40]}
    rows = [{"x": x, "n": n} for x, n in zip(*values.values(), strict=True)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table(values), path, row_group_size=2)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(pa.table(values), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        fields = [{"name": "x", "type": "double"}, {"name": "n", "type": "long"}]
        with path.open("wb") as stream:
            fastavro.writer(stream, {"type": "record", "name": "row", "fields": fields}, rows)


def read(path: str, names: list[str] | None = None) -> tuple[dict[str, Any], int]:
    """The values of all entries, and the number of blocks."""
    kind = format_of(path)
    with open_source(Source(path, "events" if kind == "root" else "", format=kind)) as reader:
        names = names or [branch.name for branch in reader.branches]
        blocks = list(reader.blocks(names, reader.entries))
    return {name: np.concatenate([block.columns[name].values for block in blocks]) for name in names}, len(blocks)


def refused(path: str) -> str:
    with pytest.raises(MlaasError) as error:
        read(path)
    return str(error.value)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("write", [write_root, write_rntuple])
@pytest.mark.parametrize("kind", ["root", "several", "single"])
def test_a_root_file_on_a_server_gives_what_it_gives_locally(
    xrootd: DataServer, nginx: DataServer, kind: str, write: Callable[..., None]
) -> None:
    local = nginx.files / "events.root"
    write(local, columns())
    (xrootd.files / "store" / "events.root").write_bytes(local.read_bytes())
    expected, _ = read(str(local))
    found, _ = read((xrootd if kind == "root" else nginx).url("events.root", kind))
    assert set(columns()) <= set(found)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.usefixtures("small_blocks")
def test_the_requests_are_as_many_as_the_blocks_and_not_as_the_branches(nginx: DataServer) -> None:
    write_root(nginx.files / "events.root", columns())
    with open_source(Source(nginx.url("events.root"), "events")):
        opening = len(nginx.requests())
    names = [f"c{collection}_m{member}" for collection in range(COLLECTIONS) for member in (0, 3)]
    _, blocks = read(nginx.url("events.root"), names)
    requests = nginx.requests()
    assert blocks >= 3
    assert len(requests) - opening <= blocks + 1, (opening, requests)
    assert all(line.startswith("206 ") for line in requests)


def test_the_pages_of_an_rntuple_travel_together(nginx: DataServer) -> None:
    write_rntuple(nginx.files / "pages.root", columns())
    with open_source(Source(nginx.url("pages.root"), "events")):
        opening = len(nginx.requests())
    read(nginx.url("pages.root"))
    assert len(nginx.requests()) - opening <= 2, "one cluster, and one that verifies the file at the end"


@pytest.mark.usefixtures("small_blocks")
def test_far_apart_ranges_travel_in_one_request(nginx: DataServer) -> None:
    data = columns()
    wide = ak.unflatten(np.random.default_rng(2).random(20 * EVENTS), np.full(EVENTS, 20))
    data = {"c0_m0": data.pop("c0_m0"), "wide": wide, **data}
    write_root(nginx.files / "events.root", data)
    names = ["c0_m0", "met", "c5_m4"]
    expected, _ = read(str(nginx.files / "events.root"), names)
    found, _ = read(nginx.url("events.root"), names)
    several = [line for line in nginx.requests() if "," in line.split('"')[1]]
    assert several
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.jsonl", "a.avro"])
@pytest.mark.parametrize("kind", ["root", "several"])
def test_other_formats_are_read_from_servers(xrootd: DataServer, nginx: DataServer, name: str, kind: str) -> None:
    server = xrootd if kind == "root" else nginx
    write_flat((server.files / "store" if kind == "root" else server.files) / name)
    found, _ = read(server.url(name, kind))
    assert found["x"].tolist() == [1.5, 2.5, 3.5]
    assert found["n"].tolist() == [1, 2, 2**40]
    assert inspect_source(server.url(name, kind)).trees[0].entries == 3


@pytest.mark.parametrize("kind", ["root", "several"])
def test_a_changed_file_has_another_state_and_its_change_while_reading_is_refused(
    xrootd: DataServer, nginx: DataServer, kind: str
) -> None:
    server = xrootd if kind == "root" else nginx
    path = (server.files / "store" if kind == "root" else server.files) / "changing.root"
    write_root(path, columns())
    os.utime(path, (1_000_000_000, 1_000_000_000))
    url = server.url("changing.root", kind)
    with open_source(Source(url, "events")) as reader:
        first = reader.facts
        blocks = reader.blocks(["met"], reader.entries)
        next(blocks)
        os.utime(path, (1_000_000_500, 1_000_000_500))
        with pytest.raises(MlaasError, match="changed on the server while it was read"):
            list(blocks)
    with open_source(Source(url, "events")) as reader:
        assert reader.facts.state != first.state
        assert reader.facts.identity == first.identity


@pytest.mark.parametrize("kind", ["root", "several"])
def test_a_missing_file_is_named(xrootd: DataServer, nginx: DataServer, kind: str) -> None:
    url = (xrootd if kind == "root" else nginx).url("none.root", kind)
    assert f"{url} does not exist on the server" in refused(url)


def test_what_a_web_server_refuses_is_said(nginx: DataServer, impatient: None) -> None:
    write_flat(nginx.files / "a.csv")
    (nginx.files / "empty.csv").touch()
    assert "sends no parts of files" in refused(nginx.url("a.csv", "whole"))
    assert "refuses access (403 Forbidden)" in refused(nginx.url("secret/a.csv"))
    assert "answers 503" in refused(nginx.url("busy/a.csv"))
    assert len([line for line in nginx.requests() if "/busy/" in line]) == remote.PATIENCE.tries
    assert "is empty (0 bytes)" in refused(nginx.url("empty.csv"))
    assert "certificate of https://127.0.0.1" in refused(nginx.url("a.csv", "tls"))


def test_redirections_are_followed(nginx: DataServer) -> None:
    write_flat(nginx.files / "a.csv")
    assert read(nginx.url("moved/a.csv"))[0]["x"].tolist() == [1.5, 2.5, 3.5]


def test_a_trusted_certificate_is_accepted(nginx: DataServer, monkeypatch: pytest.MonkeyPatch) -> None:
    write_flat(nginx.files / "a.csv")
    monkeypatch.setenv("SSL_CERT_FILE", str(nginx.folder / "cert.pem"))
    assert read(nginx.url("a.csv", "tls"))[0]["x"].tolist() == [1.5, 2.5, 3.5]


def test_a_truncated_root_file_on_a_server_is_refused(nginx: DataServer) -> None:
    write_root(nginx.files / "whole.root", columns())
    data = (nginx.files / "whole.root").read_bytes()
    (nginx.files / "cut.root").write_bytes(data[: len(data) // 2])
    assert "truncated" in refused(nginx.url("cut.root"))


def test_a_server_that_is_not_there_is_named(impatient: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.root"
        assert "cannot be reached" in refused(url)


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], str]]:
    """A server that gives each connection these bytes and then says nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections: list[socket.socket] = []

        def serve(answer: bytes) -> str:
            def accept() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    connections.append(connection)
                    connection.recv(4096)
                    connection.sendall(answer)

            thread.append(threading.Thread(target=accept))
            thread[0].start()
            return f"http://127.0.0.1:{listener.getsockname()[1]}/a.csv"

        thread: list[threading.Thread] = []
        yield serve
        listener.shutdown(socket.SHUT_RDWR)
        thread[0].join()
        for connection in connections:
            connection.close()


def test_a_silent_server_ends_in_one_sentence(impatient: None, answering: Callable[[bytes], str]) -> None:
    url = answering(b"")
    assert refused(url) == f"{url}: the server does not answer within 0.2 s. Try again later."


def test_a_server_that_stops_in_its_answer_ends_in_one_sentence(
    impatient: None, answering: Callable[[bytes], str]
) -> None:
    head = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-0/9\r\nContent-Length: 1\r\n\r\na"
    assert "does not answer within 0.2 s" in refused(answering(head))


def test_an_answer_that_is_no_http_ends_in_one_sentence(impatient: None, answering: Callable[[bytes], str]) -> None:
    assert "connection to the server broke" in refused(answering(b"220 smtp ready\r\n\r\n"))


def test_an_unreachable_xrootd_server_ends_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"root://127.0.0.1:{taken.getsockname()[1]}//store/a.root"
        program = (
            "from mlaas4hep.data.formats import open_source\nfrom mlaas4hep.data.sources import Source\n"
            "from mlaas4hep.errors import MlaasError\nimport sys\n"
            "try:\n  open_source(Source(sys.argv[1], 'events')).__enter__()\n"
            "except MlaasError as error:\n  print(error)\n"
        )
        # the client reads its patience once a process
        environment = {**os.environ, "XRD_CONNECTIONWINDOW": "1", "XRD_CONNECTIONRETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-c", program, url], env=environment, capture_output=True, text=True, check=False
        )
    assert f"{url} cannot be read (" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


def test_a_pattern_lists_a_folder_of_an_xrootd_server(xrootd: DataServer) -> None:
    for name in ("p1.root", "p2.root", "q.root"):
        write_root(xrootd.files / "store" / name, columns())
    sources = resolve_files(f"{xrootd.url('p*.root', 'root')}:events", "other")
    assert [(source.path, source.tree) for source in sources] == [
        (xrootd.url("p1.root", "root"), "events"),
        (xrootd.url("p2.root", "root"), "events"),
    ]
    with pytest.raises(UsageError, match="matches no file"):
        resolve_files(xrootd.url("z*.root", "root"), "events")


def test_the_redirector_finds_paths_of_the_store(xrootd: DataServer) -> None:
    write_root(xrootd.files / "store" / "events.root", columns())
    (found,) = resolve_files("/store/events.root", "events", f"root://127.0.0.1:{xrootd.ports['root']}/")
    assert math.isclose(read(found.path, ["met"])[0]["met"].sum(), columns()["met"].sum())
