"""Models that the server must not load: their own framework's files, and Python files of their authors.

Each is predicted with by a process in the sandbox of a job without network, under a job's limits (see
`service.supervisor`). It is started when it is first needed, and ended when it is idle, makes room for another one,
takes too long, or breaks; the next prediction starts another.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import select
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.blocks import Block
from mlaas4hep.errors import MlaasError
from mlaas4hep.service.executor import Executor, Resources, State, Task
from mlaas4hep.service.jobs import SOCKET
from mlaas4hep.serving.checks import CheckedModel
from mlaas4hep.serving.events import EventReader
from mlaas4hep.serving.native_process import (
    EVENTS,
    FAILURE,
    VALUES,
    arrays_to_bytes,
    block_to_arrays,
    receive,
    send,
)
from mlaas4hep.serving.repository import ModelFacts
from mlaas4hep.serving.runtime import LoadedModel, ModelFailedError, TensorSpec, TooSlowError
from mlaas4hep.serving.settings import ServingSettings
from mlaas4hep.training.bundle import Bundle
from mlaas4hep.training.onnx_model import MASK, PREDICTIONS
from mlaas4hep.training.onnx_model import VALUES as VALUES_NAME
from mlaas4hep.training.prediction import Predictions, Predictor

_START = 120.0  # seconds until a process answers for the first time: it imports a framework
_LIFE = 12 * 3600  # seconds; what is left behind of folders is swept after a day
_DISK = 2**30
_INTERVAL = 0.05
_ENDING = 5.0  # seconds until the supervisor has told why
_THREADS = 4
_CLOSING = 15.0  # seconds; a process ends with its connection even if nobody waits for it
_BYTES = 2**20  # of memory in this process
_FAILURE_BYTES = 65536
_TOLD = 2000  # characters
_Result = TypeVar("_Result")
_log = logging.getLogger("mlaas4hep.serving")


class Processes:
    """The processes of this server, `native` of the settings at most.

    Args:
        executor: runs them.
        folder: where their folders are made; the executor's jobs have theirs there.
        settings: bounds.
    """

    def __init__(self, executor: Executor, folder: Path, settings: ServingSettings) -> None:
        self._executor = executor
        self._folder = folder
        self.settings = settings
        self._running: list[Process] = []
        self._removing: list[threading.Thread] = []
        self._change = threading.Lock()
        # their predictions may take long, and must not keep those of others waiting
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="native")

    def load(self, facts: ModelFacts, version: int, checked: CheckedModel, limit: float) -> LoadedModel:
        """A model that is ready to predict, with a process where it needs one; see `LoadedModel`."""
        bundle = checked.bundle
        if bundle is None or (bundle.runtime == "onnx" and not bundle.preprocessing_file):
            return LoadedModel(facts, version, checked, limit)
        process = Process(self, bundle)
        if bundle.runtime == "native":
            return NativeModel(facts, version, checked, process)
        return OwnEventsModel(facts, version, checked, limit, process)

    def start(self, process: Process) -> tuple[Task, socket.socket]:
        """Start a process, in place of the one that was used longest ago where there are too many.

        Raises ModelFailedError when all of them are predicting, or it cannot be started.
        """
        with self._change:
            while len(self._running) >= self.settings.native:
                if not any(other.end_if_idle() for other in list(self._running)):
                    raise ModelFailedError("Too many models of their own frameworks predict now.", "Try again later.")
            self._running.append(process)
        try:
            return self._start(process.bundle)
        except BaseException:
            self.forget(process)
            raise

    def used(self, process: Process) -> None:
        """Note that a process was used just now."""
        with self._change, contextlib.suppress(ValueError):
            self._running.remove(process)
            self._running.append(process)

    def forget(self, process: Process) -> None:
        """Note that a process has ended."""
        with contextlib.suppress(ValueError):
            self._running.remove(process)

    def remove(self, task: Task) -> None:
        """End a process for good, and remove its folder; in a thread, because it may take a while."""

        def work() -> None:
            try:
                self._executor.cancel(task)
            except MlaasError as error:
                _log.warning("%s", error)
            shutil.rmtree(task.folder, ignore_errors=True)

        self._removing = [other for other in self._removing if other.is_alive()]
        thread = threading.Thread(target=work, name="end-native")
        self._removing.append(thread)
        thread.start()

    def ended(self, task: Task) -> str:
        """Why a process has broken off, where its limits are the reason."""
        deadline = time.monotonic() + _ENDING
        while not (outcome := self._executor.status(task)).state.final and time.monotonic() < deadline:
            time.sleep(_INTERVAL)
        return outcome.reason if outcome.state is State.OUT_OF_MEMORY else ""

    def close(self) -> None:
        """End all processes."""
        for process in list(self._running):
            process.end()
        self.threads.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + _CLOSING
        for thread in self._removing:
            thread.join(max(deadline - time.monotonic(), 0))

    def _start(self, bundle: Bundle) -> tuple[Task, socket.socket]:
        folder = self._folder / f"predict-{secrets.token_hex(10)}"
        folder.mkdir(mode=0o750, parents=True)
        resources = Resources(1, self.settings.native_memory, 0, _LIFE, _DISK)
        task = Task(folder.name, folder, resources=resources, program="predictions")
        try:
            shutil.copytree(bundle.folder, folder / "input")
            self._executor.submit(task)
            return task, self._connected(task)
        except BaseException as error:
            self.remove(task)
            if isinstance(error, MlaasError | OSError):
                raise ModelFailedError(f"The process of the model cannot be started: {error}") from error
            raise

    def _connected(self, task: Task) -> socket.socket:
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            if connection := _connection(task.folder / "work"):
                return connection
            outcome = self._executor.status(task)
            if outcome.state.final:
                raise MlaasError(outcome.reason or f"It was {outcome.state}.")
            time.sleep(_INTERVAL)
        raise MlaasError(f"It does not answer within {_START:g} s.")


def _connection(folder: Path) -> socket.socket | None:
    """A connection with the process that works in a folder, when it listens."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # the length of a socket's own path is limited to 107 bytes
            connection.connect(f"/proc/self/fd/{opened}/{SOCKET}")
        finally:
            os.close(opened)
    except OSError:
        connection.close()
        return None
    return connection


