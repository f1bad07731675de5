"""Endpoints of data: which are allowed, which a list of files needs, and where a sandbox finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mlaas4hep.errors import UsageError
from mlaas4hep.service.endpoints import needed
from mlaas4hep.service.network import addresses, hosts_file
from mlaas4hep.service.settings import JobSettings, load_settings


def test_nothing_is_allowed_unless_the_settings_say_so() -> None:
    assert (JobSettings().network, JobSettings().endpoints) == ("endpoints", ())
    allowed = ("EOS.example:1094", "localhost:1095", "127.0.0.1:443")
    assert JobSettings(endpoints=allowed).endpoints == ("eos.example:1094", "localhost:1095", "127.0.0.1:443")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("eos.example", "is no HOST:PORT"),
        ("eos.example:0", "is no HOST:PORT"),
        ("eos.example:65536", "is no HOST:PORT"),
        ("root://eos.example:1094", "is no HOST:PORT"),
        ("*.example:1094", "is no HOST:PORT"),
        ("a b:1094", "is no HOST:PORT"),
        ("-x:1094", "is no HOST:PORT"),
        ("a" * 64 + ":1094", "is no HOST:PORT"),
        ("a\n1.2.3.4 b:1094", "is no HOST:PORT"),
        ("10.0.0.1:1094", "write the name"),
        ("1.2:1094", "write the name"),
        ("[::1]:1094", "is no HOST:PORT"),
    ],
)
def test_what_is_no_endpoint_is_refused(wrong: str, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        JobSettings(endpoints=(wrong,))


def test_the_settings_file_is_named_when_an_endpoint_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "service.toml"
    path.write_text('data = "/x"\n[authentication]\ntoken_file = "/t"\n[jobs]\nendpoints = ["eos"]\n')
    with pytest.raises(
        UsageError, match=rf"jobs\.endpoints.* in the settings {path} is wrong: .*'eos' is no HOST:PORT"
    ):
        load_settings(path)


def test_endpoints_follow_from_the_addresses_of_files() -> None:
    sources = [
        "/data/local.root",
        "relative.root",
        "root://EOS.example//store/a.root:dir/tree",
        "root://eos.example:1094//store/b.root",
        "xroots://other.example:2094//c.root",
        "https://web.example/d.root",
        "http://web.example/e.root?x=1:2",
        "root://[2001:db8::1]//f.root",
        "/store/g.root",
    ]
    assert needed(sources, "root://redirector.example/") == [
        "eos.example:1094",
        "other.example:2094",
        "web.example:443",
        "web.example:80",
        "[2001:db8::1]:1094",
        "redirector.example:1094",
    ]
    assert needed(["/store/g.root"], "") == []


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("ftp://host/a.root", "files are not read over ftp://"),
        ("root://host:port//a.root", "is no address"),
        ("root://[::1//a.root", "is no address"),
        ("root:///a.root", "names no server"),
    ],
)
def test_what_is_no_address_of_a_file_is_refused(source: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        needed([source], "")


def test_each_host_has_an_address_of_its_own_in_the_sandbox() -> None:
    endpoints = ["a:1094", "b:443", "a:1095", "localhost:1095", "127.0.1.2:80"]
    assert addresses(endpoints) == {
        "a": "127.0.1.1",
        "b": "127.0.1.3",
        "localhost": "127.0.0.1",
        "127.0.1.2": "127.0.1.2",
    }
    assert hosts_file(endpoints, "me") == "127.0.0.1 localhost me\n127.0.1.1 a\n127.0.1.3 b\n"
