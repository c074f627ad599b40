"""What the service shows of the store: versions, cards, comparisons, leaderboards; and its pages in a real Chromium."""

import re
from typing import Any

import pytest

from mnist_pipeline.stores.objects import EXPERIMENTS
from mnist_pipeline_tests.serve.conftest import GOOD
from mnist_pipeline_tests.serve.service import Service
from mnist_pipeline_tests.serve.test_operations import TOKEN
from mnist_pipeline_tests.serve.test_predict import error
from mnist_pipeline_tests.versions import save

PAGE = b"""<!doctype html><html><head><title>A card</title><style>main { color: rgb(1, 2, 3); }</style>
</head><body><main>
<h1>A card</h1><p>Its <a data-version="%s" href="../x/card.html">rival</a></p>
<table class="sortable"><thead><tr><th>name</th><th>score</th></tr></thead><tbody>
<tr><td>b</td><td><data value="0.10049">0.1005</data></td></tr>
<tr><td>a</td><td><data value="10.0">10.0000</data></td></tr>
<tr><td>c</td><td>\xe2\x80\x93</td></tr>
<tr><td>d</td><td><data value="9.5">9.5000</data></td></tr></tbody></table>
<img src="x" onerror="document.title = 'broken in'"><script>document.title = 'broken in'</script>
</main></body></html>"""


@pytest.fixture
def other(store, good) -> str:
    return save(store, good, GOOD).name


def test_versions_are_listed_with_their_state_and_pages_are_as_they_are_kept(service, store, deployed, other):
    store.put(f"{other}/card.html", PAGE % deployed.encode())
    store.put(f"{other}/compared/{deployed}.html", b"<!doctype html>compared")
    store.put(f"{EXPERIMENTS}rates/leaderboard.html", b"<!doctype html>ranked")
    store.put(f"{EXPERIMENTS}.named/20260101T000000.000Z_rates", b"")
    answer = service.client.get("/versions").json()
    assert [(one["version"], one["state"]) for one in answer["versions"]] == [
        (other, ""),
        (deployed, "deployed, reference"),
    ]
    assert (answer["total"], answer["sweeps"]) == (2, ["rates"])
    assert [one["version"] for one in service.client.get("/versions", params={"limit": 1}).json()["versions"]] == [
        other,
        deployed,  # what is in use is always there
    ]
    for path, content in {
        f"/versions/{other}/card": PAGE % deployed.encode(),
        f"/versions/{other}/compared/{deployed}": b"<!doctype html>compared",
        "/sweeps/rates/leaderboard": b"<!doctype html>ranked",
    }.items():
        found = service.client.get(path)
        assert (found.status_code, found.content) == (200, content)
        assert found.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "unsafe" not in found.headers["Content-Security-Policy"]
    assert service.client.get(f"/versions/{other}/compared").json() == [deployed]
    assert service.client.get(f"/versions/{deployed}/compared").json() == []


def test_what_is_not_there_is_said_with_the_command_that_makes_it(service, deployed, other):
    for path, said in {
        f"/versions/{deployed}/card": f"python -m mnist_pipeline card {deployed} makes one",
        f"/versions/{deployed}/compared/{other}": f"python -m mnist_pipeline compare {deployed} {other} does",
        "/sweeps/none/leaderboard": "there is no leaderboard of a sweep 'none'",
        "/sweeps/..%2F..%2Fx/leaderboard": "Not Found",
        "/sweeps/a-b/leaderboard": "there is no leaderboard",
        "/versions/..%2Fproduction.json/card": "Not Found",
        "/versions/production.json/card": "is not the name of a version",
        f"/versions/{deployed}/compared/production.json": "is not the name of a version",
    }.items():
        status, code, message = error(service.client.get(path))
        assert (status, code) == (404, "not_found"), path
        assert said in message
    for limit in ("0", "201", "x"):
        assert error(service.client.get("/versions", params={"limit": limit}))[:2] == (422, "bad_parameter")


