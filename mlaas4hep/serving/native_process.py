"""Predictions in a sandbox, with models that the server must not load: `python -m ... FOLDER SOCKET`.

FOLDER is a model folder. Whoever connects first to SOCKET is answered, and nobody else; only then is the model loaded.
The process ends when that connection does, or nothing was asked for IDLE seconds.

A message is a byte that says what it is, eight bytes with the length of the rest (big-endian), and the rest:

========  ===================================================================================
VALUES    asks: an .npz with `values` and `mask`, shape (n, columns)
EVENTS    asks: an .npz with the names of the branches, and the column or columns of each
ANSWER    tells: which of the n events are kept (a byte each, EVENTS only), then the predictions
          of these, shape (kept, width), float64
FAILURE   tells: JSON with a sentence and a remedy
========  ===================================================================================
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import struct
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.blocks import Block, Column, FlatValues, JaggedValues
from mlaas4hep.errors import MlaasError
from mlaas4hep.training.bundle import Bundle, read_bundle
from mlaas4hep.training.prediction import Predictor, load_model
from mlaas4hep.training.sealed import seal

VALUES, EVENTS, ANSWER, FAILURE = range(4)
WAIT, IDLE = 120.0, 600.0  # seconds
_HEAD = struct.Struct(">BQ")
_SEAL = ".seal"


def send(connection: socket.socket, kind: int, content: bytes) -> None:
    """Send a message."""
    connection.sendall(_HEAD.pack(kind, len(content)))
    connection.sendall(content)


def receive(connection: socket.socket, most: int, deadline: float | None = None) -> tuple[int, bytearray]:
    """Receive a message.

    Args:
        connection: from whom.
        most: bytes that it may have; one with more raises EOFError, as a broken one does.
        deadline: the monotonic time when it has to be complete; later raises TimeoutError.
    """
    kind, size = _HEAD.unpack(_exactly(connection, _HEAD.size, deadline))
    if size > most:
        raise EOFError(f"a message of {size} bytes")
    return kind, _exactly(connection, size, deadline)


def _exactly(connection: socket.socket, size: int, deadline: float | None) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        if deadline is not None:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            connection.settimeout(left)
        got = connection.recv_into(view)
        if not got:
            raise EOFError("it ended")
        view = view[got:]
    return data


def arrays_to_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as an .npz."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def block_to_arrays(block: Block) -> dict[str, NDArray[Any]]:
    """A block's columns as arrays whose names do not depend on what users call their branches."""
    arrays: dict[str, NDArray[Any]] = {"names": np.array(list(block.columns), dtype=np.str_)}
    for number, column in enumerate(block.columns.values()):
        arrays[f"values{number}"] = column.values
        if isinstance(column, JaggedValues):
            arrays[f"offsets{number}"] = column.offsets
    return arrays


def _block(arrays: Mapping[str, NDArray[Any]], events: int) -> Block:
    columns: dict[str, Column] = {}
    for number, name in enumerate(arrays["names"].tolist()):
        values, offsets = arrays[f"values{number}"], f"offsets{number}"
        columns[name] = JaggedValues(arrays[offsets], values) if offsets in arrays else FlatValues(values)
    return Block(0, events, columns)


class _Model:
    """What answers."""

    def __init__(self, folder: Path) -> None:
        bundle = _vouched(read_bundle(folder))
        self._model = load_model(bundle)
        self._predictor = Predictor(bundle, self._model) if bundle.preprocessing_file else None

    def answer(self, kind: int, content: bytearray) -> bytes:
        """The answer to a question. Raises MlaasError."""
        with np.load(io.BytesIO(content), allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
        if kind == VALUES:
            return self._model.predict(arrays["values"], arrays["mask"]).astype("<f8").tobytes()
        if kind == EVENTS and self._predictor:
            found = self._predictor.predict(_block(arrays, int(arrays["events"])), "the events")
            return found.kept.astype(np.uint8).tobytes() + found.values.astype("<f8").tobytes()
        raise MlaasError("This model is not asked so.")


def _vouched(bundle: Bundle) -> Bundle:
    """The bundle with seals of this process, whose code may run here; its own key has ended with the training."""
    if not (bundle.folder / f"{bundle.native}{_SEAL}").is_file():
        return bundle
    own = Path(os.environ["HOME"]) / "bundle"
    shutil.copytree(bundle.folder, own)
    seal(own / bundle.native)
    return replace(bundle, folder=own)


def main(folder: str, address: str) -> None:
    """Answer whoever connects first, until that ends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(1)
        listener.settimeout(WAIT)
        connection, _ = listener.accept()
    with connection:
        connection.settimeout(IDLE)
        model: _Model | None = None
        while True:
            try:
                kind, content = receive(connection, sys.maxsize)
            except (EOFError, OSError):
                return
            try:
                model = model or _Model(Path(folder))
                message = ANSWER, model.answer(kind, content)
            except MlaasError as error:
                told = [text.replace(f"{folder}/", "") for text in (error.message, error.remedy)]
                message = FAILURE, json.dumps(told).encode()
            send(connection, *message)


if __name__ == "__main__":
    main(*sys.argv[1:])
