"""Frozen graphs of TensorFlow become ONNX networks in a sandbox."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from mlaas4hep.errors import UsageError
from mlaas4hep.service.sandbox import shortage
from mlaas4hep.serving.checks import check_network
from mlaas4hep.serving.conversions import convert
from tests.debian import do_without, lacking

# a process of its own: TensorFlow stays out of this one
FREEZE = """
import sys
import numpy as np
import tensorflow as tf
graph = tf.Graph()
with graph.as_default():
    x = tf.compat.v1.placeholder(tf.float32, [None, 3], name="dense_input")
    weights = tf.constant(np.arange(6, dtype=np.float32).reshape(3, 2))
    tf.identity(tf.nn.relu(tf.matmul(x, weights) - 5.0), name="output/node")
open(sys.argv[1], "wb").write(graph.as_graph_def().SerializeToString())
"""
NODES = {"inputNode": "dense_input", "outputNode": "output/node"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tf2onnx", reason="needs tf2onnx")
    if reason := lacking({"bwrap": "bubblewrap"}) or shortage():
        do_without(reason)
    folder = tmp_path_factory.mktemp("graphs")
    subprocess.run([sys.executable, "-c", FREEZE, str(folder / "model.pb")], check=True, capture_output=True)
    return folder


def test_a_frozen_graph_gives_the_same_as_an_onnx_network(place: Path, tmp_path: Path) -> None:
    found = convert(place / "model.pb", NODES, tmp_path)
    assert not check_network(found)
    values = np.array([[1, 2, 3], [0, 0, 1]], np.float32)
    (given,) = onnxruntime.InferenceSession(str(found)).run(None, {"dense_input:0": values})
    np.testing.assert_allclose(given, np.maximum(values @ np.arange(6).reshape(3, 2) - 5.0, 0), rtol=1e-6)


def test_what_is_no_graph_is_one_sentence(tmp_path: Path, place: Path) -> None:
    (tmp_path / "model.pb").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="tf2onnx cannot convert the graph") as failure:
        convert(tmp_path / "model.pb", NODES, tmp_path)
    assert "Traceback" not in str(failure.value)
