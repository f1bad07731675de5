"""Frozen graphs of TensorFlow, as TFaaS has them, made ONNX networks by tf2onnx in a sandbox.

A graph is somebody's program: TensorFlow does not get to see it in the server's process.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service.sandbox import sandboxed

_OPSET = 18
_SECONDS = 300
_MEMORY = 8 * 2**30  # address space: TensorFlow reserves much more than it uses
_NOBODY = 65534
_NODE = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_./\\-]{0,200}")


def convert(model: Path, params: dict[str, Any], place: Path) -> Path:
    """Convert a frozen graph (.pb); returns the ONNX file.

    Args:
        model: the graph.
        params: with `inputNode` and `outputNode`.
        place: a folder for what is made, which exists.

    Raises UsageError for other models and for graphs that cannot be converted, MlaasError where there is no tf2onnx or
    no sandbox.
    """
    if model.suffix != ".pb":
        raise UsageError(f"{model.name} is no ONNX model and no frozen graph.", "Convert it to ONNX and upload that.")
    nodes = [str(params.get(name, "")) for name in ("inputNode", "outputNode")]
    if not all(map(_NODE.fullmatch, nodes)):
        raise UsageError("params.json lacks inputNode or outputNode.", "Name the nodes of the graph.")
    if not all(map(importlib.util.find_spec, ("tensorflow", "tf2onnx"))):
        raise MlaasError("Frozen graphs are not converted here, where TensorFlow is not installed.", "Upload ONNX.")
    work = place / "conversion"
    work.mkdir()
    account = _NOBODY if os.geteuid() == 0 else None
    if account:
        os.chown(work, account, account)
    found = work / "model.onnx"
    command = ["prlimit", f"--as={_MEMORY}", "--core=0", "--", sys.executable, "-m", "tf2onnx.convert"]
    command += ["--graphdef", str(model), "--inputs", f"{nodes[0]}:0", "--outputs", f"{nodes[1]}:0"]
    command += ["--output", str(found), "--opset", str(_OPSET)]
    model.chmod(0o644)
    environment = {"HOME": str(work), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    words = sandboxed(command, writes=[work], reads=[model], environment=environment, account=account)
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise UsageError("Converting the graph takes longer than it may.", "Upload ONNX.") from error
    if done.returncode or not found.is_file() or found.is_symlink():
        told = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it says nothing"]
        raise UsageError(f"tf2onnx cannot convert the graph: {told[-1][:200]}.", "Upload ONNX.")
    return found
