"""Files of events are read in a process that may die."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.serving.event_files import EventFiles
from mlaas4hep.serving.repository import Repository
from mlaas4hep.serving.runtime import LoadedModel, Runtime
from tests import serving_parts as parts
from tests.serving_parts import ANNA

PARQUET = "application/vnd.apache.parquet"


def content(rows: int) -> bytes:
    lists = [[1.0, 2.0]] * rows
    table = {"MET_pt": [1.0] * rows, "nMuon": [2] * rows, "trigger": [True] * rows, "Muon_pt": lists, "Muon_eta": lists}
    target = io.BytesIO()
    pq.write_table(pa.table(table), target)
    return target.getvalue()


async def loaded(folder: Path) -> LoadedModel:
    models = Repository(folder / "repository")
    models.publish(ANNA.key, "trees", parts.trained(folder / "trees"))
    runtime = Runtime(models, parts.settings())
    model = await runtime.model(models.find(ANNA, "trees"))
    runtime.close()
    return model


def test_a_process_that_is_killed_fails_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAAS4HEP_CACHE", str(tmp_path / "store"))

    async def play() -> None:
        model, files = await loaded(tmp_path), EventFiles(parts.settings(events=100))
        block = await files.block(model, PARQUET, content(7), "")
        assert block.stop == 7
        assert files._pool is not None
        for process in files._pool._processes.values():
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
        with pytest.raises(MlaasError, match="damaged, or too large"):
            await files.block(model, PARQUET, content(7), "")
        both = await asyncio.gather(*(files.block(model, PARQUET, content(rows), "") for rows in (3, 4)))
        assert [block.stop for block in both] == [3, 4]
        with pytest.raises(UsageError, match="101 events, more than the 100"):
            await files.block(model, PARQUET, content(101), "")
        files.close()

    asyncio.run(asyncio.wait_for(play(), 300))
