"""The report's page in a real browser: how it looks, and what a reader does with it."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from suite.report import page
from suite.results.store import Store

pytestmark = pytest.mark.full
PUBLISHED = Path(__file__).parents[2] / "results" / "published" / "amd-epyc-2-cores"
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, html: str, tmp_path: Path) -> Iterator[Any]:
    """The page in a browser, drawn; fails if anything was asked of the network or the console had an error."""
    view = browser.new_page(viewport={"width": 1400, "height": 900})
    complaints: list[str] = []
    view.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    view.on("pageerror", lambda error: complaints.append(str(error)))
    view.on("request", lambda request: None if request.url.startswith("file:") else complaints.append(request.url))
    view.goto((tmp_path / "out" / "index.html").as_uri())
    wait_for_plots(view)
    yield view
    assert complaints == []
    view.close()


def wait_until(view: Any, expression: str) -> None:
    """Not Playwright's own `wait_for_function`: it evaluates text in the page, whose policy forbids that."""
    end = monotonic() + 30
    while not view.evaluate(expression):
        assert monotonic() < end, expression
        view.wait_for_timeout(20)


def wait_for_plots(view: Any) -> None:
    wait_until(view, "[...document.querySelectorAll('figure[data-figure]')].every(each => each.dataset.drawn)")


def models(view: Any) -> list[str]:
    """Models of the visible rows of Table 2, from top to bottom."""
    return list(view.locator("#table2 tbody tr:visible th").all_inner_texts())


def test_every_plot_draws(opened: Any) -> None:
    titles = opened.evaluate("figures.map(each => each.title)")
    assert {title.partition(",")[0] for title in titles} == {
        "Test error against latency",
        "Learning curves",
        "Latency",
        "Gains of the rewrites",
        "NormProp's promise",
        "Figure 2",
        "Figure 3",
    }
    for frame in opened.locator("figure[data-figure]").all():
        for choice in range(max(1, frame.locator("option").count())):
            if frame.locator("select").count():
                frame.locator("select").select_option(index=choice)
            assert frame.locator(".plot svg path").count() > 4
            assert len(frame.locator(".plot svg text").all_inner_texts()) > 3


@pytest.mark.parametrize("width", [500, 1024, 1280])
def test_the_list_of_a_figures_plots_shows_its_choice_in_full(browser: Any, tmp_path: Path, width: int) -> None:
    page.write(Store(PUBLISHED), tmp_path)
    view = browser.new_page(viewport={"width": width, "height": 900})
    view.goto((tmp_path / "index.html").as_uri())
    view.wait_for_selector("#speed figure[data-drawn]")
    for choice in view.locator("#speed select").all():
        # The width that it would take for its text, beside the one that it has.
        wanted = choice.evaluate("""(select) => {
          const copy = select.cloneNode(true);
          copy.style.cssText = "position: absolute; max-width: none; flex: none";
          copy.replaceChildren(...[...select.options].map((option) => option.cloneNode(true)));
          select.parentNode.append(copy);
          const found = copy.getBoundingClientRect().width;
          copy.remove();
          return found;
        }""")
        assert choice.bounding_box()["width"] >= wanted - 1
    view.close()


def test_a_heading_sorts_up_then_down_with_what_is_empty_last(opened: Any) -> None:
    opened.locator("#table2").get_by_label("rows not run").check()
    heading = opened.locator('#table2 th[data-key="top1"]')
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert models(opened)[:3] == ["resnet110_crelu_bn", "resnet110_relu_bn", "resnet110_relu_plain"]
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    # Down, the one on CIFAR-100 comes first; the quick run has no error to be sorted by.
    assert models(opened)[1:4] == ["resnet110_relu_plain", "resnet110_relu_bn", "resnet110_crelu_bn"]
    assert len(models(opened)) == 20
    model = opened.locator("#table2 th.model").first
    model.get_by_role("button").click()
    assert models(opened) == sorted(models(opened))
    assert heading.get_attribute("aria-sort") == "none"


def test_the_filter_leaves_rows_with_all_its_words_and_counts_them(opened: Any) -> None:
    assert len(models(opened)) == 6
    opened.locator("#table2").get_by_label("rows not run").check()
    field = opened.locator("#table2").get_by_label("Filter rows")
    field.fill("crelu_bn CIFAR-100")
    assert models(opened) == ["resnet110_crelu_bn"]
    assert opened.locator("#table2 output").inner_text() == "1 of 20 rows"
    field.fill("")
    assert len(models(opened)) == 20


def hover(view: Any, place: Any) -> str:
    """What the tooltip of some point of a scatter plot says."""
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    for path in place.locator("svg path").all():
        spot = path.bounding_box()
        if spot and 8 <= spot["width"] <= 24 and spot["y"] < box["y"] + 300:
            view.mouse.move(spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2)
            view.wait_for_timeout(200)
            said = [text for text in place.locator("> div").all_inner_texts() if "median" in text]
            if said:
                return str(said[-1])
    return pytest.fail("no point has a tooltip")


