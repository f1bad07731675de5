"""The web pages in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Response, Route, expect
from sqlalchemy import insert

from mlaas4hep.service.database import JobRow
from mlaas4hep.service.identity import User
from mlaas4hep.service.jobs import now
from mlaas4hep.service.submissions import note_user
from tests.confinement import require_sandbox
from tests.debian import do_without, lacking
from tests.oidc import fixtures
from tests.oidc.provider import AUDIENCE, PROGRAMS, OidcProvider
from tests.pages.browser import HOSTILE, PATIENCE, Pages, faults_of_access, running_pages, shoot
from tests.pages.packages import STATIC, fetch, member, pins

oidc = fixtures.oidc
expect.set_options(timeout=PATIENCE)
ASK = (
    "([path, method]) => fetch(path, {method, body: new URLSearchParams({name: 'x'})}).then((answer) => answer.status)"
)
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, oidc: OidcProvider) -> Iterator[Pages]:
    if reason := lacking({"chromium": "chromium", **PROGRAMS}):
        do_without(reason)
    require_sandbox()
    with running_pages(tmp_path_factory.mktemp("pages"), oidc) as pages:
        yield pages


@pytest.fixture(scope="module")
def job(pages: Pages) -> str:
    """The address of Alice's job: she has signed in, uploaded her files, submitted, and watched it to its end."""
    page = pages.page("alice")
    expect(page.get_by_role("heading", name="Workspaces", level=1)).to_be_visible()
    page.get_by_label("Name").fill("no name")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("alert").first).to_contain_text("'no name' is no name.")
    page.get_by_label("Name").fill("higgs")
    page.get_by_role("button", name="Create").click()

    files = [path for path in pages.workflow.iterdir() if path.is_file()]
    hostile = pages.workflow / f"{HOSTILE}.root"
    hostile.write_bytes((pages.workflow / "signal.root").read_bytes())
    page.locator("#files-input").set_input_files([*files, hostile])
    for path in (*files, hostile):
        expect(page.locator("#files").get_by_role("link", name=path.name, exact=True)).to_be_visible()
    expect(page.locator("#uploads li")).to_have_count(0)
    page.get_by_role("link", name=f"Branches {HOSTILE}.root").click()
    expect(page.get_by_role("row").filter(has_text="MET_pt").locator("svg path")).to_have_count(1)
    assert page.locator("img").count() == 0
    shoot(page, "branches")

    page.goto("/ui/workspaces/higgs")
    page.get_by_role("link", name="Submit a job").click()
    page.get_by_label("Others, which").fill('{"epochz": 6}')
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.get_by_role("alert").first).to_contain_text("Did you mean epochs?")
    page.get_by_label("Others, which").fill('{"epochs": 6}')
    page.get_by_role("button", name="Check", exact=True).click()
    expect(page.get_by_role("region", name="What would be trained")).to_contain_text("2 of 2 were looked at")
    assert faults_of_access(page) == []
    shoot(page, "submit")
    page.get_by_role("button", name="Submit", exact=True).click()

    log = page.locator("#log")
    expect(log).to_contain_text("the training begins")
    expect(page.locator("#state .state")).to_have_text("running")
    expect(page.locator("#stage")).to_have_text("epoch 3 of 6")
    for measure in ("loss", "auc"):
        expect(page.locator(f".plot[data-measure={measure}] canvas")).to_be_visible()
    shoot(page, "job-running")
    pages.go.touch()
    expect(page.locator("#stage")).to_have_text("epoch 4 of 6")
    expect(log).to_contain_text("the training ends")
    expect(page.locator("#state .state")).to_have_text("finished")
    assert log.evaluate("log => log.textContent.length") <= 2**20, "the page keeps the end of the log only"
    assert log.locator(":not(div)").count() == 0, "what a job prints is only text"
    address = page.url
    page.close()
    return address


def test_a_large_upload_goes_on_when_the_network_is_back_and_after_a_reload(pages: Pages, tmp_path: Path):
    large = tmp_path / "large.root"
    with large.open("wb") as stream:
        stream.truncate(40 * 2**20)
    page = pages.page("bob")
    page.get_by_label("Name").fill("large")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("heading", name="large", level=1)).to_be_visible()
    broken, offsets = True, list[str]()

    def part(route: Route) -> None:
        if route.request.method == "PATCH":
            offsets.append(route.request.headers["upload-offset"])
            if broken and offsets[-1] != "0":
                route.abort()
                return
        route.continue_()

    page.route("**/uploads/*", part)
    page.locator("#files-input").set_input_files(large)
    expect(page.locator("#uploads li")).to_contain_text("it goes on when the service answers again")
    shoot(page, "upload-waits")
    page.reload()
    expect(page.locator("#unfinished li")).to_contain_text("large.root: 32 MiB of 40 MiB")
    shoot(page, "upload-unfinished")
    assert faults_of_access(page) == []
    page.locator("#files-input").set_input_files(large)
    expect(page.locator("#uploads li")).to_contain_text("it goes on when the service answers again")
    broken = False
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#files").get_by_role("link", name="large.root", exact=True)).to_be_visible()
    expect(page.locator("#unfinished")).to_have_count(0)
    expect(page.locator("#uploads li")).to_have_count(0)
    assert offsets.count("0") == 1
    assert page.get_by_role("row").filter(has_text="large.root").get_by_text("40 MiB").count() == 1


