"""The model repository on disk."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlaas4hep.errors import UsageError
from mlaas4hep.serving.repository import Repository, UnknownModelError
from tests.serving_parts import ADMIN, ANNA, BERT, GUEST


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "code").mkdir(parents=True)
    (folder / "model.onnx").write_text("weights")
    (folder / "code" / "model.py").write_text("code")
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def test_versions_count_from_one_and_hold_the_whole_folder(models: Repository, bundle: Path) -> None:
    assert [models.publish(ANNA.key, "higgs", bundle) for _ in range(3)] == [1, 2, 3]
    found = models.find(ANNA, "higgs")
    assert found.versions == (1, 2, 3)
    assert found.preference == (3, 2, 1)
    assert (models.path(found, 2) / "code" / "model.py").read_text() == "code"
    kept = json.loads((models.folder / ANNA.key / "higgs" / "model.json").read_text())
    assert kept == {"owner": ANNA.key, "groups": [], "default": None}


def test_simultaneous_publications_get_different_versions(models: Repository, bundle: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: models.publish(ANNA.key, "higgs", bundle), range(24)))
    assert sorted(versions) == list(range(1, 25))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a.b", "-a", "_a", "a b", "a\n", "é", "x" * 62, "a;id", "$(id)", "a\0b"]
)
def test_names_that_are_none_are_refused_and_never_found(models: Repository, bundle: Path, name: str) -> None:
    with pytest.raises(UsageError):
        models.publish(ANNA.key, name, bundle)
    with pytest.raises(UnknownModelError):
        models.find(ANNA, name)
    with pytest.raises(UnknownModelError):
        models.delete(ANNA.key, name)
    assert not models.folder.exists()


def test_a_name_that_another_begins_with_is_another_model(models: Repository, bundle: Path) -> None:
    models.publish(ANNA.key, "a", bundle)
    models.publish(ANNA.key, "a_1", bundle)
    models.delete(ANNA.key, "a")
    assert [facts.name for facts in models.models(ANNA)] == ["a_1"]


def test_what_one_may_not_see_does_not_exist(models: Repository, bundle: Path) -> None:
    models.publish(ANNA.key, "higgs", bundle)
    for user in (BERT, GUEST):
        assert models.models(user) == []
        with pytest.raises(UnknownModelError) as hidden:
            models.find(user, f"{ANNA.key}.higgs")
        with pytest.raises(UnknownModelError) as missing:
            models.find(user, f"{ANNA.key}.there_is_none")
        assert str(hidden.value) == str(missing.value).replace("there_is_none", "higgs")
    assert models.find(ADMIN, f"{ANNA.key}.higgs").owner == ANNA.key


def test_members_of_a_group_use_what_is_shared_with_it_until_it_is_not(models: Repository, bundle: Path) -> None:
    models.publish(ANNA.key, "higgs", bundle)
    models.share(ANNA.key, "higgs", ["/cms"])
    assert models.find(BERT, f"{ANNA.key}.higgs").called(BERT) == f"{ANNA.key}.higgs"
    assert [facts.called(ANNA) for facts in models.models(ANNA)] == ["higgs"]
    with pytest.raises(UnknownModelError):
        models.find(BERT, "higgs")
    models.share(ANNA.key, "higgs", ["/cms/higgs"])
    with pytest.raises(UnknownModelError):
        models.find(BERT, f"{ANNA.key}.higgs")


def test_a_promoted_version_is_preferred_until_it_is_gone(models: Repository, bundle: Path) -> None:
    for _ in range(3):
        models.publish(ANNA.key, "higgs", bundle)
    models.promote(ANNA.key, "higgs", 1)
    assert models.find(ANNA, "higgs").preference == (1, 3, 2)
    with pytest.raises(UnknownModelError, match="version 9"):
        models.promote(ANNA.key, "higgs", 9)
    models.delete(ANNA.key, "higgs", 1)
    assert models.find(ANNA, "higgs").preference == (3, 2)
    models.promote(ANNA.key, "higgs", None)
    assert models.find(ANNA, "higgs").default is None


def test_the_last_version_takes_the_model_along(models: Repository, bundle: Path) -> None:
    models.publish(ANNA.key, "higgs", bundle)
    with pytest.raises(UnknownModelError):
        models.delete(ANNA.key, "higgs", 2)
    models.delete(ANNA.key, "higgs", 1)
    assert models.models(ANNA) == []
    assert list((models.folder / ANNA.key).iterdir()) == []
    assert list(models.folder.glob(".*")) == []
    with pytest.raises(UnknownModelError):
        models.delete(ANNA.key, "higgs")


def test_a_change_is_seen_by_those_who_looked_just_before(models: Repository, bundle: Path) -> None:
    other = Repository(models.folder)
    models.publish(ANNA.key, "higgs", bundle)
    for groups in (["/a"], ["/b"], ["/c"], []):
        other.find(ANNA, "higgs")
        models.share(ANNA.key, "higgs", groups)
        assert list(other.find(ANNA, "higgs").groups) == groups


def test_a_damaged_model_beside_good_ones_is_told(models: Repository, bundle: Path) -> None:
    for name in ("bad", "good"):
        models.publish(ANNA.key, name, bundle)
    (models.folder / ANNA.key / "bad" / "model.json").write_text('{"owner": 3')
    told = {facts.name: facts.broken for facts in models.models(ANNA)}
    assert told == {"bad": "The file model.json is damaged.", "good": ""}


def test_links_are_not_published(models: Repository, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (bundle / "code" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match="link"):
        models.publish(ANNA.key, "higgs", bundle)
    assert models.models(ANNA) == []