def test_a_point_says_on_hover_what_it_is(opened: Any) -> None:
    name, *figures = hover(opened, opened.locator("#question .plot").first).splitlines()
    assert name.startswith("resnet110_")
    assert re.fullmatch(r"latency, median \(ms\): [\d.]+", figures[0])
    assert re.fullmatch(r"test error \(%\): [\d.]+", figures[1])


def test_markup_in_names_is_shown_as_text(opened: Any, evil: str) -> None:
    shown = evil.replace("\x1b", "\\x1b")
    assert shown in opened.locator("header p").inner_text()
    choice = opened.locator("#question select").first
    setups = choice.locator("option").evaluate_all("all => all.map((each) => each.parentNode.label)")
    (number,) = [number for number, setup in enumerate(setups) if shown in setup]
    choice.select_option(index=number)
    assert shown in opened.locator("#question .note").first.inner_text()
    hover(opened, opened.locator("#question .plot").first)
    assert opened.locator("main b").count() == 0
    assert opened.evaluate("window.hacked") is None


def test_markup_in_a_point_s_name_is_shown_as_text(opened: Any, evil: str) -> None:
    """Names of models come from tables today; the page does not rely on that."""
    opened.evaluate("name => { figures[0].plots[0].series.forEach(each => each.labels.fill(name)) }", evil)
    assert evil in hover(opened, opened.locator("#question .plot").first)
    opened.locator("#question details.values summary").first.click()
    opened.locator("#question details.values td", has_text="hacked").first.wait_for()
    assert opened.locator("main b").count() == 0
    assert opened.evaluate("window.hacked") is None


def test_the_values_of_a_plot_can_be_read_as_a_table(opened: Any) -> None:
    opened.locator("#question details.values summary").first.click()
    rows = opened.locator("#question details.values tr")
    wait_until(opened, "document.querySelectorAll('#question details.values tr').length === 5")
    assert rows.first.locator("th").all_inner_texts()[1:] == ["latency, median (ms)", "test error (%)"]
    assert rows.count() == 5  # the heading, the two nets of the machine with most, and the front's two points


def test_the_published_results_are_a_page_that_one_reads_to_its_end(browser: Any, tmp_path: Path) -> None:
    view = browser.new_page(viewport={"width": 1400, "height": 900})
    view.goto(page.write(Store(PUBLISHED), tmp_path / "out").as_uri())
    wait_for_plots(view)
    assert view.evaluate("document.documentElement.scrollHeight") <= 8000
    assert len(view.locator("body").inner_text().split()) <= 3000
    assert view.locator("#question .plot svg").first.bounding_box()["y"] < 900, "the first screen has the plot"
    cut = view.evaluate(
        "[...document.querySelectorAll('.legend, .key')].filter(each => each.scrollWidth > each.clientWidth).length"
    )
    assert cut == 0
    view.close()


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_and_follows_the_colour_scheme(
    browser: Any, html: str, tmp_path: Path, width: int, scheme: str
) -> None:
    view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    view.goto((tmp_path / "out" / "index.html").as_uri())
    wait_for_plots(view)
    assert view.evaluate("document.documentElement.scrollWidth") == width
    ground = view.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")
    view.close()


def test_a_switch_shows_all_columns_under_headings_that_still_fit(opened: Any) -> None:
    def shown() -> list[int]:
        """Columns, and those that the line of groups spans."""
        cells = opened.locator("#table2 thead tr:visible").last.locator("th:visible").count()
        spans = opened.locator("#table2 .groups:visible > *").evaluate_all("all => all.map(each => each.colSpan)")
        return [cells, sum(spans)]

    few = shown()
    assert few[0] == few[1] < 10
    opened.locator("#table2").get_by_label("more columns").check()
    many = shown()
    assert many[0] == many[1] > 20
    assert opened.locator("#table2 tbody tr").first.locator("th:visible, td:visible").count() == many[0]


def test_the_model_stays_in_sight_however_far_a_table_is_scrolled(browser: Any, html: str, tmp_path: Path) -> None:
    view = browser.new_page(viewport={"width": 390, "height": 900})
    view.goto((tmp_path / "out" / "index.html").as_uri())
    view.locator("#table2").get_by_label("more columns").check()
    view.locator("#table2 .scroll").evaluate("each => { each.scrollLeft = 1500 }")
    assert view.locator("#table2 tbody .model:visible").first.bounding_box()["x"] < 30
    view.close()