def test_a_job_from_sign_in_to_prediction(pages: Pages, job: str):
    page = pages.page("alice")
    page.goto(job)
    expect(page.locator("#log")).to_contain_text("the training ends")
    expect(page.locator(".plot[data-measure=auc] canvas")).to_be_visible()
    shoot(page, "job")
    page.get_by_role("link", name="Report", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.go_back()
    page.get_by_role("link", name="To the model").click()
    expect(page.get_by_role("heading", name="Model card")).to_be_visible()
    expect(page.frame_locator("iframe").get_by_role("heading", level=1)).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="test").first).to_contain_text("0.")
    shoot(page, "model")
    page.get_by_role("link", name="Graph of the network").click()
    expect(page.locator("svg .node").first).to_be_visible()
    expect(page.get_by_text(re.compile("TreeEnsemble")).first).to_be_visible()
    shoot(page, "graph")
    page.go_back()
    page.get_by_role("link", name="Predict", exact=True).click()
    shoot(page, "predict-form")
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#predictions tbody tr")).to_have_count(1)
    assert re.search(r"0\.\d{4}", page.locator("#predictions").inner_text())
    expect(page.locator("#curl")).to_contain_text(f"{AUDIENCE}/v2/models/higgs/events")
    shoot(page, "predict")
    page.get_by_label("Events as they").fill('[{"MET": 1}]')
    page.get_by_role("button", name="Predict").click()
    expect(page.get_by_role("alert").first).to_contain_text("MET")
    assert pages.faults == []


def test_a_model_is_shared_and_nobody_else_s_things_are_there(pages: Pages, job: str):
    alice, bob, carol = (pages.page(user) for user in ("alice", "bob", "carol"))
    carol.goto("/ui/models")
    expect(carol.get_by_text("There is none yet.")).to_be_visible()
    alice.goto("/ui/models/higgs")
    alice.get_by_label("/cms", exact=True).check()
    alice.get_by_role("button", name="Share").click()
    expect(alice.get_by_label("/cms", exact=True)).to_be_checked()
    carol.reload()
    carol.get_by_role("link", name=re.compile(r"^u[0-9a-f]{16}\.higgs$")).click()
    shared = carol.url
    expect(carol.get_by_role("heading", name="Model card")).to_be_visible()
    assert carol.get_by_text("Delete this model").count() == 0
    carol.get_by_role("link", name="Predict", exact=True).click()
    carol.get_by_role("button", name="Predict").click()
    expect(carol.locator("#predictions tbody tr")).to_have_count(1)
    for address in (job, f"{job}/report", shared, "/ui/workspaces/higgs", "/ui/admin"):
        answer = bob.goto(address)
        assert answer is not None
        assert answer.status == (403 if address == "/ui/admin" else 404), address
        expect(bob.get_by_role("alert").first).to_be_visible()
    shoot(bob, "refused")


def test_requests_of_other_sites_and_without_the_token_change_nothing(pages: Pages, job: str):
    page = pages.page("alice")
    page.goto(job)
    for path, method in (("/ui/workspaces", "POST"), ("/api/v1/workspaces/higgs", "DELETE"), (f"{job}/delete", "POST")):
        assert page.evaluate(ASK, [path, method]) == 403, path
    fields = '<input name="name" value="evil"><button>go</button>'
    form = f'<form method="post" action="{AUDIENCE}/ui/workspaces">{fields}</form>'
    page.route("https://evil.test/", lambda route: route.fulfill(body=form, content_type="text/html"))
    page.goto("https://evil.test/")
    with page.expect_response(f"{AUDIENCE}/ui/workspaces") as answer:
        page.get_by_role("button").click()
    assert answer.value.status in (401, 403)
    page.goto("/ui/workspaces")
    assert page.get_by_text("evil").count() == 0


def test_scripts_do_not_see_the_session(pages: Pages):
    page = pages.page("alice")
    page.goto("/ui/jobs")
    assert [cookie["name"] for cookie in page.context.cookies(AUDIENCE) if cookie["httpOnly"]]
    assert page.evaluate("document.cookie") == ""


def test_a_job_is_cancelled_submitted_again_and_deleted(pages: Pages, job: str):
    pages.go.unlink()
    page = pages.page("alice")
    try:
        page.goto(job)
        page.get_by_role("button", name="Submit again").click()
        expect(page.locator("#state .state")).to_have_text("running")
        page.get_by_role("button", name="Cancel this job").click()
        expect(page.locator("#state .state")).to_have_text("cancelled")
        page.get_by_text("Delete this job").first.click()
        page.get_by_role("button", name="Delete this job").click()
        expect(page.get_by_role("heading", name="Jobs", level=1)).to_be_visible()
        expect(page.get_by_role("link", name="higgs_1", exact=True)).to_be_visible()
        assert page.get_by_text("higgs_2").count() == 0
    finally:
        pages.go.touch()