def test_data_of_the_store_needs_the_token_and_the_pages_ask_for_it(store, deployed, labelled, browser):
    store.put(f"{deployed}/card.html", PAGE % deployed.encode())
    with Service(store, labelled, token=TOKEN) as service:
        for path in ("/models", f"/models/{deployed}", "/leaderboards/x", "/static/sort.js", "/static/report.js"):
            answer = service.client.get(path)
            assert answer.status_code == 200
            assert deployed not in answer.text
            assert not re.search(r'(src|href)="(https?:)?//', answer.text)
        for path in (
            "/versions",
            f"/versions/{deployed}/card",
            f"/versions/{deployed}/compared",
            "/sweeps/x/leaderboard",
        ):
            assert error(service.client.get(path))[:2] == (401, "unauthorized")
        page = browser.new_page()
        page.goto(f"{service.url}/models/{deployed}")
        page.locator("dialog input").fill(TOKEN)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="A card").wait_for()
        page.close()


SIZES: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1100, "height": 800}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1100, "height": 800}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}


@pytest.mark.parametrize("size", SIZES)
def test_the_pages_in_a_browser(service, store, deployed, other, browser, size):
    store.put(f"{other}/card.html", PAGE % deployed.encode())
    store.put(f"{deployed}/card.html", PAGE.replace(b"A card", b"Another") % other.encode())
    store.put(f"{EXPERIMENTS}rates/leaderboard.html", PAGE.replace(b"A card", b"A leaderboard") % other.encode())
    store.put(f"{EXPERIMENTS}.named/20260101T000000.000Z_rates", b"")
    store.put(f"{other}/compared/{deployed}.html", PAGE.replace(b"A card", b"Two compared") % other.encode())
    context = browser.new_context(**SIZES[size])
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda found: problems.append(str(found)))
    # A script or a handler in what is kept is told as blocked, and nothing else.
    page.on("console", lambda told: problems.append(told.text) if "inline style" in told.text else None)

    def fits() -> bool:
        return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")

    page.goto(f"{service.url}/models")
    rows = page.locator("#versions tbody tr")
    rows.first.wait_for()
    assert [text.split("\t")[1] for text in rows.all_inner_texts()] == [other, deployed]
    assert fits()
    page.get_by_role("button", name="version", exact=True).click()
    shown = [text.split("\t")[1] for text in rows.all_inner_texts()]
    assert shown == sorted([other, deployed])

    page.get_by_role("link", name=other).click()
    page.get_by_role("heading", name="A card").wait_for()
    assert page.title() == "A card"  # nothing in it runs
    assert page.evaluate("getComputedStyle(document.querySelector('main')).color") == "rgb(1, 2, 3)"
    assert fits()
    page.get_by_role("link", name="rival").click()
    page.get_by_role("heading", name="Another").wait_for()
    assert page.url == f"{service.url}/models/{deployed}"

    page.get_by_role("link", name="Models").click()
    for name in (deployed, other):
        page.get_by_label(f"compare {name}").check()
    page.get_by_role("button", name="Compare two").click()
    page.get_by_role("heading", name="Two compared").wait_for()

    page.get_by_role("link", name="Models").click()
    page.get_by_role("link", name="rates").click()
    page.get_by_role("heading", name="A leaderboard").wait_for()
    score, cells = page.get_by_role("button", name="score"), page.locator("main tbody tr td:first-child")
    score.click()
    assert cells.all_inner_texts() == ["b", "d", "a", "c"]  # by number, what is not known last
    score.click()
    assert cells.all_inner_texts() == ["a", "d", "b", "c"]
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("score")

    page.goto(f"{service.url}/models/none")
    page.get_by_text("'none' is not the name of a version").wait_for()
    assert problems == []
    context.close()


def test_two_that_were_not_compared_are_told_the_command(service, deployed, other, browser):
    page = browser.new_page()
    page.goto(f"{service.url}/models")
    for name in (deployed, other):
        page.get_by_label(f"compare {name}").check()
    page.get_by_role("button", name="Compare two").click()
    page.get_by_text("The page is made by: python -m mnist_pipeline compare").wait_for()
    page.close()


def test_an_empty_store_says_so(store, browser):
    with Service(store) as service:
        page = browser.new_page()
        page.goto(f"{service.url}/models")
        page.get_by_text("There is no version yet.").wait_for()
        page.close()
