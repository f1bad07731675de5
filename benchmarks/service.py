"""The control plane under load: submissions from many users at once, latency beside a training, memory over many jobs.

    python benchmarks/service.py [--jobs 10000] [--users 50]

The service runs as a process of its own, with its real database, workspaces and dispatcher. So that the figures are of
the service and not of trainings, its executor here only makes the files that a finished task has.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from mlaas4hep.service.executor import Outcome, State, Task
from mlaas4hep.service.identity import AuthenticationError, Role, User

WORKFLOW = {"files.txt": "a.root\nb.root\n", "labels.txt": "1\n0\n", "model.py": "def model(): ...\n"}
QUIET = 0.5  # seconds between two looks at what is going on
TRAINING = "import numpy as n\na = n.random.rand(700, 700)\nwhile True: a = a @ a; a /= a.max()"


class Users:
    """Everybody whose token is a name."""

    async def authenticate(self, authorization: str) -> User:
        scheme, _, name = authorization.partition(" ")
        if scheme != "Bearer" or not name:
            raise AuthenticationError("A bearer token is needed.")
        return User("https://iam.example", name, name, roles=frozenset(Role))


class Ready:
    """An executor whose tasks have finished when they begin."""

    def submit(self, task: Task) -> None:
        model = task.folder / "model"
        model.mkdir(exist_ok=True)
        (model / "bundle.json").write_text(json.dumps({"key": task.key}))
        (task.folder / "log").write_text("done\n")
        with (task.folder.parents[1] / "started").open("a") as stream:
            stream.write(f"{task.key}\n")

    def status(self, task: Task) -> Outcome:
        return Outcome(State.FINISHED if (task.folder / "log").exists() else State.INTERRUPTED)

    def logs(self, task: Task, offset: int = 0) -> Iterator[bytes]:
        yield (task.folder / "log").read_bytes()[offset:]

    def cancel(self, task: Task) -> None:
        pass


def serve(data: str, port: str, cpus: str) -> None:
    """The service's process."""
    import uvicorn
    from starlette.applications import Starlette

    from mlaas4hep.service.app import create_app
    from mlaas4hep.service.authentication import AuthenticationSettings
    from mlaas4hep.service.policy import PERSONAL
    from mlaas4hep.service.settings import JobSettings, Settings

    settings = Settings(
        data=Path(data),
        authentication=AuthenticationSettings(token_file=Path(data) / "token"),
        jobs=JobSettings(cpus=int(cpus), memory=2**50),
    )
    app = create_app(settings, Ready(), Users(), lambda: PERSONAL, Starlette())
    uvicorn.run(app, port=int(port), log_level="error", access_log=False, timeout_keep_alive=120)