def test_a_narrow_screen_shows_data_and_errors_and_not_what_the_model_s_name_says(
    browser: Any, html: str, tmp_path: Path
) -> None:
    view = browser.new_page(viewport={"width": 390, "height": 900})
    view.goto((tmp_path / "out" / "index.html").as_uri())
    assert not view.locator('#table2 th[data-key="heading_0"]').is_visible()
    assert not view.locator('#table2 th[data-key="heading_1"]').is_visible()
    for key in ("heading_2", "paper_top1", "top1"):
        box = view.locator(f'#table2 th[data-key="{key}"]').bounding_box()
        assert box["x"] + box["width"] <= 390, key
    cells = view.locator("#table2 thead tr:visible").last.locator("th:visible").count()
    spans = view.locator("#table2 .groups:visible > *:visible").evaluate_all("all => all.map(each => each.colSpan)")
    assert sum(spans) == cells
    view.close()


def test_a_short_table_is_shown_whole(opened: Any) -> None:
    cut = "each => each.scrollHeight > each.clientHeight + 1"
    assert not opened.locator("#batches .scroll").evaluate(cut)
    opened.locator("#table2").get_by_label("rows not run").check()
    assert opened.locator("#table2 .scroll").evaluate(cut)


def test_paper_unfolds_claims_and_not_the_hashes_of_all_records(opened: Any) -> None:
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.locator(".claims details").count() == opened.locator(".claims details[open]").count() > 0
    assert opened.locator("#provenance details.records[open]").count() == 0
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.locator(".claims details[open]").count() == 0


def test_a_link_opens_what_is_folded_away(opened: Any) -> None:
    assert not opened.locator("#table4-body").is_visible()
    opened.evaluate("location.hash = '#table4'")
    opened.locator("#table4-body").wait_for()


def test_a_legend_names_every_line_and_hides_it_on_request(opened: Any) -> None:
    figure = opened.locator("#curves figure").first
    names = figure.locator(".legend li").all_inner_texts()
    assert names == ["resnet110_relu_plain", "resnet110_relu_bn", "resnet110_crelu_bn"]
    lines = figure.locator(".plot svg path").count()
    figure.locator(".legend button").first.click()
    assert figure.locator(".legend button").first.get_attribute("aria-pressed") == "false"
    wait_until(opened, f"document.querySelectorAll('#curves figure:first-child .plot svg path').length < {lines}")


def test_a_point_is_named_in_the_plot(opened: Any) -> None:
    assert "resnet110_crelu_bn" in opened.locator("#question .plot").first.locator("text").all_text_contents()


def test_the_front_crosses_no_point_s_name(browser: Any, tmp_path: Path) -> None:
    view = browser.new_page(viewport={"width": 1400, "height": 900})
    view.goto(page.write(Store(PUBLISHED), tmp_path / "out").as_uri())
    wait_for_plots(view)
    crossed = """() => [...document.querySelectorAll("#question .plot")].flatMap((plot) => {
      const names = [...plot.querySelectorAll("text")].filter((each) => each.textContent.startsWith("resnet"));
      const lines = [...plot.querySelectorAll('path[fill="none"][stroke-width="1.75"]')];
      const front = lines.sort((a, b) => b.getTotalLength() - a.getTotalLength())[0];
      const places = [...Array(400).keys()].map((number) =>
        front.getPointAtLength(front.getTotalLength() * number / 399).matrixTransform(front.getScreenCTM()));
      return names.filter((name) => {
        const box = name.getBoundingClientRect();
        return places.some(({ x, y }) => box.left < x && x < box.right && box.top + 2 < y && y < box.bottom - 2);
      }).map((name) => name.textContent);
    })"""
    choice = view.locator("#question select").first
    for number in range(choice.locator("option").count()):
        choice.select_option(index=number)
        assert view.evaluate(crossed) == [], number
    view.close()


def test_on_paper_a_wide_table_is_several_of_which_each_names_its_rows(opened: Any) -> None:
    opened.locator("#table2").get_by_label("more columns").check()
    whole = opened.locator("#table2 th[data-key]").count()
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    opened.emulate_media(media="print")
    parts = opened.locator("#table2 table:visible")
    assert parts.count() >= 2
    columns = [part.locator("thead th").count() for part in parts.all()]
    assert max(columns) <= 12
    assert sum(columns) - 4 * len(columns) == whole - 4
    for part in parts.all():
        assert part.locator("tbody th", has_text="resnet110_relu_bn").count() >= 1
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.locator("table.part").count() == 0


def test_without_scripts_tables_and_plots_are_there(browser: Any, html: str, tmp_path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    view = context.new_page()
    view.goto((tmp_path / "out" / "index.html").as_uri())
    assert view.locator("#table2 tbody tr").count() == 20
    view.locator("#table2").get_by_label("more columns").check()
    assert view.locator('#table2 th[data-key="seeds"]').is_visible()
    assert view.locator("noscript img").count() > 5 or "<noscript><img" in html
    context.close()