class Process:
    """A process that predicts with one model, or will when it is asked.

    Args:
        processes: where it belongs.
        bundle: the model.
    """

    def __init__(self, processes: Processes, bundle: Bundle) -> None:
        self.bundle = bundle
        self.threads = processes.threads
        self._processes = processes
        self._turn = threading.Lock()
        self._running: tuple[Task, socket.socket] | None = None
        self._fresh = False

    def ask(
        self, kind: int, arrays: Mapping[str, NDArray[Any]], most: int, parse: Callable[[bytearray], _Result]
    ) -> _Result:
        """What the process answers.

        Args:
            kind: of the question.
            arrays: the question.
            most: bytes that the answer may have.
            parse: makes something of them; raises ModelFailedError for what is no answer.

        Raises MlaasError for what the model refuses, TooSlowError, ModelFailedError when the process breaks.
        """
        seconds = self._processes.settings.seconds
        if not self._turn.acquire(timeout=seconds):
            raise TooSlowError("The model is busy with other predictions.", "Try again later.")
        try:
            connection = self._ready()
            limit = seconds + _START if self._fresh else seconds
            deadline = time.monotonic() + limit
            connection.settimeout(limit)
            try:
                send(connection, kind, arrays_to_bytes(arrays))
                found, content = receive(connection, max(most, _FAILURE_BYTES), deadline)
                self._fresh = False
                self._processes.used(self)
                if found == FAILURE:
                    raise _refusal(content)
                return parse(content)
            except TimeoutError as error:
                self._end()
                raise TooSlowError("The prediction takes longer than it may.", "Send fewer events.") from error
            except ModelFailedError:
                self._end()
                raise
            except (OSError, EOFError) as error:
                reason = self._reason()
                self._end()
                raise ModelFailedError(f"The process of the model ended while it predicted. {reason}") from error
        finally:
            self._turn.release()

    def end(self) -> None:
        """End it, also while it predicts."""
        running = self._running
        if not self.end_if_idle() and running is not None:
            with contextlib.suppress(OSError):
                running[1].shutdown(socket.SHUT_RDWR)

    def end_if_idle(self) -> bool:
        """End it unless it predicts; returns whether it has ended."""
        if not self._turn.acquire(blocking=False):
            return False
        try:
            self._end()
        finally:
            self._turn.release()
        return True

    def _ready(self) -> socket.socket:
        if self._running is not None:
            # an idle one ends by itself
            if not select.select([self._running[1]], [], [], 0)[0]:
                return self._running[1]
            self._end()
        self._running = self._processes.start(self)
        self._fresh = True
        return self._running[1]

    def _end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            self._processes.forget(self)
            running[1].close()
            self._processes.remove(running[0])

    def _reason(self) -> str:
        return self._processes.ended(self._running[0]) if self._running is not None else ""


