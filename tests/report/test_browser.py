"""The report in a real browser: it comes to life, stays silent, and reaches for nothing."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from impact_lightning.report.page import write_report
from tests.report import browser, outcomes
from tests.report.browser import DESKTOP, PHONE, Tab
from tests.report.conftest import DICTIONARY, MODELS, NAMES, make_features

pytestmark = pytest.mark.skipif(bool(browser.why_not()), reason=browser.why_not())

CARDS = "#feature-browser .card"
HEADING = "#circuit-viewer .details h4"
SVG = "#circuit-viewer svg.circuit"
TASK = "cube or not, seed 0"


@pytest.fixture(scope="module")
def report(run_folder: Path) -> Path:
    return write_report(run_folder)


@pytest.fixture(scope="module")
def tabs() -> Iterator[Tab]:
    with browser.browser() as tab:
        yield tab


@pytest.fixture
def tab(tabs: Tab, report: Path) -> Iterator[Tab]:
    """Open the report; whatever a test does, nothing may be complained about, and nothing loaded."""
    tabs.said.clear()
    tabs.page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})
    tabs.open(report)
    yield tabs
    assert tabs.said == []
    assert tabs.foreign() == []


def link(kind: str, *parts: object) -> str:
    return f"#{kind}={'/'.join(quote(str(part), safe='') for part in parts)}"


def latents(tab: Tab) -> list[int]:
    return [int(card.get_attribute("data-latent") or -1) for card in tab.page.locator(CARDS).all()]


def numbers(tab: Tab, metric: str) -> list[float]:
    rows = tab.page.locator(f"{CARDS} .numbers > div", has=tab.page.get_by_text(metric, exact=True)).all_inner_texts()
    return [float(row.removeprefix(metric)) for row in rows]


def view_box(tab: Tab) -> list[float]:
    return [float(x) for x in (tab.page.locator(SVG).get_attribute("viewBox") or "").split()]


def node(tab: Tab, name: str) -> str:
    return f'{SVG} .node[aria-label^="{name}"]'


# ------------------------------------------------------------------------------------------------------------- features


def test_a_page_opens_with_every_viewer(tab: Tab) -> None:
    assert tab.page.locator(CARDS).count() == 24
    assert tab.page.locator(f"{SVG} .node").count() == 36
    assert tab.texts("#class-pages h3") == [NAMES[0]]


def test_names_are_shown_as_text(tab: Tab) -> None:
    assert NAMES[1] in tab.texts(f"{CARDS} .badge")
    assert tab.texts("#class-pages .class-list a") == NAMES


@pytest.mark.parametrize("metric", ["Density", "Purity", "Entropy of labels", "Strongest activation"])
def test_sorting_orders_the_cards(tab: Tab, metric: str) -> None:
    form = tab.page.locator("#feature-browser form")
    form.get_by_label("Sort by").select_option(label=metric)
    falling = numbers(tab, metric)
    form.locator(".viewer-order").click()
    rising = numbers(tab, metric)
    assert falling == sorted(falling, reverse=True)
    assert rising == sorted(rising)
    assert falling[0] > rising[0]


@pytest.mark.parametrize(("query", "expected"), [("17", [17]), ("#17", [17]), ("0", []), ("no such class", [])])
def test_search_finds_a_number(tab: Tab, query: str, expected: list[int]) -> None:
    tab.page.get_by_label("Search", exact=True).fill(query)
    assert latents(tab) == expected


def test_search_finds_labels_and_classes_of_the_lens(tab: Tab) -> None:
    tab.page.get_by_label("Search", exact=True).fill('"QUOTES"')
    found = latents(tab)
    assert found
    assert all(latent % 4 in (1, 2) for latent in found)  # the lens shows the label and the class behind it


def test_pages_turn_by_keyboard(tab: Tab) -> None:
    first = latents(tab)
    tab.page.get_by_role("button", name="Next →").first.focus()
    tab.page.keyboard.press("Enter")
    assert not set(latents(tab)) & set(first)
    assert "page 2 of 3" in tab.page.locator("#feature-browser .viewer-pages").first.inner_text()


def test_another_dictionary_shows_other_numbers(tab: Tab) -> None:
    before = numbers(tab, "Density")
    tab.page.get_by_label("Dictionary").select_option(label=f"{MODELS[1]} · {DICTIONARY}")
    assert numbers(tab, "Density") != before


def test_heat_maps_can_be_taken_away(tab: Tab) -> None:
    picture = tab.page.locator(f"{CARDS} canvas[data-drawn]").first
    pixels = "canvas => canvas.toDataURL()"
    with_map = picture.evaluate(pixels)
    tab.page.get_by_label("heat maps").uncheck()
    assert picture.evaluate(pixels) != with_map


# ------------------------------------------------------------------------------------------------------------- circuits


def test_a_click_on_a_node_shows_its_details(tab: Tab) -> None:
    tab.page.locator(node(tab, "blocks.0.mlp_neuron.1")).click()
    details = tab.page.locator("#circuit-viewer .details")
    tab.shows(HEADING, "blocks.0.mlp_neuron.1")
    assert details.locator("canvas").count() == 4
    assert "Comes in from (3)" in details.inner_text()
    assert "Goes out to (3)" in details.inner_text()
    assert tab.page.locator(f"{SVG} .edge.own").count() == 6


def test_edges_in_the_details_lead_to_other_nodes(tab: Tab) -> None:
    tab.page.locator(node(tab, "blocks.0.mlp_neuron.1")).click()
    tab.shows(HEADING, "blocks.0.mlp_neuron.1")
    tab.page.locator("#circuit-viewer .ends a").first.click()
    tab.shows(HEADING, re.compile(r"blocks\.0\.mlp_in\.\d"))
    tab.page.go_back()
    tab.shows(HEADING, "blocks.0.mlp_neuron.1")


def test_labels_of_nodes_are_text(tab: Tab) -> None:
    tab.page.locator(node(tab, "blocks.0.attn_in.0")).click()
    tab.shows(HEADING, "blocks.0.attn_in.0")
    assert "<b>bold</b>" in tab.page.locator("#circuit-viewer .details").inner_text()


def test_the_drawing_is_enlarged_and_moved(tab: Tab) -> None:
    whole = view_box(tab)
    tab.page.get_by_role("button", name="Enlarge").click()
    assert view_box(tab)[2] < whole[2]
    tab.page.get_by_role("button", name="Show all of it").click()
    assert view_box(tab) == whole
    drawing = tab.page.locator(SVG)
    drawing.focus()
    tab.page.keyboard.press("+")
    enlarged = view_box(tab)
    assert enlarged[2] < whole[2]
    tab.page.keyboard.press("ArrowRight")
    assert view_box(tab)[0] > enlarged[0]
    tab.page.keyboard.press("-")
    assert view_box(tab)[2] == pytest.approx(whole[2], abs=0.1)


def test_the_drawing_is_moved_by_dragging_and_enlarged_by_the_wheel(tab: Tab) -> None:
    drawing = tab.page.locator(SVG)
    drawing.scroll_into_view_if_needed()
    whole, box = view_box(tab), drawing.bounding_box()
    assert box is not None
    tab.page.mouse.move(box["x"] + 20, box["y"] + 20)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 120, box["y"] + 40)
    tab.page.mouse.up()
    moved = view_box(tab)
    assert moved[0] < whole[0]
    assert moved[2:] == whole[2:]
    tab.page.mouse.wheel(0, -100)
    tab.page.wait_for_function(
        "([svg, was]) => document.querySelector(svg).viewBox.baseVal.width < was", arg=[SVG, moved[2]]
    )


def test_the_wheel_turns_the_page_unless_the_drawing_has_the_focus(tab: Tab) -> None:
    tab.page.locator(SVG).scroll_into_view_if_needed()
    tab.page.locator(SVG).hover(position={"x": 5, "y": 5})
    whole = view_box(tab)
    tab.page.mouse.wheel(0, 100)
    assert view_box(tab) == whole


def test_nodes_are_reached_by_keyboard(tab: Tab) -> None:
    tab.page.locator(SVG).focus()
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("Enter")
    tab.shows(HEADING, re.compile(r"blocks\.0\.v\.\d"))


def test_the_slider_takes_light_edges_away(tab: Tab) -> None:
    slider = tab.page.get_by_label("Edges shown, heaviest first")
    slider.focus()
    tab.page.keyboard.press("Home")
    assert tab.page.locator(f"{SVG} .edge:visible").count() == 1
    assert "1 of 72 edges" in tab.page.locator("#circuit-viewer .viewer-status").inner_text()
    assert tab.page.locator(f"{SVG} .node.idle").count() == 34


def test_another_task_shows_another_circuit(tab: Tab) -> None:
    tab.page.locator("#circuit-viewer").get_by_label("Task").select_option(label=f"{NAMES[1]} or not, seed 0")
    assert tab.page.locator(f"{SVG} .node").count() == 24


def test_a_node_can_be_chosen_again(tab: Tab) -> None:
    chosen = node(tab, "blocks.0.mlp_neuron.1")
    tab.page.locator(chosen).click()
    tab.shows(HEADING, "blocks.0.mlp_neuron.1")
    for task in (f"{NAMES[1]} or not, seed 0", TASK):
        tab.page.locator("#circuit-viewer").get_by_label("Task").select_option(label=task)
    assert tab.page.locator("#circuit-viewer .details h4").count() == 0
    tab.page.locator(chosen).click()
    tab.shows(HEADING, "blocks.0.mlp_neuron.1")


# -------------------------------------------------------------------------------------------------------------- classes


def test_a_class_has_what_every_level_says_of_it(tab: Tab) -> None:
    tab.page.get_by_role("link", name=NAMES[1], exact=True).last.click()
    page = tab.page.locator("#class-pages .class-page")
    tab.shows("#class-pages h3", NAMES[1])
    assert "dense" in page.locator(".numbers").inner_text()  # the accuracy
    assert page.locator("tbody td:first-child").first.inner_text() == "blocks.1.neurons"
    assert page.locator('a[href^="#feature="]').count() == 24
    assert page.locator('a[href^="#circuit="]').all_inner_texts() == [
        f"{model}: {NAMES[1]} or not, seed 0" for model in MODELS
    ]
    assert page.locator(".map-table").count() == 2


def test_search_narrows_the_list_of_classes(tab: Tab) -> None:
    tab.page.get_by_label("Search classes").fill("CUBE")
    assert tab.texts("#class-pages .class-list a") == ["cube"]


def test_going_back_shows_the_class_before(tab: Tab) -> None:
    listed = tab.page.locator("#class-pages .class-list a")
    for place in (2, 3):
        listed.nth(place).click()
        tab.shows("#class-pages h3", NAMES[place])
    tab.page.go_back()
    tab.shows("#class-pages h3", NAMES[2])


# ---------------------------------------------------------------------------------------------------------- deep links


def test_a_link_opens_a_feature(tab: Tab, report: Path) -> None:
    tab.open(report, link("feature", MODELS[1], DICTIONARY, 33))
    chosen = tab.page.locator(f"{CARDS}.chosen")
    assert chosen.get_attribute("data-latent") == "33"
    assert tab.page.locator(f"{CARDS}:focus").count() == 1
    assert chosen.evaluate(
        "card => card.getBoundingClientRect().top > 0 && card.getBoundingClientRect().bottom < innerHeight"
    )


def test_a_link_opens_a_circuit_and_a_node(tab: Tab, report: Path) -> None:
    tab.open(report, link("circuit", MODELS[1], TASK, 401))
    tab.shows(HEADING, "blocks.0.mlp_neuron.1")
    assert tab.page.locator("#circuit-viewer").get_by_label("Model").input_value() == MODELS[1]


def test_a_link_opens_a_class(tab: Tab, report: Path) -> None:
    tab.open(report, link("class", 3))
    assert tab.texts("#class-pages h3") == [NAMES[3]]


@pytest.mark.parametrize(
    ("hash_", "selector", "said"),
    [
        (link("feature", "none", "of", 1), "#feature-browser", "is not in this page"),
        (link("circuit", "none", "such"), "#circuit-viewer", "There is no circuit"),
        (link("class", 99), "#class-pages", "There is no such class"),
        (link("class", "%3Cimg%3E"), "#class-pages", "There is no such class"),
    ],
)
def test_a_link_to_nothing_says_so(tab: Tab, report: Path, hash_: str, selector: str, said: str) -> None:
    tab.open(report, hash_)
    assert said in tab.page.locator(selector).inner_text()


# --------------------------------------------------------------------------------------------------------------- looks


def test_nothing_is_wider_than_a_phone(tab: Tab, report: Path) -> None:
    tab.page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    tab.open(report, link("class", 1))
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]


def test_pictures_say_what_they_show(tab: Tab) -> None:
    canvas = tab.page.locator(f"{CARDS} canvas").first
    assert re.fullmatch(r"\d/\d{4}\.png: .+", canvas.get_attribute("aria-label") or "")


def test_heat_maps_lie_where_the_latent_fires(tab: Tab, report: Path) -> None:
    """The lightest patch has almost the largest activation, the darkest one almost the smallest: the image differs."""
    tab.open(report, link("feature", MODELS[0], DICTIONARY, 9))
    patches = tab.page.locator(f"{CARDS}.chosen canvas[data-drawn]").first.evaluate(
        """canvas => {
          const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          const sums = new Array(16).fill(0);
          for (let y = 0; y < canvas.height; y++) {
            for (let x = 0; x < canvas.width; x++) {
              const at = 4 * (y * canvas.width + x);
              const patch = Math.floor(y * 4 / canvas.height) * 4 + Math.floor(x * 4 / canvas.width);
              sums[patch] += data[at] + data[at + 1] + data[at + 2];
            }
          }
          return sums;
        }"""
    )
    shown = make_features(0).map[9, 0, 1:]
    assert shown[patches.index(min(patches))] < 0.2
    assert shown[patches.index(max(patches))] > 0.9


def test_following_an_edge_by_keyboard_leads_to_the_other_node(tab: Tab) -> None:
    tab.page.locator(node(tab, "blocks.0.mlp_neuron.1")).click()
    tab.page.locator("#circuit-viewer .ends a").first.focus()
    tab.page.keyboard.press("Enter")
    tab.shows(f"{HEADING}:focus", re.compile(r"blocks\.0\.mlp_in\.\d"))


def test_a_report_of_a_damaged_run_still_opens(tab: Tab, run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    for path in (*folder.rglob("thumbnails.safetensors"), *folder.rglob("tops.json"), *folder.rglob("units.csv")):
        path.unlink()
    for path in (*folder.rglob("maps.safetensors"), *folder.glob("sae/dense/**/features.safetensors")):
        path.write_bytes(b"\0")
    tab.open(write_report(folder))
    assert tab.page.locator(CARDS).count() == 24
    assert tab.texts(f"{CARDS} .picture.blank")[0].startswith("no picture of test image")
    assert tab.texts("#class-pages h3") == [NAMES[0]]
    tab.page.locator(node(tab, "blocks.0.v.1")).click()
    tab.shows(HEADING, "blocks.0.v.1")
    assert "No images of this node" in tab.page.locator("#circuit-viewer .details").inner_text()
    for section, missing in [
        ("features", "features.safetensors"),
        ("circuits_viewer", "tops.json"),
        ("classes", "units.csv"),
    ]:
        assert missing in tab.page.locator(f"#{section} [role=note]").inner_text()


def test_a_viewer_that_fails_takes_no_other_with_it(tab: Tab, report: Path, tmp_path: Path) -> None:
    broken = report.read_text().replace('"dictionaries":[', '"dictionaries_":[')
    (tmp_path / "report.html").write_text(broken)
    tab.open(tmp_path / "report.html")
    assert "cannot be shown" in tab.page.locator("#feature-browser").inner_text()
    assert tab.page.locator(f"{SVG} .node").count() == 36
    assert len(tab.said) == 1
    tab.said.clear()


def test_a_report_of_unkind_names_stays_silent(tab: Tab, tmp_path: Path) -> None:
    outcomes.write_run(tmp_path)
    tab.open(write_report(tmp_path))
    assert tab.page.locator("main > section").count() > 5
    assert tab.texts("#class-pages .class-list a") == outcomes.CLASSES
