"""The HTML report without a browser: its numbers are the records', its links lead somewhere, it loads nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_results import ROOT, TASKS, write_results

from equibench.audit.publish import LARGEST, report_html
from equibench.errors import UserError
from equibench.evaluation.evaluator import EVALUATORS
from equibench.metrics.bootstrap import Ratio
from equibench.records import RECORDS, Record, read_records, write_records
from equibench.report.definition import cells_of, load_definition
from equibench.report.html_figures import COLOURS
from equibench.report.html_recipes import BINS, BOX_HEIGHT, histogram_of, per_image

DEMO = ROOT / "results/demo"


class Page(HTMLParser):
    """Tables as lists of rows of (attributes, text), and every element's attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[dict[str, str | None], str]]]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cell: tuple[dict[str, str | None], str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = (found, "")
        elif tag == "a" and self.cell:
            self.cell = (self.cell[0] | {"href": found["href"]}, self.cell[1])

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self.cell:
            self.tables[-1][-1].append(self.cell)
            self.cell = None

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.cell = (self.cell[0], self.cell[1] + data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record], str]:
    """A table with its predictions, and its report."""
    folder = tmp_path_factory.mktemp("made")
    records = write_results(folder, seeds=(0, 1))
    report_html(folder / "results", out=folder / "report.html", runs=folder / "runs", pictures=False)
    return folder, records, (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of the committed results of the demo profile."""
    folder = tmp_path_factory.mktemp("demo")
    report_html(DEMO, out=folder / "report.html", runs=folder, pictures=False)
    return (folder / "report.html").read_text(encoding="utf-8")


def payload(text: str) -> list[dict]:
    found = re.search(r'<script type="application/json" id="payload">(.*?)</script>', text, flags=re.DOTALL)
    assert found
    return json.loads(found[1])["sources"]


def test_it_is_small_enough(demo: str) -> None:
    assert len(demo.encode()) < LARGEST


def test_the_table_s_numbers_are_those_of_the_records(made: tuple[Path, list[Record], str]) -> None:
    _, records, text = made
    definition, cells = load_definition("table2"), cells_of(records)
    titles = {"Ours": "reconstruction", "VICReg": "vicreg", "SIE(rot)": "sie_rot", "random init": "random_init"}
    lines = Page(text).tables[0][2:]
    assert [line[0][1] for line in lines] == ["SIE(rot)", "VICReg", "Ours", "random init"]
    for line in lines:
        row = titles[line[0][1]]
        for task, said, ours in zip(TASKS, line[1::2], line[2::2], strict=True):
            cell = cells[row, task]
            assert float(ours[0]["data-v"] or "nan") == cell.value
            assert f"{cell.value:.3f}" in ours[1]
            assert f"{cell.low:.3f} to {cell.high:.3f}" in ours[1]
            printed = definition.published.loc[row, task] if row in definition.rows else "–"
            assert said[1] == printed
            assert ours[0]["data-t"] == said[0]["data-t"] == task


def test_ties_and_the_best_are_shown_by_the_paired_test(made: tuple[Path, list[Record], str]) -> None:
    lines = {line[0][1]: line for line in Page(made[2]).tables[0][2:]}
    for column in (2, 4):
        classes = {name: line[column][0].get("class") or "" for name, line in lines.items()}
        assert "best" in classes["Ours"]
        assert "second" not in "".join(classes.values())  # VICReg and SIE(rot) differ by chance


def test_every_number_leads_to_a_recipe_that_names_its_records(made: tuple[Path, list[Record], str]) -> None:
    _, records, text = made
    recipes = dict(re.findall(r'<dl id="([^"]+)">(.*?)</details>', text, flags=re.DOTALL))
    by_row = {"Ours": "reconstruction", "VICReg": "vicreg", "SIE(rot)": "sie_rot", "random init": "random_init"}
    for line in Page(text).tables[0][2:]:
        for attributes, _ in line[2::2]:
            recipe = recipes[str(attributes["href"]).removeprefix("#")]
            mine = [r for r in records if (r.baseline, r.task) == (by_row[line[0][1]], attributes["data-t"])]
            assert len(mine) == 2
            for record in mine:
                assert (record.signature if record.features == "full" else record.identifier) in recipe
                for digest in (record.evaluation_sha256, record.data_sha256, record.pairs_sha256):
                    assert digest[:16] in recipe
                assert record.command in recipe
            assert recipe.count('class="histogram"') == 2


def test_all_anchors_of_the_demo_are_there_and_none_twice(demo: str) -> None:
    elements = Page(demo).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(attributes["href"]) for tag, attributes in elements if tag == "a"]
    assert len(links) > 500
    assert {link.removeprefix("#") for link in links} <= set(ids)
    inner = re.findall(r'(?:href="#|url\(#)([\w-]+)', demo)
    assert set(inner) <= set(ids)


def test_the_payload_is_the_csv(demo: str) -> None:
    sources = payload(demo)
    files = {str(p.parent): next(p.parent.glob("*.csv")) for p in DEMO.rglob(RECORDS)}
    assert {source["path"] for source in sources} == set(files)
    for source in sources:
        text = files[source["path"]].read_text(encoding="utf-8")
        read = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
        assert source["columns"] == list(read.columns)
        assert len(source["rows"]) == len(read)
        for line, said in zip(source["rows"], read.to_numpy().tolist(), strict=True):
            for value, written in zip(line, said, strict=True):
                if isinstance(value, bool):
                    assert str(value).lower() == written.lower()
                elif isinstance(value, float | int):
                    assert value == pytest.approx(float(written), abs=1e-12)
                else:
                    assert (value or "") == written


def test_it_can_load_nothing_and_run_its_own_script_alone(demo: str) -> None:
    elements = Page(demo).elements
    policy = next(a["content"] for tag, a in elements if a.get("http-equiv") == "Content-Security-Policy") or ""
    script = demo[demo.rindex("<script>") + len("<script>") : demo.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"
    assert not {"connect-src", "font-src", "frame-src", "object-src"} & set(rules)
    assert not [tag for tag, _ in elements if tag in ("link", "iframe", "object", "embed", "base")]
    for _, attributes in elements:
        assert str(attributes.get("src", "data:")).startswith("data:")
        assert not [name for name in attributes if name.startswith("on")]
    assert "@import" not in demo
    assert len(script.splitlines()) <= 150


def test_figures_have_captions_and_the_page_s_own_ink(demo: str) -> None:
    assert demo.count("<figure") == demo.count("<figcaption") > 4
    assert demo.count("<svg") == demo.count('<svg role="img" aria-label="') > 20
    assert "#010203" not in demo
    assert demo.count("<table") == demo.count("<caption") > 20


def test_a_report_is_the_same_every_time(made: tuple[Path, list[Record], str]) -> None:
    folder, _, text = made
    report_html(folder / "results", out=folder / "again.html", runs=folder / "runs", pictures=False)
    assert (folder / "again.html").read_text(encoding="utf-8") == text


def test_texts_of_others_are_printed_and_not_obeyed(tmp_path: Path) -> None:
    write_results(tmp_path)
    path = tmp_path / "results/tiny/table2" / RECORDS
    evil = "</script><script>alert(1)</script>"
    records = [r.model_copy(update={"command": evil, "encoder": evil}) for r in read_records(path)]
    write_records(path, records)
    csv = path.parent / "table2.csv"
    csv.write_text(csv.read_text(encoding="utf-8").replace("VICReg", evil), encoding="utf-8")
    report_html(path, out=tmp_path / "report.html", runs=tmp_path / "runs", pictures=False, title=evil)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert text.count("</script>") == 2
    assert "&lt;script&gt;alert(1)" in text
    assert evil in [line[1] for line in payload(text)[0]["rows"]]


def test_tasks_of_others_are_left_out_and_named(tmp_path: Path) -> None:
    records = write_results(tmp_path)
    path = tmp_path / "results/tiny/table2" / RECORDS
    write_records(path, [*records, records[0].model_copy(update={"task": "shear"})])
    report_html(path, out=tmp_path / "report.html", runs=tmp_path / "runs", pictures=False)
    assert "Left out: the tasks shear" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_table_of_ones_own_is_shown_as_its_csv_says(tmp_path: Path) -> None:
    report_html(ROOT / "results/cifar10/ablations", out=tmp_path / "r.html", runs=tmp_path, pictures=False)
    names = [line[0][1] for line in Page((tmp_path / "r.html").read_text(encoding="utf-8")).tables[0][1:]]
    assert names == list(pd.read_csv(ROOT / "results/cifar10/ablations/ablations.csv")["title"])


def test_without_matplotlib_figures_are_left_out_with_a_reason(
    made: tuple[Path, list[Record], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equibench.report.html_figures.importlib.util.find_spec", lambda name: None)
    written = report_html(made[0] / "results", out=tmp_path / "r.html", runs=made[0] / "runs", pictures=False)
    assert any("equibench[plot]" in note for note in written.left_out)


def test_what_makes_it_too_large_is_dropped_and_said(
    made: tuple[Path, list[Record], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equibench.audit.publish.LARGEST", 1000)
    written = report_html(made[0] / "results", out=tmp_path / "r.html", runs=made[0] / "runs", pictures=False)
    assert [note.partition(":")[0] for note in written.left_out] == ["histograms of per-image errors", "pictures"]
    assert 'class="histogram"' not in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_an_empty_folder_is_refused_with_the_command_that_makes_a_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="equibench table table2 --profile tiny"):
        report_html(tmp_path, out=tmp_path / "r.html")


def test_per_image_errors_are_what_the_score_is_made_of() -> None:
    rng = np.random.default_rng(0)
    targets, predictions = rng.normal(size=(500, 2)), rng.normal(size=(3, 500, 2))
    std = np.array([2.0, 0.5])
    arrays = {
        "targets": targets, "mean": np.array([1.0, -1.0]), "std": std, "size": np.array(32),
        "transformation": np.array("translation"), "full/predictions": predictions,
    }  # fmt: skip
    base = read_records(DEMO / "table2" / RECORDS)[0].model_copy(update={"features": "full"})
    found = per_image(base, arrays)
    assert found is not None
    expected = [np.sqrt(np.mean(((predictions[:, i] - targets[i]) / std) ** 2)) for i in range(500)]
    np.testing.assert_allclose(found[0], expected)
    drawn = histogram_of(base, arrays)
    assert drawn is not None
    steps = [BOX_HEIGHT - float(top) for top in re.findall(r"V([\d.]+)h1", drawn.path)]
    top = np.quantile(expected, 0.99)
    counts, _ = np.histogram(np.minimum(expected, top), bins=BINS, range=(0, top))
    np.testing.assert_allclose(steps, BOX_HEIGHT * counts / counts.max(), atol=0.51)


def test_shares_of_a_ratio_average_to_the_score() -> None:
    rng = np.random.default_rng(1)
    ratio = Ratio(rng.uniform(size=200), rng.uniform(1, 2, size=200))
    arrays = {"full/invariance_ratio": np.stack([ratio.top, ratio.bottom])}
    base = read_records(DEMO / "table2" / RECORDS)[0]
    named = {"evaluator": "invariance", "main_metric": "invariance_ratio", "features": "full"}
    found = per_image(base.model_copy(update=named), arrays)
    assert found is not None
    assert "invariance" in EVALUATORS.names()
    assert found[0].mean() == pytest.approx(ratio.value)


def test_lines_are_seen_on_white_and_on_dark() -> None:
    style = (ROOT / "equibench/report/page.css").read_text(encoding="utf-8")
    dark = style.split("prefers-color-scheme: dark")[1].split("--paper:")[1].split(";")[0].strip()
    for colour in COLOURS:
        for ground in ("#ffffff", dark):
            bright, dim = sorted((luminance(colour), luminance(ground)), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 3, (colour, ground)  # WCAG 2.1, 1.4.11


def test_a_heat_map_s_numbers_can_be_read_on_its_deepest_colour() -> None:
    style = (ROOT / "equibench/report/page.css").read_text(encoding="utf-8")
    share = float(re.findall(r"var\(--s, 0\) \* (\d+)%", style)[0]) / 100
    blocks = re.findall(r":root \{[^}]*--ink: (#\w+); --paper: (#\w+);[^}]*--heat: (#\w+);", style)
    assert len(blocks) == 3  # light, dark, print
    for found in blocks:
        ink, paper, heat = (c if len(c) == 7 else "#" + "".join(2 * x for x in c[1:]) for c in found)
        parts = [(int(heat[i : i + 2], 16), int(paper[i : i + 2], 16)) for i in (1, 3, 5)]
        ground = "#" + "".join(f"{round(share * one + (1 - share) * other):02x}" for one, other in parts)
        bright, dim = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (ink, ground)  # WCAG 2.1, 1.4.3


def luminance(colour: str) -> float:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