def memory(process: int) -> float:
    """Resident memory in MB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Bench:
    def __init__(self, folder: Path, users: int, cpus: int) -> None:
        self.data = folder / "data"
        self.data.mkdir()
        self.users = [f"user{number}" for number in range(users)]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        words = [sys.executable, __file__, "--serve", str(self.data), str(port), str(cpus)]
        self.process = subprocess.Popen(words)
        self.url = f"http://127.0.0.1:{port}"
        # a pool each: one for everybody would be slower than the service
        self.clients = {user: self.client() for user in self.users}
        self.http = self.client()

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=300, trust_env=False)

    async def ask(self, user: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {user}"} | options.pop("headers", {})
        answer = await self.clients[user].request(method, path, headers=headers, **options)
        answer.raise_for_status()
        return answer

    async def begin(self) -> None:
        while True:
            try:
                await self.http.get("/health")
                break
            except httpx.TransportError:
                await asyncio.sleep(0.2)
        for user in self.users:
            await self.ask(user, "POST", "/api/v1/workspaces", json={"name": "w"})
            for name, text in WORKFLOW.items():
                await self.ask(user, "PUT", f"/api/v1/workspaces/w/files/{name}", content=text)

    async def submit(self, number: int) -> float:
        began = time.perf_counter()
        user = self.users[number % len(self.users)]
        body = {"workspace": "w", "resources": {"memory": 2**30}}
        await self.ask(user, "POST", "/api/v1/jobs", json=body, headers={"Idempotency-Key": f"k{number}"})
        return time.perf_counter() - began

    async def ended(self, count: int) -> None:
        while (await self.count()) < count:
            await asyncio.sleep(QUIET)

    async def count(self) -> int:
        text = (await self.http.get("/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith("mlaas4hep_jobs_ended_total")]
        return int(sum(float(line.split()[-1]) for line in lines))

    def started(self) -> list[str]:
        path = self.data / "started"
        return path.read_text().split() if path.exists() else []

    async def end(self) -> None:
        for client in (self.http, *self.clients.values()):
            await client.aclose()
        self.process.terminate()
        self.process.wait()


async def burst(bench: Bench, count: int) -> None:
    """All submissions at once."""
    began = time.perf_counter()
    times = await asyncio.gather(*(bench.submit(number) for number in range(count)))
    seconds = time.perf_counter() - began
    await bench.ended(count)
    total = time.perf_counter() - began
    started = bench.started()
    jobs: Counter[str] = Counter()
    owners: dict[str, str] = {}
    for user in bench.users:
        page = (await bench.ask(user, "GET", "/api/v1/jobs?limit=500")).json()["jobs"]
        jobs[user] = len(page)
        owners |= {job["id"]: user for job in page}
    position = {user: [] for user in bench.users}
    for place, key in enumerate(started):
        position[owners[key.rpartition("-")[0]]].append(place)
    middles = [statistics.median(places) for places in position.values()]
    print(
        f"{count} submissions of {len(bench.users)} users at once: {seconds:.1f} s ({count / seconds:.0f}/s), "
        f"all ended after {total:.1f} s"
    )
    print(f"  lost {count - sum(jobs.values())}, doubled {len(started) - len(set(started))}")
    print(f"  median place in the order of starts, by user: {min(middles):.0f} to {max(middles):.0f} of {count}")
    print(f"  answered after {percentile(times, 50) * 1000:.0f} ms (p50), {percentile(times, 99) * 1000:.0f} ms (p99)")


async def latency(bench: Bench, seconds: float) -> None:
    """What people do while a training keeps a core busy: reads, and now and then a submission."""
    with subprocess.Popen([sys.executable, "-c", TRAINING], env=os.environ | {"OMP_NUM_THREADS": "1"}) as training:
        times: dict[str, list[float]] = {"read": [], "submit": []}
        stop = time.perf_counter() + seconds

        async def person(number: int) -> None:
            user = bench.users[number % len(bench.users)]
            key = (await bench.ask(user, "GET", "/api/v1/jobs?limit=1")).json()["jobs"][0]["id"]
            paths = ["/api/v1/jobs", f"/api/v1/jobs/{key}", "/api/v1/workspaces", f"/api/v1/jobs/{key}/log"]
            turn = 0
            while time.perf_counter() < stop:
                began = time.perf_counter()
                await bench.ask(user, "GET", paths[turn % 4])
                times["read"].append(time.perf_counter() - began)
                if turn % 20 == number:
                    times["submit"].append(await bench.submit(10**6 + number * 1000 + turn))
                turn += 1
                await asyncio.sleep(0.1)

        await asyncio.gather(*(person(number) for number in range(10)))
        training.kill()
    for name, values in times.items():
        print(
            f"beside a training, 10 people: {name} p50 {percentile(values, 50) * 1000:.1f} ms, "
            f"p99 {percentile(values, 99) * 1000:.1f} ms ({len(values)} requests)"
        )


async def many(bench: Bench, count: int, before: int) -> None:
    """Memory of the service while many jobs pass through it."""
    done = await bench.count()
    for begin in range(0, count, count // 10):
        for first in range(begin, begin + count // 10, 100):
            await asyncio.gather(*(bench.submit(2 * 10**6 + first + number) for number in range(100)))
        await bench.ended(done + begin + count // 10)
        print(f"  after {before + begin + count // 10:6d} jobs: {memory(bench.process.pid):.0f} MB", flush=True)


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) * percent // 100, len(values) - 1)]


async def run(jobs: int, users: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), users, 50)
        try:
            await bench.begin()
            print(f"memory at the beginning: {memory(bench.process.pid):.0f} MB")
            await burst(bench, 1000)
            print(f"  after   1000 jobs: {memory(bench.process.pid):.0f} MB")
            await latency(bench, 20)
            await many(bench, jobs, 1000)
        finally:
            await bench.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(*given.serve)
    else:
        asyncio.run(run(given.jobs, given.users))


if __name__ == "__main__":
    main()
