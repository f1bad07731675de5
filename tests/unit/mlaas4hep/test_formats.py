"""What each file format gives: the same blocks from the same data, and one sentence for whatever is wrong."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import re
from collections.abc import Callable, Iterator
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

from mlaas4hep.data import files, jsonlines, separated
from mlaas4hep.data.blocks import FlatValues, JaggedValues
from mlaas4hep.data.formats import inspect_source, open_source
from mlaas4hep.data.schema import Kind
from mlaas4hep.data.sources import Source, format_of
from mlaas4hep.errors import MlaasError, UsageError

EVENTS = 2_500


def source(path: Path, tree: str = "") -> Source:
    return Source(str(path), tree, format=format_of(str(path)))


def read(path: Path, tree: str = "", stop: int | None = None, names: list[str] | None = None) -> dict[str, Any]:
    """All values of a file: an array a flat branch, (offsets, values) a jagged one; blocks must follow each other."""
    with open_source(source(path, tree)) as reader:
        names = names or [branch.name for branch in reader.branches]
        wanted = reader.entries if stop is None else stop
        blocks = list(reader.blocks(names, wanted))
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks)][: len(blocks)]
    assert (blocks[-1].stop if blocks else 0) == wanted
    return {name: joined([block.columns[name] for block in blocks]) for name in names}


def joined(columns: list[FlatValues | JaggedValues]) -> Any:
    values = np.concatenate([column.values for column in columns])
    if isinstance(columns[0], FlatValues):
        return values
    counts = np.concatenate([np.diff(column.offsets) for column in columns])
    assert all(column.offsets[0] == 0 and column.offsets[-1] == column.values.size for column in columns)
    return counts, values


def kinds(path: Path) -> dict[str, tuple[str, str]]:
    with open_source(source(path)) as reader:
        return {branch.name: (branch.kind.value, branch.dtype) for branch in reader.branches}


def refused(path: Path) -> str:
    """What is said of a file that cannot be read to its end."""
    with pytest.raises(MlaasError) as error:
        read(path)
    assert str(path) in str(error.value)
    return str(error.value)


def events(flat_only: bool = False) -> dict[str, Any]:
    generator = np.random.default_rng(7)
    counts = generator.poisson(1.5, EVENTS)
    flat = {
        "event": np.arange(EVENTS, dtype=np.int64) + 2**40,
        "met": generator.normal(size=EVENTS).astype(np.float32),
        "weight": np.where(generator.random(EVENTS) < 0.1, np.nan, generator.random(EVENTS)),
        "fired": generator.random(EVENTS) < 0.5,
    }
    if flat_only:
        return flat
    return {
        **flat,
        "pt": ak.unflatten(generator.exponential(size=int(counts.sum())).astype(np.float32), counts),
        "charge": ak.unflatten(generator.integers(-1, 2, int(counts.sum())), counts),
    }


def records(columns: dict[str, Any]) -> list[dict[str, Any]]:
    lists = {name: ak.to_list(column) for name, column in columns.items()}
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def write_ttree(path: Path, columns: dict[str, Any]) -> None:
    with uproot.recreate(path) as file:
        types = {name: getattr(values, "dtype", None) or values.type for name, values in columns.items()}
        file.mktree("Events", types).extend(columns)


def write_rntuple(path: Path, columns: dict[str, Any]) -> None:
    with uproot.recreate(path) as file:
        file.mkrntuple("Events", columns)


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    arrays = {name: ak.to_arrow(ak.Array(column), extensionarray=False) for name, column in columns.items()}
    pq.write_table(pa.table(arrays), path, row_group_size=700)


def write_csv(path: Path, columns: dict[str, Any]) -> None:
    pyarrow.csv.write_csv(
        pa.table({name: pa.array(column, from_pandas=True) for name, column in columns.items()}), path
    )


def write_json(path: Path, columns: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records(columns)))


def write_array(path: Path, columns: dict[str, Any]) -> None:
    path.write_text(json.dumps(records(columns), indent=1))


def write_gzip(path: Path, columns: dict[str, Any]) -> None:
    path.write_bytes(gzip.compress("\n".join(json.dumps(record) for record in records(columns)).encode()))


def write_bzip2(path: Path, columns: dict[str, Any]) -> None:
    plain = path.with_name("plain.csv")
    write_csv(plain, columns)
    path.write_bytes(bz2.compress(plain.read_bytes()))


def write_avro(path: Path, columns: dict[str, Any], codec: str = "deflate") -> None:
    types = {"event": "long", "met": "float", "weight": ["null", "double"], "fired": "boolean"}
    lists = {"pt": {"type": "array", "items": "float"}, "charge": {"type": "array", "items": "long"}}
    fields = [{"name": name, "type": (types | lists)[name]} for name in columns]
    with path.open("wb") as stream:
        fastavro.writer(stream, {"type": "record", "name": "event", "fields": fields}, records(columns), codec=codec)


@pytest.mark.parametrize(
    ("name", "write", "tree"),
    [
        ("rntuple.root", write_rntuple, "Events"),
        ("a.parquet", write_parquet, ""),
        ("a.jsonl", write_json, ""),
        ("a.json", write_array, ""),
        ("a.ndjson.gz", write_gzip, ""),
        ("a.avro", write_avro, ""),
        ("a.csv", write_csv, ""),
        ("a.csv.bz2", write_bzip2, ""),
    ],
)
def test_every_format_gives_the_same_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[..., None], tree: str
) -> None:
    monkeypatch.setattr(separated, "_CELL_BYTES", 0)
    for module in (files, jsonlines, separated):
        monkeypatch.setattr(module, "BLOCK_BYTES", 20_000)
    columns = events(flat_only=".csv" in name)
    write_ttree(tmp_path / "expected.root", columns)
    write(tmp_path / name, columns)
    expected, found = read(tmp_path / "expected.root", "Events", names=list(columns)), read(tmp_path / name, tree)
    assert set(found) == set(columns)
    for branch in columns:
        np.testing.assert_equal(as_float32(found[branch]), as_float32(expected[branch]), err_msg=branch)
    assert found["event"].dtype.kind == "i", "integers stay integers, so that large ones can be refused"
    np.testing.assert_array_equal(found["event"], columns["event"])


def as_float32(column: Any) -> Any:
    return (column[0], column[1].astype(np.float32)) if isinstance(column, tuple) else column.astype(np.float32)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.parquet", write_parquet), ("a.jsonl", write_json), ("a.avro", write_avro), ("a.csv", write_csv)],
)
def test_reading_stops_where_it_is_told(tmp_path: Path, name: str, write: Callable[..., None]) -> None:
    write(tmp_path / name, events(flat_only=True))
    assert read(tmp_path / name, stop=901, names=["event"])["event"].tolist() == list(range(2**40, 2**40 + 901))


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.parquet", write_parquet), ("a.jsonl", write_json), ("a.avro", write_avro), ("a.csv", write_csv)],
)
def test_the_identity_is_that_of_the_content_and_the_state_that_of_the_file(
    tmp_path: Path, name: str, write: Callable[..., None]
) -> None:
    def facts(path: Path) -> Any:
        with open_source(source(path)) as reader:
            return reader.facts

    write(tmp_path / name, events(flat_only=True))
    first = facts(tmp_path / name)
    copy = tmp_path / "elsewhere" / name
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / name).read_bytes())
    assert facts(copy).identity == first.identity
    changed = events(flat_only=True)
    changed["met"][5] = 77
    write(tmp_path / name, changed)
    second = facts(tmp_path / name)
    assert second.identity != first.identity
    assert second.state != first.state


def test_parquet_columns_by_kind(tmp_path: Path) -> None:
    table = pa.table(
        {
            "number": pa.array([1, 2, 3], pa.uint16()),
            "gap": pa.array([1.5, None, 2.5], pa.float32()),
            "whole_gap": pa.array([1, None, 3], pa.int32()),
            "flag": pa.array([True, False, None]),
            "list": pa.array([[1.0], None, [2.0, None]], pa.list_(pa.float32())),
            "large": pa.array([[1], [], [2, 3]], pa.large_list(pa.int64())),
            "pair": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2)),
            "struct": pa.array([{"x": 1, "y": 2.5, "z": "t"}, None, {"x": 3, "y": 4.5, "z": ""}]),
            "deep": pa.array([[[1]], [], [[2], [3, 4]]]),
            "text": pa.array(["a", None, "c"]),
            "category": pa.array(["a", "b", "a"]).dictionary_encode(),
            "time": pa.array([1, 2, 3], pa.timestamp("s")),
            "objects": pa.array([[{"a": 1}], [], []]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert kinds(tmp_path / "a.parquet") == {
        "number": ("flat", "uint16"),
        "gap": ("flat", "float32"),
        "whole_gap": ("flat", "int32"),
        "flag": ("bool", "bool"),
        "list": ("jagged", "float32"),
        "large": ("jagged", "int64"),
        "pair": ("fixed array", "int32"),
        "struct": ("struct", ""),
        "deep": ("nested", ""),
        "text": ("string", ""),
        "category": ("string", ""),
        "time": ("object", ""),
        "objects": ("object", ""),
    }
    values = read(tmp_path / "a.parquet", names=table.column_names[:8])
    np.testing.assert_equal(values["gap"], np.array([1.5, np.nan, 2.5], np.float32))
    np.testing.assert_equal(values["whole_gap"], [1, np.nan, 3])
    np.testing.assert_equal(values["flag"], [1, 0, np.nan])
    np.testing.assert_equal(values["list"], ([1, 0, 2], np.array([1, 2, np.nan], np.float32)))
    np.testing.assert_equal(values["large"], ([1, 0, 2], [1, 2, 3]))
    np.testing.assert_equal(values["pair"], [[1, 2], [np.nan, np.nan], [3, 4]])
    np.testing.assert_equal(values["struct"]["x"], [1, np.nan, 3])
    np.testing.assert_equal(values["struct"]["y"], [2.5, np.nan, 4.5])
    assert values["large"][1].dtype == np.int64


def test_large_integers_with_gaps_are_refused_instead_of_rounded(tmp_path: Path) -> None:
    pq.write_table(pa.table({"event": pa.array([2**40, None])}), tmp_path / "a.parquet")
    assert re.search("column event .* integers beyond 16777216 and lacks some", refused(tmp_path / "a.parquet"))


def test_a_damaged_parquet_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"good": np.arange(1000.0), "bad": np.arange(1000.0)})
    pq.write_table(table, path, use_dictionary=False, compression="gzip", write_page_checksum=True)
    place = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[place + 200 : place + 300] = bytes(100)
    path.write_bytes(data)
    assert "The column bad of" in refused(path)


@pytest.mark.parametrize(("name", "write"), [("a.parquet", write_parquet), ("a.avro", write_avro)])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, write: Callable[..., None], share: float) -> None:
    path = tmp_path / name
    write(path, events())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_a_truncated_compressed_text_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = b"a,b\n" + b"1,2\n" * 5000 if "csv" in name else b'{"a": 1}\n' * 5000
    path.write_bytes(gzip.compress(text)[:-30])
    assert "end-of-stream marker" in refused(path)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a.avro", "a.csv.gz", "a.json.bz2"])
def test_damaged_files_raise_our_own_errors_only(tmp_path: Path, name: str) -> None:
    writers = {"csv": write_csv, "json": write_json, "jsonl": write_json, "parquet": write_parquet, "avro": write_avro}
    plain = tmp_path / name.removesuffix(".gz").removesuffix(".bz2")
    columns = {key: column[:200] for key, column in events(flat_only=plain.suffix == ".csv").items()}
    writers[plain.suffix[1:]](plain, columns)
    data = plain.read_bytes()
    data = gzip.compress(data) if name.endswith("gz") else bz2.compress(data) if name.endswith("bz2") else data
    generator = np.random.default_rng(3)
    path = tmp_path / name
    for _ in range(40):
        broken = bytearray(data)
        if generator.random() < 0.5:
            place = int(generator.integers(len(broken)))
            broken[place : place + 8] = generator.bytes(8)
        else:
            del broken[int(generator.integers(len(broken))) :]
        path.write_bytes(broken)
        try:
            with open_source(source(path)) as reader:
                readable = [b.name for b in reader.branches if b.kind not in (Kind.OBJECT, Kind.NESTED)]
                for _block in reader.blocks(readable, reader.entries):
                    pass
        except MlaasError:
            continue


def test_a_damaged_parquet_footer_does_not_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, {name: column[:50] for name, column in events().items()})
    data = path.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    generator = np.random.default_rng(4)
    for place in generator.integers(len(data) - footer, len(data) - 8, 60).tolist():
        broken = bytearray(data)
        broken[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(broken)
        with contextlib.suppress(MlaasError):
            read(path, names=["met", "pt"])


def test_csv_types_are_those_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separated, "BLOCK_BYTES", 64)
    monkeypatch.setattr(separated, "_CELL_BYTES", 8)
    rows = ["1,1,-1,true,1,,x,7"] * 10 + ["2,2.5,18446744073709551615,False,,,1,36893488147419103232"]
    (tmp_path / "a.csv").write_text("\ufeffint,mixed,beyond,flag,gap,empty,text,huge\n" + "\n".join(rows))
    assert kinds(tmp_path / "a.csv") == {
        "int": ("flat", "int64"),
        "mixed": ("flat", "float64"),
        "beyond": ("string", ""),
        "flag": ("bool", "bool"),
        "gap": ("flat", "int64"),
        "empty": ("flat", "float64"),
        "text": ("string", ""),
        "huge": ("string", ""),
    }
    values = read(tmp_path / "a.csv", names=["mixed", "gap", "empty", "flag"])
    assert values["mixed"].tolist() == [1.0] * 10 + [2.5]
    np.testing.assert_equal(values["gap"], [1.0] * 10 + [np.nan])
    assert np.isnan(values["empty"]).all()
    assert values["flag"].tolist() == [True] * 10 + [False]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_is_separated_as_its_header_is(tmp_path: Path, separator: str) -> None:
    (tmp_path / "a.csv").write_text(f"a{separator}b\r\n1{separator}2\r\n")
    assert read(tmp_path / "a.csv") == {"a": [1], "b": [2]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n3\n", "row 2 of .* has 1 cells instead of 2"),
        ("a,a\n1,2\n", "more than one column a"),
        ("a,\n1,2\n", "column 2 has no name"),
        ("1.5,2\n1,2\n", "numbers in its first line"),
        ("\n1,2\n", "no first line"),
        ("a\n\udcff\n", "row 1 of .* is wrong in the column a"),
        ("\udcff\udcfe\n", "is no text"),
    ],
)
def test_a_wrong_csv_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode(errors="surrogateescape"))
    assert re.search(said, refused(tmp_path / "a.csv"))


def test_json_types_are_those_of_all_records_and_what_is_missing_is_nan_or_an_empty_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonlines, "BLOCK_BYTES", 64)
    lines = [
        '{"a": 1, "list": [1, 2], "none": null, "text": "2026-01-01", "flag": true, "s": {"x": 1}, "event": 3}',
        "",
        '{"a": 2.5, "list": [0.5], "text": "x", "flag": null, "s": {"y": 2}, "event": 9007199254740993}',
        '{"list": null, "big": 18446744073709551615, "deep": [[1]], "event": 4}',
        '{"a": NaN, "list": [null], "event": 5}',
    ]
    (tmp_path / "a.json").write_text("\n".join(lines))
    assert kinds(tmp_path / "a.json") == {
        "a": ("flat", "float64"),
        "list": ("jagged", "float64"),
        "none": ("flat", "float64"),
        "text": ("string", ""),
        "flag": ("bool", "bool"),
        "s": ("struct", ""),
        "event": ("flat", "int64"),
        "big": ("object", ""),
        "deep": ("nested", ""),
    }
    values = read(tmp_path / "a.json", names=["a", "list", "none", "text", "flag", "s", "event"])
    np.testing.assert_equal(values["a"], [1, 2.5, np.nan, np.nan])
    np.testing.assert_equal(values["list"], ([2, 1, 0, 1], [1, 2, 0.5, np.nan]))
    np.testing.assert_equal(values["flag"], [1, np.nan, np.nan, np.nan])
    np.testing.assert_equal(values["s"]["y"], [np.nan, 2, np.nan, np.nan])
    assert values["text"].tolist() == ["2026-01-01", "x", "", ""]
    assert values["event"].tolist() == [3, 9007199254740993, 4, 5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1}\n\n{"a": [1]}\n', r"line 3 of .* has \[1\] for a"),
        ('{"a": 1}\n{"a": "x"}\n', 'line 2 of .* has "x" for a'),
        ('{"a": true}\n{"a": 1}\n', "line 2 of .* has 1 for a"),
        ('{"a": [1, "x"]}\n', r'line 1 of .* has \[1, "x"\] for a'),
        ('{"a": 1}\n{"a": \n', "line 2 of .* is not valid JSON"),
        ('{"a": 1}\n5\n', "line 2 of .* has 5 instead of an object"),
        ('{"a": 1, "a": 2}\n', "specified twice"),
        ('[{"a": 1},\n {"a": "x"}]', 'line 2 of .* has "x" for a'),
        ('[{"a": 1},\n\n {"a"', "line 3 of .* is not valid JSON"),
        ('[{"a": 1}\n', "line 2 of .* is not valid JSON"),
        ("[1]", "line 1 of .* has 1 instead of an object"),
        ('[{"a": 1}] 5', "goes on after the end of its array"),
        ('{"a\udcff": 1}\n', "line 1 of .* is not valid JSON"),
        ("a,b\n", "not JSON"),
        ("  \n", "nothing but blanks"),
        ('{"a": ' + "[" * 100_000, "line 1 of .* is not valid JSON"),
    ],
)
def test_a_wrong_json_file_is_refused_with_line_and_key(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogateescape"))
    assert re.search(said, refused(tmp_path / "a.json"))


def test_a_contradiction_far_into_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonlines, "BLOCK_BYTES", 50)
    (tmp_path / "a.json").write_text('{"a": 1}\n' * 99 + '{"a": {"b": 2}}\n')
    assert re.search(r'line 100 of .* has {"b": 2} for a', refused(tmp_path / "a.json"))


def test_avro_fields_by_kind(tmp_path: Path) -> None:
    fields = {
        "number": "int",
        "gap": ["null", "double"],
        "list": {"type": "array", "items": ["null", "float"]},
        "maybe": ["null", {"type": "array", "items": "long"}],
        "struct": {"type": "record", "name": "point", "fields": [{"name": "x", "type": "int"}]},
        "again": "point",
        "text": "string",
        "choice": ["int", "string"],
        "map": {"type": "map", "values": "int"},
        "kind": {"type": "enum", "name": "colour", "symbols": ["red"]},
        "time": {"type": "long", "logicalType": "timestamp-millis"},
        "deep": {"type": "array", "items": {"type": "array", "items": "int"}},
    }
    schema = {"type": "record", "name": "event", "fields": [{"name": n, "type": t} for n, t in fields.items()]}
    row = {"number": 1, "gap": None, "list": [None, 2.5], "maybe": None, "struct": {"x": 1}, "again": {"x": 2}}
    row |= {"text": "t", "choice": 1, "map": {}, "kind": "red", "time": 0, "deep": [[1]]}
    with (tmp_path / "a.avro").open("wb") as stream:
        fastavro.writer(stream, schema, [row, row])
    found = kinds(tmp_path / "a.avro")
    expected = {"number": "flat", "gap": "flat", "list": "jagged", "maybe": "jagged", "struct": "struct"}
    expected |= {"again": "object", "text": "string", "choice": "object", "map": "object", "kind": "string"}
    assert {name: kind for name, (kind, _) in found.items()} == {**expected, "time": "object", "deep": "nested"}
    values = read(tmp_path / "a.avro", names=["number", "gap", "list", "maybe", "struct"])
    np.testing.assert_equal(values["list"], ([2, 2], np.array([np.nan, 2.5, np.nan, 2.5], np.float32)))
    assert values["maybe"][0].tolist() == [0, 0]
    assert np.isnan(values["gap"]).all()
    assert values["struct"]["x"].tolist() == [1, 1]


@pytest.mark.parametrize("name", ["a.parquet", "a.avro"])
def test_a_file_of_another_format_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("some text that is long enough")
    assert "it begins with b'some'" in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.avro.bz2"])
def test_formats_that_compress_inside_are_not_read_compressed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert "Decompress it" in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a.avro"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    assert "cannot be opened: No such file" in refused(tmp_path / name)


def test_memory_is_that_of_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonlines, "BLOCK_BYTES", 10_000)
    write_json(tmp_path / "a.jsonl", events())
    with open_source(source(tmp_path / "a.jsonl")) as reader:
        sizes = [block.stop - block.start for block in reader.blocks(["met"], reader.entries)]
    assert sum(sizes) == EVENTS
    assert max(sizes) < 200


def test_inspect_shows_files_without_trees(tmp_path: Path, command: Callable[..., Any]) -> None:
    write_parquet(tmp_path / "a.parquet", events())
    shown = command("inspect", tmp_path / "a.parquet")
    assert shown.status == 0
    assert "Parquet: 2500 entries" in shown.out
    assert "3 flat, 1 bool, 2 jagged" in shown.out
    report = json.loads(command("inspect", "--json", tmp_path / "a.parquet").out)
    assert report["trees"][0]["kinds"] == {"flat": 3, "bool": 1, "jagged": 2}


def test_a_tree_of_a_format_without_trees_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no trees"):
        inspect_source(str(tmp_path / "a.csv"), "Events")


def test_the_format_can_be_said(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_text("x,y\n1,2\n")
    assert inspect_source(str(tmp_path / "a.dat"), dtype="csv").trees[0].entries == 1
    with pytest.raises(UsageError, match="Did you mean parquet"):
        inspect_source(str(tmp_path / "a.dat"), dtype="parqet")


def test_the_real_parquet_file_equals_its_root_file(real_data: Path) -> None:
    found = read(real_data / "nanoaod_dy.parquet")
    expected = read(real_data / "nanoaod_dy.root", "Events", names=list(found))
    assert len(found) == 1499
    for name, column in found.items():
        np.testing.assert_equal(column, expected[name], err_msg=name)


def test_the_real_csv_file_is_read(real_data: Path) -> None:
    found = read(real_data / "toy_train.csv")
    expected = np.loadtxt(real_data / "toy_train.csv", delimiter=",", skiprows=1)
    for number, name in enumerate([*map(str, range(8)), "Type"]):
        np.testing.assert_array_equal(found[name], expected[:, number])


@pytest.fixture(autouse=True)
def _no_scan_is_remembered() -> Iterator[None]:
    """A scan of one test's file must not serve another's."""
    files._scans.clear()
    yield
    files._scans.clear()
