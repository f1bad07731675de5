"""The web pages in a real browser: how soon the first one is there, and whether long ones stay responsive.

    python benchmarks/pages.py [--jobs 10000] [--log 200] [--loads 20]

The service runs on the loopback, and headless Chromium measures itself: Navigation Timing, the bytes of
Resource Timing, and PerformanceObserver's long tasks (those in which a page does not answer for 50 ms or more).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright
from sqlalchemy import insert

from mlaas4hep.service.database import JobRow
from mlaas4hep.service.jobs import now
from mlaas4hep.service.submissions import note_user
from tests.unit.mlaas4hep.service_parts import ALICE, Running, running

LINE = "epoch 17 of 100: loss 0.3141592653589793, val_loss 0.2718281828459045, auc 0.9142857142857143\n"
APPENDED = 2**20  # bytes a second that a running job prints
PATIENCE = 300_000  # milliseconds
TIMING = """() => {
  const [page] = performance.getEntriesByType('navigation');
  const all = [page, ...performance.getEntriesByType('resource')];
  return {
    answered: page.responseEnd, ready: page.domContentLoadedEventEnd, loaded: page.loadEventEnd,
    sent: all.reduce((sum, entry) => sum + entry.transferSize, 0),
    bytes: all.reduce((sum, entry) => sum + entry.decodedBodySize, 0),
    requests: all.length,
  };
}"""
WATCH = """
window.longTasks = [];
new PerformanceObserver((list) => longTasks.push(...list.getEntries().map((entry) => entry.duration)))
  .observe({ type: 'longtask', buffered: true });
"""
FRAMES = """(seconds) => new Promise((done) => {
  const frames = [];
  let last = performance.now();
  const begun = last;
  function frame(time) {
    frames.push(time - last);
    last = time;
    if (time - begun < seconds * 1000) requestAnimationFrame(frame);
    else done(frames);
  }
  requestAnimationFrame(frame);
})"""


def loaded(page: Page) -> dict[str, float]:
    """What the browser has measured of the page that it shows."""
    page.wait_for_load_state("load")
    found: dict[str, float] = page.evaluate(TIMING)
    return found


def first_page(browser: Browser, url: str, loads: int) -> dict[str, float]:
    """The first page by browsers that have kept nothing, by figure the median."""
    found = []
    for _ in range(loads):
        context = browser.new_context()
        page = context.new_page()
        page.goto(url, wait_until="load")
        found.append(loaded(page))
        context.close()
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def tasks_of(page: Page) -> dict[str, float]:
    """The long tasks up to now."""
    found = page.evaluate("longTasks")
    return {"tasks": len(found), "longest": max(found, default=0.0), "sum": sum(found)}


def give_jobs(service: Running, count: int) -> list[str]:
    """Jobs of Alice that have ended, and one that the dispatcher looks after."""
    parts = service.service
    common = {"user_key": ALICE.key, "network": False, "reason": "It was to be.", "submitted": now(), "attempt": 1}
    common |= dict.fromkeys(("name", "model", "workspace"), "many") | {"phase": "ended", "state": "failed"}
    common |= dict.fromkeys(("cpus", "memory", "gpus", "seconds", "disk"), 1)
    rows = [{**common, "key": f"j{number:020}", "number": number} for number in range(count)]
    with parts.database.write() as session:
        note_user(session, ALICE, parts.policy().quota(ALICE))
        session.execute(insert(JobRow), rows)
    return [row["key"] for row in rows]


def give_log(service: Running, key: str, size: int) -> Path:
    """A job's log of so many MiB."""
    folder = service.settings.data / "jobs" / key
    folder.mkdir(exist_ok=True)
    piece = (LINE * (2**20 // len(LINE) + 1)).encode()[: 2**20]
    with (folder / "log").open("wb") as stream:
        for _ in range(size):
            stream.write(piece)
    return folder / "log"


@contextmanager
def signed_in(browser: Browser, service: Running) -> Iterator[Page]:
    """A page that asks as Alice does."""
    context = browser.new_context(base_url=service.url, extra_http_headers={"Authorization": f"Bearer {ALICE.subject}"})
    context.set_default_timeout(PATIENCE)
    context.add_init_script(WATCH)
    try:
        yield context.new_page()
    finally:
        context.close()


def long_list(page: Page) -> dict[str, float]:
    """The list of jobs, and its pages one after another."""
    page.goto("/ui/jobs", wait_until="load")
    found = loaded(page)
    begin = time.perf_counter()
    for number in range(2, 12):
        page.get_by_role("link", name="Older ones").click()
        expect(page.locator("#rows > tr")).to_have_count(50 * number, timeout=PATIENCE)
    return {
        "loaded": found["loaded"],
        "sent": found["sent"],
        "more": (time.perf_counter() - begin) * 100,
        **tasks_of(page),
    }


def long_log(page: Page, key: str, log: Path, seconds: int) -> dict[str, float]:
    """The page of a job that goes on printing."""
    page.goto(f"/ui/jobs/{key}", wait_until="load")
    found = loaded(page)
    page.evaluate(f"window.frames_ = ({FRAMES})({seconds})")
    piece = (LINE * (APPENDED // 10 // len(LINE))).encode()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with log.open("ab") as stream:
            stream.write(piece)
        time.sleep(0.1)
    frames = sorted(page.evaluate("frames_"))
    kept = page.evaluate("document.getElementById('log').textContent.length")
    heap = page.evaluate("performance.memory.usedJSHeapSize")
    slowest = {"frame": frames[len(frames) * 99 // 100], "slowest": frames[-1]}
    return {"loaded": found["loaded"], "sent": found["sent"], "kept": kept, "heap": heap, **slowest, **tasks_of(page)}


def measured(jobs: int, log: int, loads: int, seconds: int) -> dict[str, Any]:
    """All figures; times in milliseconds."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), "sleep 3600") as service:
        keys = give_jobs(service, jobs)
        with service.service.database.write() as session:
            row = session.query(JobRow).filter_by(key=keys[-1]).one()
            row.phase, row.state = "handed", "running"
        printed = give_log(service, keys[-1], log)
        service.executor.submit(service.service.submissions.task(row))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", timeout=PATIENCE)
            try:
                figures: dict[str, Any] = {"load of the computer": os.getloadavg()[0]}
                figures["first page"] = first_page(browser, service.url, loads)
                with signed_in(browser, service) as page:
                    figures[f"{jobs} jobs"] = long_list(page)
                with signed_in(browser, service) as page:
                    figures[f"log of {log} MiB"] = long_log(page, keys[-1], printed, seconds)
            finally:
                browser.close()
    return figures


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--log", type=int, default=200, help="MiB")
    parser.add_argument("--loads", type=int, default=20, help="of the first page")
    parser.add_argument("--seconds", type=int, default=20, help="that the job goes on printing")
    given = parser.parse_args()
    print(json.dumps(measured(given.jobs, given.log, given.loads, given.seconds), indent=1))


if __name__ == "__main__":
    main()