class NativeModel(LoadedModel):
    """A model that only its own framework can predict: events become its inputs here, the rest is the process's."""

    def __init__(self, facts: ModelFacts, version: int, checked: CheckedModel, process: Process) -> None:
        bundle = process.bundle
        self.facts, self.version, self.version_text = facts, version, str(version)
        self.bundle, self.labels, self.params = bundle, checked.labels, checked.params
        self.network, self.bytes, self.batched = checked.network, _BYTES, True
        self._process, self.threads = process, process.threads
        self.platform = f"mlaas4hep_{bundle.framework}"
        shape = (-1, bundle.schema.idim)
        names = [VALUES_NAME, MASK] if checked.takes_mask else [VALUES_NAME]
        self.inputs = {name: TensorSpec(name, np.dtype(np.float32), shape) for name in names}
        self.outputs = {PREDICTIONS: TensorSpec(PREDICTIONS, np.dtype(np.float32), (-1, bundle.task.width))}
        self.predictor = None if bundle.preprocessing_file else Predictor(bundle, self)
        self.events = EventReader(bundle.schema, self.predictor is not None and not self.predictor.preprocesses)
        if self.predictor is None:
            self.predictor = _EventPredictor(process)

    def quick(self, rows: int) -> bool:
        """False: what another process does is waited for in a thread."""
        return False

    def run(self, feed: Mapping[str, NDArray[Any]], rows: int, names: list[str] | None = None) -> list[NDArray[Any]]:
        """See `LoadedModel.run`."""
        values = feed[VALUES_NAME]
        mask = feed[MASK] != 0 if MASK in feed else np.zeros(values.shape, dtype=np.bool_)
        return [self.predict(values, mask).astype(np.float32)]

    def predict(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """See `LoadedModel.predict`."""
        width = self.outputs[PREDICTIONS].shape[1]
        size = 8 * values.shape[0] * width
        question = {"values": values, "mask": mask}
        return self._process.ask(VALUES, question, size, lambda content: _floats(content, 0, size, width))

    def release(self) -> None:
        """End the process."""
        super().release()
        self._process.end()


class OwnEventsModel(LoadedModel):
    """An ONNX network whose raw events go through a Python file of its author, in the process."""

    def __init__(self, facts: ModelFacts, version: int, checked: CheckedModel, limit: float, process: Process) -> None:
        super().__init__(facts, version, checked, limit)
        self._process, self.threads = process, process.threads
        self.predictor = _EventPredictor(process)

    def quick(self, rows: int) -> bool:
        """False: whether the process is asked is not known here."""
        return False

    def release(self) -> None:
        """End the process."""
        super().release()
        self._process.end()


class _EventPredictor(Predictor):
    """Has a process do all of a `Predictor`'s work."""

    def __init__(self, process: Process) -> None:
        self.bundle = process.bundle
        # what the file removes is not known before it has run
        self.cuts = (process.bundle.preprocessing_file,)
        self._process = process

    def predict(self, block: Block, origin: str = "") -> Predictions:
        """See `Predictor.predict`."""
        events, width = block.stop - block.start, self.bundle.task.width
        arrays = block_to_arrays(block) | {"events": np.array(events)}

        def parse(content: bytearray) -> Predictions:
            kept = np.frombuffer(content, np.uint8, min(events, len(content))) != 0
            values = _floats(content, events, 8 * width * int(kept.sum()), width)
            return Predictions(values, kept, np.empty(0, dtype=np.int64))

        return self._process.ask(EVENTS, arrays, events * (1 + 8 * width), parse)


def _floats(content: bytearray, start: int, size: int, width: int) -> NDArray[np.float64]:
    """The predictions of an answer, which is not trusted to have the right size."""
    if len(content) != start + size:
        raise ModelFailedError("The process of the model answers something else.")
    return np.frombuffer(content, "<f8", offset=start).reshape(-1, width)


def _refusal(content: bytearray) -> MlaasError:
    try:
        message, remedy = (str(part)[:_TOLD] for part in json.loads(content))
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelFailedError("The process of the model answers something else.") from error
    return MlaasError(message, remedy)
