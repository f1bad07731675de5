"""Which files a user's list stands for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from mlaas4hep.data.remote import load_xrootd
from mlaas4hep.data.sources import format_of, read_list, resolve_files
from mlaas4hep.errors import MlaasError, UsageError


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for name in ("a.root", "b.root", "data/c.root", "data/odd:name.root"):
        (tmp_path / name).write_bytes(b"root")
    return tmp_path


def names(sources) -> list[str]:
    return [Path(source.path).name for source in sources]


def test_a_list_has_comments_and_its_relative_paths_start_beside_it(files: Path) -> None:
    listed = files / "data" / "list.txt"
    listed.write_text("# all\nc.root  # the third\n\n../a.root\n")
    sources = resolve_files(str(listed), "Events")
    assert [(Path(s.path).resolve(), s.tree) for s in sources] == [
        (files / "data" / "c.root", "Events"),
        (files / "a.root", "Events"),
    ]


def test_relative_paths_are_then_looked_up_in_the_current_folder(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    (files / "data" / "list.txt").write_text("b.root\n")
    assert names(resolve_files("data/list.txt", "Events")) == ["b.root"]


def test_commas_patterns_and_trees(files: Path) -> None:
    sources = resolve_files(f"{files}/b.root:dir/tree,{files}/*.root,{files}/data/odd:name.root", "Events")
    assert [(s.item, s.number, Path(s.path).name, s.tree) for s in sources] == [
        (0, 0, "b.root", "dir/tree"),
        (1, 1, "a.root", "Events"),
        (1, 2, "b.root", "Events"),
        (2, 3, "odd:name.root", "Events"),
    ]


def test_a_tree_of_a_file_without_trees_is_refused(files: Path) -> None:
    (files / "x.csv").write_text("a\n1\n")
    with pytest.raises(UsageError, match=r"x.csv is read as csv, which has no trees. Take :Events away."):
        resolve_files(f"{files}/x.csv:Events", "Events")


def test_remote_files_and_the_redirector() -> None:
    sources = resolve_files("root://host:1094//store/x.root:dir/t,/store/y.root", "Events", "root://redirector/")
    assert [(s.path, s.tree) for s in sources] == [
        ("root://host:1094//store/x.root", "dir/t"),
        ("root://redirector//store/y.root", "Events"),
    ]
    assert all(source.remote for source in sources)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.root", "root"),
        ("a.csv", "csv"),
        ("a.CSV.GZ", "csv"),
        ("a.json", "json"),
        ("a.jsonl.bz2", "json"),
        ("a.ndjson", "json"),
        ("a.parquet", "parquet"),
        ("a.pq", "parquet"),
        ("a.avro", "avro"),
        ("events", "root"),
        ("https://host:8443/a.csv?token=a.parquet", "csv"),
    ],
)
def test_the_format_is_that_of_the_suffix_and_else_root(name: str, found: str) -> None:
    assert format_of(name) == found


def test_formats_without_trees_have_none(files: Path) -> None:
    (files / "x.csv").write_text("a\n1\n")
    (files / "odd:name.csv").write_text("a\n1\n")
    sources = resolve_files(f"{files}/x.csv,{files}/odd:name.csv,{files}/a.root,https://host:1/y.parquet", "Events")
    assert [(Path(s.path).name, s.tree, s.format) for s in sources] == [
        ("x.csv", "", "csv"),
        ("odd:name.csv", "", "csv"),
        ("a.root", "Events", "root"),
        ("y.parquet", "", "parquet"),
    ]
    assert str(sources[0]) == f"{files}/x.csv"


def test_a_single_data_file_is_no_list(files: Path) -> None:
    (files / "x.jsonl").write_text('{"a": 1}\n')
    assert names(resolve_files(str(files / "x.jsonl"), "Events")) == ["x.jsonl"]


def test_a_list_may_begin_with_a_file_of_a_server(tmp_path: Path) -> None:
    (tmp_path / "files.txt").write_text("root://host//store/x.root\nroot://host//store/y.root\n")
    assert len(resolve_files(str(tmp_path / "files.txt"), "Events")) == 2


def test_the_format_can_be_said_for_all_files(files: Path) -> None:
    (files / "list.txt").write_text("x.dat\n")
    (files / "x.dat").write_text("a\n1\n")
    assert [source.format for source in resolve_files(str(files / "list.txt"), "Events", dtype="csv")] == ["csv"]
    with pytest.raises(UsageError, match=r"There is no format cvs\. Did you mean csv\?"):
        resolve_files(str(files / "list.txt"), "Events", dtype="cvs")


def test_web_addresses_keep_ports_queries_and_trees() -> None:
    sources = resolve_files("http://host:8080/x.root?a=b:dir/t,https://host/y.root", "Events")
    assert [(s.path, s.tree) for s in sources] == [
        ("http://host:8080/x.root?a=b", "dir/t"),
        ("https://host/y.root", "Events"),
    ]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("missing.root", "missing.root does not exist"),
        ("none*.root", "none*.root matches no file"),
        ("data", "is a folder"),
        ("ftp://host/x.root", "not read over ftp"),
        ("https://host/*.root", "a web server does not list its files"),
        ("https://user:secret@host/x.root", "a user's name in it"),
        ("https://host/x.csv:Events", "csv, which has no trees"),
        ("/store/x.root", "Set redirector"),
        ("a.root,a.root", "listed twice"),
        (" , ", "is empty"),
    ],
)
def test_a_wrong_item_is_refused_with_the_remedy(
    files: Path, monkeypatch: pytest.MonkeyPatch, item: str, said: str
) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(UsageError) as refused:
        resolve_files(item, "Events")
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is no text file"):
        read_list(tmp_path / "list")


def test_the_xrootd_client_is_not_loaded_after_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "XRootD.client")
    monkeypatch.setitem(sys.modules, "tensorflow", ModuleType("tensorflow"))
    with pytest.raises(MlaasError, match="cannot be read after TensorFlow was loaded"):
        load_xrootd()
