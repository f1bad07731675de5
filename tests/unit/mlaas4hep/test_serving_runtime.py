"""Models in memory: what is loaded, what is refused, what makes room."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlaas4hep.errors import MlaasError
from mlaas4hep.serving.checks import check_model
from mlaas4hep.serving.repository import Repository, UnknownModelError
from mlaas4hep.serving.runtime import ModelFailedError, Runtime, TooSlowError
from tests import serving_parts as parts
from tests.serving_parts import ANNA

LARGEST = 2**20


@pytest.fixture
def models(tmp_path: Path) -> Repository:
    return parts.repository(tmp_path / "repository")


def published(models: Repository, tmp_path: Path, name: str = "m", seed: int = 1) -> onnx.ModelProto:
    network = parts.dense(seed=seed)
    folder = parts.uploaded(tmp_path / f"{name}{seed}", network)
    models.publish(ANNA.key, name, folder)
    return network


async def prediction(runtime: Runtime, name: str = "m", version: int | None = None) -> tuple[int, float]:
    model = await runtime.model(runtime.repository.find(ANNA, name), version)
    return model.version, float(model.run({"x": np.ones((1, 4), np.float32)}, 1)[0][0, 0])


def expected(network: onnx.ModelProto) -> float:
    return float(parts.softmax_of(network, np.ones((1, 4), np.float32))[0, 0])


def test_the_newest_version_is_used_as_soon_as_it_is_there(models: Repository, tmp_path: Path) -> None:
    async def play() -> None:
        runtime = Runtime(models, parts.settings())
        first = published(models, tmp_path, seed=1)
        assert await prediction(runtime) == (1, pytest.approx(expected(first), abs=1e-6))
        second = published(models, tmp_path, seed=2)
        assert await prediction(runtime) == (2, pytest.approx(expected(second), abs=1e-6))
        assert await prediction(runtime, version=1) == (1, pytest.approx(expected(first), abs=1e-6))
        models.promote(ANNA.key, "m", 1)
        assert (await prediction(runtime))[0] == 1
        with pytest.raises(UnknownModelError):
            await prediction(runtime, version=3)
        runtime.close()

    asyncio.run(play())


def test_a_version_that_cannot_be_loaded_leaves_the_one_before_in_use(models: Repository, tmp_path: Path) -> None:
    async def play() -> None:
        runtime = Runtime(models, parts.settings())
        published(models, tmp_path)
        assert (await prediction(runtime))[0] == 1
        broken = tmp_path / "broken"
        shutil.copytree(tmp_path / "m1", broken)
        (broken / "model.onnx").write_bytes(b"no network")
        models.publish(ANNA.key, "m", broken)
        assert (await prediction(runtime))[0] == 1
        facts = models.find(ANNA, "m")
        assert runtime.state(facts, 1) == ("READY", "")
        state, reason = runtime.state(facts, 2)
        assert state == "UNAVAILABLE"
        assert "changed after it was published" in reason
        with pytest.raises(ModelFailedError, match="version 2 of m"):
            await prediction(runtime, version=2)
        runtime.close()

    asyncio.run(play())


def test_another_model_under_the_same_version_is_another_model(models: Repository, tmp_path: Path) -> None:
    async def play() -> None:
        runtime = Runtime(models, parts.settings())
        published(models, tmp_path, seed=1)
        await prediction(runtime)
        models.delete(ANNA.key, "m")
        with pytest.raises(UnknownModelError):
            await prediction(runtime)
        second = published(models, tmp_path, seed=2)
        assert await prediction(runtime) == (1, pytest.approx(expected(second), abs=1e-6))
        runtime.close()

    asyncio.run(play())


def test_the_model_used_longest_ago_makes_room(models: Repository, tmp_path: Path) -> None:
    async def play() -> None:
        runtime = Runtime(models, parts.settings(memory=5 * 2**19))  # two models of a little more than 1 MiB
        for name in ("a", "b", "c"):
            published(models, tmp_path, name)
        facts = {name: models.find(ANNA, name) for name in "abc"}
        for name in ("a", "b", "a", "c"):
            await prediction(runtime, name)
        assert [runtime.state(facts[name], 1)[0] for name in "abc"] == ["READY", "UNKNOWN", "READY"]
        assert (await prediction(runtime, "b"))[0] == 1
        runtime.close()

    asyncio.run(play())


def test_a_prediction_without_end_is_ended(models: Repository, tmp_path: Path) -> None:
    models.publish(ANNA.key, "loop", parts.uploaded(tmp_path / "loop", parts.endless()))

    async def play() -> None:
        runtime = Runtime(models, parts.settings(seconds=0.2))
        model = await runtime.model(models.find(ANNA, "loop"))
        assert not model.quick(1)
        with pytest.raises(TooSlowError):
            await runtime.in_thread(model.run, {"x": np.zeros((1, 2), np.float32)}, 1)
        runtime.close()

    asyncio.run(play())


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    network = parts.dense()
    onnx.external_data_helper.convert_model_to_external_data(network, location="../secret", size_threshold=0)
    tensor = network.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    with pytest.raises(MlaasError, match="weights w are in another file"):
        check_model(parts.uploaded(tmp_path / "m", network), LARGEST)


def test_weights_in_another_file_are_found_inside_of_loops(tmp_path: Path) -> None:
    network = parts.endless()
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "hidden")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="/etc/passwd")
    network.graph.node[0].attribute[0].g.initializer.append(tensor)
    with pytest.raises(MlaasError, match="weights hidden"):
        check_model(parts.uploaded(tmp_path / "m", network), LARGEST)


def test_operators_of_libraries_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Anything", ["x"], ["y"], domain="com.example")
    with pytest.raises(MlaasError, match="Anything of 'com"):
        check_model(parts.uploaded(tmp_path / "m", parts.network([node], ["n", 2], ["n", 2])), LARGEST)


def test_a_network_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MlaasError, match="more than the 10 that are served"):
        check_model(parts.uploaded(tmp_path / "m", parts.dense()), 10)


def test_a_bundle_that_was_changed_is_refused(tmp_path: Path) -> None:
    bundle = parts.trained(tmp_path)
    assert check_model(bundle, LARGEST).bundle is not None
    with (bundle / "schema.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(MlaasError, match=r"schema\.json was changed"):
        check_model(bundle, LARGEST)
