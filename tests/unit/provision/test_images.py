"""Baked images: which one a platform gets, what an image's bytes tell, and what leaves this computer."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from provision.clouds._baked import BakedImage, LocalImages, forget_passwords, kind_of_image
from provision.clouds.flavors import Image, image_choices
from provision.configure import image_digest, image_variables
from provision.errors import UsageError
from provision.framework import Framework
from provision.images import is_current
from provision.record import Home
from provision.share import share
from provision.spec import make_spec

PLAIN = Image("i1", "Debian 12", "debian", "12", 2, 512, "2026-10-01")
BAKED = replace(PLAIN, id="i2", name="baked", created_at="2026-01-01", baked="d1", ours=True)
RELEASE = Framework(None, "1.0")


def chosen(*images: Image, baked: str) -> tuple[str, dict[str, str]]:
    image, choices = image_choices(images, baked)
    return image.id if image else "", {choice.name: choice.verdict for choice in choices}


def test_an_image_with_all_that_is_wanted_goes_before_a_newer_plain_one() -> None:
    taken, verdicts = chosen(PLAIN, BAKED, baked="d1")
    assert (taken, verdicts["baked"]) == ("i2", "baked: has all that the roles install")
    assert verdicts["Debian 12"] == "plain, and a baked one serves"


@pytest.mark.parametrize(
    ("change", "wanted", "why"),
    [
        ({}, "d2", "of other roles or packages"),
        ({}, "", "no roles are asked for"),
        ({"ours": False}, "d1", "in another project"),
        ({"ours": False, "created_at": "2027"}, "d1", "in another project"),
        ({"snapshot": True}, "d1", "a snapshot"),
    ],
)
def test_what_does_not_serve_is_left_and_told_why(change: dict[str, object], wanted: str, why: str) -> None:
    taken, verdicts = chosen(PLAIN, replace(BAKED, **change), baked=wanted)  # type: ignore[arg-type]
    assert taken == "i1"
    assert why in verdicts["baked"]


def test_a_baked_image_alone_does_not_serve_platforms_of_other_roles() -> None:
    assert chosen(BAKED, baked="d2")[0] == ""


def test_the_digest_follows_what_is_installed_and_nothing_else(tmp_path: Path) -> None:
    def digest(framework: Framework = RELEASE, **wishes: object) -> str:
        return image_digest(make_spec({"name": "one", **wishes}), framework)

    wheel = tmp_path / "own-1-py3-none-any.whl"
    wheel.write_bytes(b"first")
    first = digest(frameworks=[str(wheel)])
    wheel.write_bytes(b"second")
    different = [
        digest(),
        digest(Framework(None, "1.1")),
        digest(gpu="T4"),
        digest(frameworks=["torch"]),
        first,
        digest(frameworks=[str(wheel)]),
    ]
    assert len(set(different)) == len(different)
    # settings, secrets and sizes are each machine's own
    shared = {"service": "shared", "domain": "a.example", "iam": "https://b.example", "client_id": "c"}
    for wishes in ({"name": "two"}, {"cpus": 8, "ttl": "1d", "idle_stop": "2h"}, shared, {"frameworks": ["keras"]}):
        assert digest(**wishes) == digest()
    assert digest(gpu="A100:2") == digest(gpu="T4")


@pytest.mark.parametrize(
    ("offset", "magic", "kind"),
    [
        (1080, b"\x53\xef", "file system"),
        (510, b"\x55\xaa", "disk"),
        (0, b"QFI\xfb", "disk"),
        (0, b"", ""),
    ],
)
def test_the_first_bytes_tell_what_an_image_is(offset: int, magic: bytes, kind: str) -> None:
    assert kind_of_image(bytes(offset) + magic + bytes(2048 - offset - len(magic))) == kind


def test_of_an_image_whose_download_was_refused_nothing_is_said() -> None:
    assert kind_of_image(b"") == ""


def test_passwords_of_package_sources_do_not_leave_this_computer(tmp_path: Path) -> None:
    files = {
        "etc/pip.conf": "[global]\nindex-url = https://user:secret@pip.example/simple\n",
        "etc/apt/sources.list": "deb https://user:secret@apt.example/debian bookworm main\n",
        "etc/apt/sources.list.d/more.sources": "URIs: https://token@apt.example/debian\n",
        "etc/apt/apt.conf.d/99proxy": 'Acquire::http::Proxy "http://me:secret@proxy.example:3128";\n',
        "etc/apt/auth.conf": "machine apt.example login user password secret\n",
        "etc/apt/auth.conf.d/site.conf": "machine apt.example login user password secret\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "etc/apt/trusted.gpg").write_bytes(b"\x99\x00")
    forget_passwords(tmp_path)
    left = "".join(path.read_text() for name in files if (path := tmp_path / name).exists())
    assert "secret" not in left and "token" not in left
    assert "https://pip.example/simple" in left and "https://apt.example/debian bookworm" in left
    assert (tmp_path / "etc/apt/trusted.gpg").read_bytes() == b"\x99\x00"


def image(**facts: object) -> BakedImage:
    known = {"name": "one", "digest": "d1", "system": "debian-12", "mlaas4hep": "1.0", "toolkit": "1.0"}
    return BakedImage.model_validate({**known, "created_at": datetime(2026, 1, 1, tzinfo=UTC), **facts})


def test_every_role_of_the_playbook_is_told_whether_an_image_has_it() -> None:
    """A role that is told nothing goes by its own defaults, in its condition in the playbook, too."""
    (play,) = yaml.safe_load((share() / "playbooks" / "platform.yml").read_text())
    asked = {name for role in play["roles"] for name in re.findall(r"(\w+) \| default\('", role.get("when", ""))}
    told = image_variables(make_spec({"name": "baking"}), Framework(None, "1.0"))
    assert asked >= {"jupyter_kind", "monitoring_kind"}
    assert asked <= told.keys()
    assert {told[name] for name in asked if name.endswith("_kind")} == {"none"}


def test_an_image_of_this_computer_is_found_kept_and_removed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_text("content")
    images = LocalImages(tmp_path / "images", "s1")
    made = images.add(root, image())
    assert images.find("d1") == made and made.size > 0
    assert images.find("d2") is None
    # made on a computer with other package sources
    other = LocalImages(tmp_path / "images", "s2")
    assert other.find("d1") is None
    assert [(found.name, found.usable) for found in other.all()] == [("one", False)]
    with pytest.raises(UsageError, match=r"no baked image 'two' on this computer\. There are: one\."):
        images.named("two")
    images.remove(images.named("one"))
    assert images.all() == [] and list((tmp_path / "images").iterdir()) == []


def test_an_image_serves_while_roles_and_packages_are_the_same(tmp_path: Path) -> None:
    now = image_digest(make_spec({"name": "any", "frameworks": ["torch"]}), RELEASE)
    assert is_current(image(digest=now, frameworks=("torch",)), Home(tmp_path))
    assert not is_current(image(digest=now), Home(tmp_path))
    assert not is_current(image(digest=now, frameworks=("torch",), usable=False), Home(tmp_path))
    assert not is_current(image(digest=now, frameworks=("own-1-py3-none-any.whl",)), Home(tmp_path))
