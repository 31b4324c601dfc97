"""The report in headless Chromium: no error, no request; it sorts, filters, opens recipes, and is legible.

Needs Debian's chromium (or one that $CHROMIUM names) and the Python packages of the extra `dev`; skipped without.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from report_results import ROOT, write_results

from equibench.audit.publish import report_html
from equibench.records import Record
from equibench.report.definition import cells_of

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
TABLE = "#s1 table >> nth=0"
"""Table 2 with predictions, behind the committed Table 1."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """A report of a committed table, and of one with predictions."""
    folder = tmp_path_factory.mktemp("made")
    records = write_results(folder)
    places = [ROOT / "results/demo/table1", folder / "results"]
    report_html(places, out=folder / "report.html", runs=folder / "runs", pictures=False)
    return folder / "report.html", records


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(made: tuple[Path, list[Record]], browser: sync_api.Browser) -> Iterator[sync_api.Page]:
    """The report, opened; at the end nothing may have been said on the console, and nothing asked of a network."""
    said: list[str] = []
    found = browser.new_page()
    found.on("console", lambda message: said.append(message.text))
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("request", lambda request: said.append(request.url) if request.url != made[0].as_uri() else None)
    found.goto(made[0].as_uri())
    yield found
    found.close()
    assert said == []


def shown(page: sync_api.Page, column: int) -> list[tuple[str, float | None]]:
    """Row names and sorted values of a column of Table 2, as far as they are visible."""
    script = """([table, column]) => [...document.querySelectorAll(table)[0].tBodies[0].rows]
        .filter(row => row.checkVisibility())
        .map(row => [row.cells[0].textContent, row.cells[column].dataset.v ?? null])"""
    rows = page.evaluate(script, ["#s1 table", column])
    return [(name, None if value is None else float(value)) for name, value in rows]


def test_the_policy_stops_what_a_page_could_load(made: tuple[Path, list[Record]], browser: sync_api.Browser) -> None:
    page = browser.new_page()
    page.goto(made[0].as_uri())
    script = (
        """async () => { try { await fetch("data:text/plain,x"); return "loaded"; } catch { return "stopped"; } }"""
    )
    blocked = page.evaluate(
        """() => new Promise(done => {
            document.addEventListener("securitypolicyviolation", event => done(event.effectiveDirective));
            document.head.append(Object.assign(document.createElement("script"), {textContent: "window.ran = 1"}));
        })"""
    )
    assert blocked == "script-src-elem"
    assert page.evaluate("window.ran") is None
    assert page.evaluate(script) == "stopped"
    page.close()


def test_numbers_on_the_page_are_those_of_the_records(page: sync_api.Page, made: tuple[Path, list[Record]]) -> None:
    cells = cells_of(made[1])
    titles = {"Ours": "reconstruction", "VICReg": "vicreg", "SIE(rot)": "sie_rot", "random init": "random_init"}
    for column, task in ((2, "rotation"), (4, "blur")):
        found = dict(shown(page, column))
        assert {titles[name]: value for name, value in found.items()} == {
            row: cell.value for (row, name), cell in cells.items() if name == task
        }


@pytest.mark.parametrize("column", [1, 2, 4])
def test_a_head_sorts_down_then_up_and_keeps_what_is_empty_below(page: sync_api.Page, column: int) -> None:
    head = page.locator(f"{TABLE} >> thead >> tr >> nth=1 >> th >> nth={column - 1} >> button")
    for order, sign in (("descending", -1), ("ascending", 1)):
        head.press("Enter")
        values = [value for _, value in shown(page, column)]
        there = [value for value in values if value is not None]
        assert there == sorted(there, key=lambda value: sign * value)
        assert values[: len(there)] == there
        assert page.locator(f"{TABLE} >> th[aria-sort]").get_attribute("aria-sort") == order


def test_rows_sort_by_name(page: sync_api.Page) -> None:
    page.locator(f"{TABLE} >> thead >> th >> nth=0 >> button").click()
    names = [name.lower() for name, _ in shown(page, 2)]
    assert names == sorted(names)
    assert len(names) == 4


def test_rows_columns_profiles_and_data_are_filtered(page: sync_api.Page) -> None:
    page.get_by_role("searchbox", name="Row").fill("vic")
    assert [name for name, _ in shown(page, 2)] == ["VICReg"]
    page.get_by_role("searchbox", name="Row").fill("")
    page.get_by_role("combobox", name="Column").select_option("blur")
    visible = page.locator(f"{TABLE} >> thead >> th:visible").all_inner_texts()
    assert [text.split(" ")[0] for text in visible] == ["Row", "Blur", "published", "ours"]
    assert page.locator("#s0 table:visible").count() == 0  # Table 1 has no such column
    page.get_by_role("button", name="Show all").click()
    page.locator("#s0 table").first.wait_for(state="visible")
    page.get_by_role("combobox", name="Profile").select_option("tiny")
    assert not page.locator("#s0").is_visible()
    assert page.locator("#s1").is_visible()
    page.get_by_role("combobox", name="Profile").select_option("")
    page.get_by_role("combobox", name="Data").select_option("rendered-objects")
    assert page.locator("#s0").is_visible()
    assert not page.locator("#s1").is_visible()
    assert page.locator("#f-said").inner_text().endswith("shown")


def test_a_number_opens_its_recipe_and_escape_goes_back(page: sync_api.Page, made: tuple[Path, list[Record]]) -> None:
    link = page.locator(f"{TABLE} >> tbody >> tr >> nth=2 >> td >> nth=1 >> a")
    link.focus()
    page.keyboard.press("Enter")
    record = next(r for r in made[1] if (r.baseline, r.task) == ("reconstruction", "rotation"))
    text = page.locator("dialog").inner_text()
    for said in (record.signature, record.command, str(record.encoder_sha256)[:16], f"r2 {record.interval()[0]:.4f}"):  # type: ignore[index]
        assert str(said) in text
    assert page.locator("dialog .histogram path").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert link.evaluate("link => link === document.activeElement")


def test_the_csv_that_is_downloaded_is_the_file(page: sync_api.Page, made: tuple[Path, list[Record]]) -> None:
    with page.expect_download() as download:
        page.locator("#s0 .export button").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    written = (ROOT / "results/demo/table1/table1.csv").read_text(encoding="utf-8")
    assert [line.split(",")[:2] for line in text.splitlines()] == [line.split(",")[:2] for line in written.splitlines()]
    numbers = [[c for c in line.split(",")[2:]] for line in text.splitlines()[1:]]
    expected = [[c for c in line.split(",")[2:]] for line in written.splitlines()[1:]]
    for ours, theirs in zip(numbers, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one == other or np.isclose(float(one), float(other))


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_screen(
    made: tuple[Path, list[Record]], browser: sync_api.Browser, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 740})
    page.goto(made[0].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = """() => [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, svg, .skip, dialog")
        && e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)
        .map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(beyond) == []
    page.close()


def test_it_reads_without_scripts(made: tuple[Path, list[Record]], browser: sync_api.Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(made[0].as_uri())
    assert page.locator("#s1 table >> nth=0 >> tbody >> tr").count() == 4
    assert page.get_by_text("Scripts are off").is_visible()
    assert not page.locator("#filters").is_visible()
    link = page.locator("#s1 table >> nth=0 >> td a >> nth=0")
    link.click()
    target = (link.get_attribute("href") or "").removeprefix("#")
    assert page.locator(f"#{target}").is_visible()
    assert page.locator("details[open]").count() == 1
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(made: tuple[Path, list[Record]], browser: sync_api.Browser, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)  # axe itself is a script
    page = context.new_page()
    page.goto(made[0].as_uri())
    for step in ("the page", "a recipe"):
        if step == "a recipe":
            page.locator("#s1 table td a >> nth=0").click()
        found = axe.Axe().run(page).response["violations"]
        said = [(v["id"], v["nodes"][0]["html"][:120], v["nodes"][0]["failureSummary"][:300]) for v in found]
        assert not said, f"{step}, {scheme}: {json.dumps(said, indent=1)}"
    context.close()