EVERY = ("workspaces", "workspaces/higgs", "submit?workspace=higgs", "jobs", "models", "models/higgs", "me")
EVERY += ("models/higgs/predict", f"workspaces/higgs/branches?path={HOSTILE}.root", "jobs/{job}", "nothing")


def test_pages_can_be_used_by_all_and_on_a_phone(pages: Pages, job: str):
    found: list[str] = []
    with pages.signed_in("alice", viewport=PHONE) as context:
        page = context.new_page()
        for path in EVERY:
            page.goto(f"/ui/{path.format(job=job.rpartition('/')[2])}")
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wide > 0:
                found.append(f"{path} is {wide} pixels too wide")
            found += faults_of_access(page)
            shoot(page, f"phone-{re.sub('[^a-z]+', '-', path)}")
    with pages.context() as context:
        page = context.new_page()
        page.goto("/")
        found += faults_of_access(page)
        shoot(page, "welcome")
    page = pages.page("root")
    page.goto("/ui/admin")
    expect(page.get_by_role("row").filter(has_text="Alice")).to_contain_text("64 GiB")
    found += faults_of_access(page)
    shoot(page, "admin")
    assert found == []
    assert pages.faults == []


def test_the_keyboard_reaches_the_content_and_the_menu(pages: Pages, job: str):
    page = pages.page("alice")
    page.goto("/ui/jobs")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.reload()
    for _ in range(4):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Jobs", level=1)).to_be_visible()


def test_the_first_page_is_light(pages: Pages):
    with pages.context() as context:
        page = context.new_page()
        answers: list[Response] = []

        def came(answer: Response) -> None:
            answers.append(answer)

        page.on("response", came)
        page.goto("/", wait_until="networkidle")
        assert len(answers) >= 4
        assert sum(len(answer.body()) for answer in answers) < 100_000
        assert {answer.url.partition("/ui/")[0].rstrip("/") for answer in answers} == {AUDIENCE}


def test_pages_speak_the_language_of_the_browser_or_the_chosen_one(pages: Pages):
    with pages.context(locale="it-IT") as context:
        page = context.new_page()
        page.goto("/")
        expect(page.get_by_role("link", name="Accedi")).to_be_visible()
        assert page.locator("html").get_attribute("lang") == "it"
        page.get_by_role("link", name="English").click()
        expect(page.get_by_role("link", name="Sign in")).to_be_visible()


def test_pages_show_what_they_have_without_scripts(pages: Pages, job: str):
    with pages.signed_in("alice", java_script_enabled=False) as context:
        page = context.new_page()
        page.goto("/ui/jobs")
        page.get_by_role("link", name="higgs_1", exact=True).click()
        expect(page.locator("#log")).to_contain_text("the training ends")
        expect(page.locator("#state .state")).to_have_text("finished")
        page.goto("/ui/workspaces")
        page.get_by_label("Name").fill("plain")
        page.get_by_role("button", name="Create").click()
        page.get_by_text("Delete this workspace").first.click()
        page.get_by_role("button", name="Delete this workspace").click()
        expect(page.get_by_role("heading", name="Workspaces", level=1)).to_be_visible()
        assert page.get_by_role("link", name="plain", exact=True).count() == 0


def test_ten_thousand_jobs_and_a_log_of_200_megabytes(pages: Pages, oidc: OidcProvider):
    service = pages.service
    carol = pages.page("carol")
    user = User(oidc.issuer, "carol")
    common = {"user_key": user.key, "phase": "ended", "network": False, "reason": "It was to be.", "submitted": now()}
    common |= dict.fromkeys(("name", "model", "workspace"), "many") | {"state": "failed"}
    common |= dict.fromkeys(("cpus", "memory", "gpus", "seconds", "disk"), 1)
    with service.database.write() as session:
        note_user(session, user, service.policy().quota(user))
        rows = [{**common, "key": f"j{number:020}", "number": number, "attempt": 1} for number in range(10_000)]
        session.execute(insert(JobRow), rows)
    folder = service.settings.data / "jobs" / f"j{9_999:020}"
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        log.truncate(200 * 2**20)
        log.seek(0, 2)
        log.write(b"\nthe last line\n")
    carol.goto("/ui/jobs")
    rows_shown = carol.locator("#rows > tr")
    expect(rows_shown).to_have_count(50)
    carol.get_by_role("link", name="Older ones").click()
    expect(rows_shown).to_have_count(100)
    carol.get_by_role("link", name="Older ones").click()
    expect(rows_shown).to_have_count(150)
    expect(carol.get_by_role("link", name="many_9850", exact=True)).to_be_visible()
    carol.get_by_role("link", name="many_9999", exact=True).click()
    expect(carol.locator("#log")).to_contain_text("the last line")
    assert carol.locator("#log").evaluate("log => log.textContent.length") <= 2**16


def test_what_is_shipped_is_what_npm_has():
    for name, pin in pins().items():
        archive = fetch(name, pin["version"], pin["integrity"])
        for path, target in pin["files"].items():
            assert (STATIC / target).read_bytes() == member(archive, path)
