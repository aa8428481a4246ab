"""The report as a page: what stands in it."""

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from suite.report import page
from suite.report.paper_claims import CLAIMS
from suite.results.record import key_of
from suite.results.store import Store
from suite.results.verify import verify
from suite.tables import spec

AddRun = Callable[..., dict[str, Any]]
Suite = Callable[..., tuple[int, str, str]]
PUBLISHED = Path(__file__).parents[2] / "results" / "published" / "amd-epyc-2-cores"


def text_of(html: str) -> str:
    return re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL)


def data_of(html: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
    return json.loads(found)


def section(html: str, table: str) -> str:
    (found,) = re.findall(rf'<section class="table" id="{table}".*?</section>', html, flags=re.DOTALL)
    return str(found)


def cell(html: str, table: str, model: str, key: str, data: str = "CIFAR-10<") -> str:
    """The HTML of one cell, by the key of its column."""
    found = section(html, table)
    keys = re.findall('data-key="(.*?)"', found)
    (row,) = [row for row in re.findall("<tr.*?</tr>", found) if f">{model}<" in row and data in row]
    return str(re.findall(r"<t[dh].*?</t[dh]>", row)[keys.index(key)])


def test_without_records_each_table_is_one_line_with_a_command_that_is_legal(store: Store, tmp_path: Path) -> None:
    html = page.write(store, tmp_path / "out").read_text("utf-8")
    commands = re.findall("<code>((?:python|uv run) -m suite run .*?)</code>", html)
    assert len(commands) == len(spec.NUMBERS)
    for number, command in zip(spec.NUMBERS, commands, strict=True):
        assert f"--table {number} --profile paper" in command
        rows = len(spec.load_table(number).rows)
        assert f"Missing: {rows} rows not run. <code>{command}" in section(html, f"table{number}")
        assert '</h3> <span class="quiet">not run</span></summary>' in section(html, f"table{number}")
    assert "Nothing is measured yet" in html


def test_one_line_a_table_says_what_is_missing_with_one_command_for_it(html: str) -> None:
    ((words, command),) = re.findall('<p class="missing">Missing: (.*?)\\. <code>(.*?)</code>', section(html, "table2"))
    parts = ("15 rows not run", "4 rows with fewer than 5 seeds")
    assert words == "; ".join([*parts, "1 row with runs that were quick, shortened or on other images"])
    assert "--rows" not in command  # all of them lack something
    assert "--data cifar10=PATH --data cifar100=PATH" in command
    assert "resnet110_relu_np@" not in command


def test_what_published_records_lack_is_measured_in_a_folder_of_ones_own(
    store: Store, add_run: AddRun, tmp_path: Path
) -> None:
    add_run()
    published = tmp_path / "published" / "machine"
    shutil.copytree(store.root, published)
    own, theirs = (
        re.findall("--results (.*?)</code>", page.write(Store(root), tmp_path / "out").read_text("utf-8"))
        for root in (store.root, published)
    )
    assert set(own) == {str(store.root)}
    assert set(theirs) == {"results/local"}


def test_a_row_that_is_complete_is_not_in_the_command(store: Store, add_run: AddRun, tmp_path: Path) -> None:
    for seed in range(5):
        add_run(seed=seed)
    found = section(page.write(store, tmp_path / "out").read_text("utf-8"), "table2")
    (rows,) = re.findall(r"--rows (?:&#39;)?(\S+?)(?:&#39;)? ", found)
    table = spec.select_table(2, rows.split(","))
    assert len(table.rows) == 19


def test_paper_ours_difference_seeds_and_spread_stand_side_by_side(html: str) -> None:
    def value(key: str) -> str:
        return re.findall('data-value="(.*?)"', cell(html, "table2", "resnet110_relu_bn", key))[0]

    assert (value("paper_top1"), value("top1"), value("seeds")) == ("6.35", "6.5", "2")
    assert float(value("difference_top1")) == pytest.approx(0.15)
    assert float(value("spread_top1")) == pytest.approx(1)


def test_headings_have_two_levels_and_few_columns_open_first(html: str) -> None:
    found = section(html, "table2")
    main, whole = re.findall('<tr class="groups .*?</tr>', found)
    words = re.findall(r'<th scope="colgroup" colspan="(\d+)">(.*?)</th>', main)
    assert words == [("2", "error %"), ("1", "parity"), ("1", "ORT cpu b8 m1"), ("1", "ORT cpu b1 m2")]
    columns = re.findall('<th scope="col".*?class="(.*?)"', found)
    spans = [sum(map(int, re.findall(r'colspan="(\d+)"', row))) for row in (main, whole)]
    assert spans == [sum("extra" not in each for each in columns), len(columns)]
    assert spans[0] < 10 < spans[1]


def test_the_error_of_a_quick_run_is_not_shown(html: str) -> None:
    quick = cell(html, "table2", "resnet110_crelu_plain", "top1")
    assert 'title="quick run, not comparable with the paper: on the embedded digits10' in quick
    assert re.sub("<sup>.*|<.*?>", "", quick).strip() == "quick"
    (number,) = re.findall("#table2-note-([0-9]+)", quick)
    assert f'<li id="table2-note-{number}">quick run' in html
    assert "data-value" not in quick


def test_unstable_cells_say_so_on_hover_and_in_a_footnote(html: str) -> None:
    assert re.search('title="unstable: .*?".*?<span class="tag unstable">', html)


def test_what_is_empty_says_why_in_its_place_alone(html: str) -> None:
    assert 'aria-label="not run"' in cell(html, "table2", "resnet110_relu_nobias", "top1")
    assert not re.search("<li id=[^>]*>(not run|not exported|too few)", html)


def test_tables_without_an_error_that_counts_are_folded_behind_the_others(
    store: Store, add_run: AddRun, tmp_path: Path
) -> None:
    add_run("resnet34_relu_bn", data="imagenet")
    add_run("resnet110_relu_bn", max_steps=4, top1=99.0)
    add_run("resnet110_crelu_bn", max_steps=4, top1=98.0)
    html = page.write(store, tmp_path / "out").read_text("utf-8")
    tables = re.findall('<section class="table" id="(table.*?)"', html)
    assert tables == ["table4", "table1", "table2", "table3"]
    folded = [name for name in tables if '<details class="fold">' in section(html, name)]
    assert folded == ["table1", "table2", "table3"]
    assert "quick runs only, 2 of 20 rows" in section(html, "table2")
    assert '<details class="fold">' in section(html, "choices-cifar10-resnet110")
    assert "Not drawn: CIFAR-10, where every run was quick, cut off or on other images." in html


def test_the_records_that_no_row_shows_are_counted_by_their_stages(
    store: Store, add_run: AddRun, tmp_path: Path
) -> None:
    add_run()
    html = page.write(store, tmp_path / "out").read_text("utf-8")
    assert f"All {verify(store.root).records} records are shown, from {store.root}. Measured" in html
    add_run(rounds=9)
    html = page.write(store, tmp_path / "out").read_text("utf-8")
    count = verify(store.root).records
    assert f"{count - 1} of {count} records are shown, from {store.root}; no row needs the rest: 1 latency. M" in html
    add_run(rounds=10)
    html = page.write(store, tmp_path / "out").read_text("utf-8")
    assert "no row needs the rest: 2 latencies." in html


def headings(html: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", html)


def test_a_page_of_quick_runs_opens_with_latency_and_has_no_empty_section(
    store: Store, add_run: AddRun, tmp_path: Path
) -> None:
    add_run("resnet110_relu_bn", max_steps=4, top1=99.0)
    add_run("resnet110_crelu_bn", max_steps=4, top1=98.0)
    html = page.write(store, tmp_path / "out").read_text("utf-8")
    rest = ["The paper's claims", "Tables", "Inside the networks", "Provenance"]
    assert headings(html) == ["Latency", "What a choice of normalisation and activation costs and brings", *rest]
    assert html.index('id="speed"') < html.index('class="key"') < html.index('id="choices"')
    assert "<summary>None of them is measured yet</summary>" in html
    assert "Not drawn" not in html
    assert re.findall('<li><a href="#(.*?)">', html) == re.findall('<section id="(.*?)"', html)


def test_without_records_no_section_of_plots_is_empty_but_what_needs_no_run(store: Store, tmp_path: Path) -> None:
    html = page.write(store, tmp_path / "out").read_text("utf-8")
    assert headings(html) == ["The paper's claims", "Tables", "Inside the networks", "Provenance"]
    assert 'class="key"' not in html


def test_the_contents_are_the_sections_in_their_order(html: str) -> None:
    assert re.findall('<li><a href="#(.*?)">', html) == re.findall('<section id="(.*?)"', html)
    assert headings(html)[0] == "Error against latency"


def test_text_from_records_is_escaped_everywhere(html: str, tmp_path: Path, evil: str) -> None:
    assert evil not in html
    assert "<b onclick" not in html
    assert "hacked" in text_of(html)
    assert "\x1b" not in html
    titles = [plot["title"] for figure in data_of(html)["figures"] for plot in figure["plots"]]
    assert any(evil.replace("\x1b", "\\x1b") in title for title in titles)
    for file in (tmp_path / "out" / "plots").iterdir():
        ElementTree.parse(file)


def test_the_page_loads_nothing(html: str) -> None:
    assert "default-src 'none'" in html
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', html)
    assert "<link" not in html


def test_the_readme_s_picture_is_the_page_s_plot_made_anew_from_the_published_records(tmp_path: Path) -> None:
    page.write(Store(PUBLISHED), tmp_path)
    drawn = (tmp_path / "plots" / "cifar10-error-latency-1.svg").read_text("utf-8")
    assert (PUBLISHED / "error-latency.svg").read_text("utf-8") == drawn
    names = ["resnet20_relu_bn", "resnet20_w32_relu_bn", "resnet20_crelu_bn"]
    assert all(f">{name}</text>" in drawn for name in names)


def test_every_link_leads_somewhere(html: str, tmp_path: Path) -> None:
    page_text = text_of(html)
    anchors = set(re.findall(r'\bid="(.*?)"', page_text))
    links = set(re.findall(r'\b(?:href|src)="(.*?)"', page_text))
    assert len(links) > 20
    for link in links:
        assert link[1:] in anchors if link.startswith("#") else (tmp_path / "out" / link).is_file(), link


@pytest.mark.parametrize("name", ["index.html", "notes.txt", "records"])
def test_a_folder_of_other_things_is_left_as_it_is(name: str, store: Store, suite: Suite, tmp_path: Path) -> None:
    for folder in (store.root, tmp_path / "own"):
        folder.mkdir()
    (tmp_path / "own" / name).write_text("mine")
    (tmp_path / "own" / "findings.md").write_text("mine too")
    code, out, err = suite("report", "--results", str(store.root), "--out", str(tmp_path / "own"))
    assert (code, out) == (2, "")
    assert err == (
        f"error: {tmp_path / 'own'}: cannot write the report there: {name} is of no report; give a new folder or a "
        "report's\n"
    )
    assert {path.read_text() for path in (tmp_path / "own").iterdir()} == {"mine", "mine too"}


def test_a_report_takes_the_place_of_one_before_even_if_that_was_cut_off(store: Store, tmp_path: Path) -> None:
    first = page.write(store, tmp_path / "report")
    assert page.write(store, tmp_path / "report") == first
    first.unlink()
    assert page.write(store, tmp_path / "report").is_file()


def test_each_table_lies_beside_the_page_in_three_formats(html: str, tmp_path: Path) -> None:
    for number in spec.NUMBERS:
        assert (tmp_path / "out" / f"table{number}.md").read_text("utf-8").startswith(f"Table {number}")
        assert "\\toprule" in (tmp_path / "out" / f"table{number}.tex").read_text("utf-8")
    with open(tmp_path / "out" / "table2.csv", encoding="utf-8", newline="") as file:
        rows = {(row["model"], row["heading_2"]): row for row in csv.DictReader(file)}
    assert rows["resnet110_relu_bn", "CIFAR-10"]["top1"] == "6.5"


def test_rows_run_at_another_depth_have_a_table_of_their_own(store: Store, add_run: AddRun, tmp_path: Path) -> None:
    add_run("resnet20_crelu_bn")
    html = page.write(store, tmp_path / "out").read_text("utf-8")
    assert cell(html, "table2-resnet20", "resnet20_crelu_bn", "heading_0")
    found = section(html, "table2-resnet20")
    assert "19 rows not run" in found, "which are shown on request, and named by the command that is missing"
    assert "Missing: 19 rows not run; 1 row with fewer than 5 seeds" in found
    assert "--depth 20" in found
    assert 'id="table2-resnet32"' not in html, "of which nothing was run"


def test_table_1_and_its_figures_appear_with_their_records(html: str) -> None:
    found = section(html, "table1")
    assert all(f'data-value="{value}"' in found for value in ("10.41", "10.5", "21.0", "5.5", "4.5", "0.5"))
    figures = {figure["title"]: figure for figure in data_of(html)["figures"]}
    assert figures["Figure 2, change by block, CIFAR-100, ResNet-110"]["plots"][0]["series"][0]["points"] == [
        [1, 1.0],
        [2, 2.0],
    ]
    assert "around 1 to 5" in figures["Figure 2, change by block, CIFAR-100, ResNet-110"]["paper"]
    assert figures["Figure 3, coherence, CIFAR-100, ResNet-110"]["plots"][0]["series"][0]["points"] == [
        [1, 0.25],
        [2, 0.75],
    ]


def test_the_page_opens_with_what_a_choice_costs_and_brings(html: str, tmp_path: Path) -> None:
    assert "<strong>CReLU + BatchNorm has the lowest error, 5.5 %</strong>; 1.0 points less than ReLU" in html
    places = [html.index(f'id="{name}"') for name in ("question", "choices-cifar10-resnet110", "findings", "table2")]
    assert places == sorted(places)
    shown = cell(html, "choices-cifar10-resnet110", "resnet110_crelu_bn", "points", data="")
    assert 'data-value="-1.0"' in shown
    assert (tmp_path / "out" / "choices-cifar10-resnet110.csv").is_file()


def test_each_claim_of_the_paper_says_what_was_found(html: str, tmp_path: Path) -> None:
    (claims,) = re.findall('<section id="findings">.*?</section>', html, flags=re.DOTALL)
    assert claims.count('<th scope="row"') == len(CLAIMS)
    (crelu,) = re.findall("<tr><th[^>]*><details><summary>CReLU helps with BatchNorm<.*?</tr>", claims, flags=re.DOTALL)
    cells = dict(re.findall('<td data-label="(.*?)">(.*?)</td>', crelu))
    assert (cells["Measured on"], cells["Paper"], cells["Here"]) == (
        "CIFAR-10, ResNet-110",
        "5.72 &lt; 6.35",
        "5.50 &lt; 6.50",
    )
    assert 'data-verdict="confirmed">confirmed<' in cells["Verdict"]
    assert cells["How sure"].startswith("1.00 points apart, chance makes up to 0.")
    assert cells["How sure"].endswith("1 of 5 seeds; 2 of 5 seeds")
    assert "resnet110_crelu_bn 5.50 (paper 5.72) &lt; resnet110_relu_bn 6.50 (paper 6.35)" in crelu
    assert "Not yet measured: CIFAR-100, ResNet-110" in crelu
    assert (
        re.sub("<details>.*</details>", "", crelu, flags=re.DOTALL).count("Judged by: the test error with CReLU") == 1
    )
    assert 'data-verdict="not yet measured"' in claims
    assert "**confirmed**" in (tmp_path / "out" / "findings.md").read_text("utf-8")


def test_folders_of_two_machines_make_one_report_with_a_column_each(
    many: Store, add_run: AddRun, tmp_path: Path
) -> None:
    other = Store(tmp_path / "other")
    shutil.copytree(many.root / "records", other.root / "records")
    for path in (many.root / "records" / "latency").iterdir():
        content = json.loads(path.read_text())
        content["inputs"]["machine"] = "Elsewhere"
        content |= {"key": key_of("latency", content["inputs"]), "digest": ""}
        (other.root / "records" / "latency" / path.name).unlink()
        (other.root / "records" / "latency" / f"{content['inputs']['model']}-{content['key']}.json").write_text(
            json.dumps(content)
        )
    html = page.write([many, other], tmp_path / "out").read_text("utf-8")
    assert "m2: Elsewhere" in html
    assert re.findall('data-group="(.*? m[12])" class="number"><button type="button">p50', section(html, "table2"))
    assert ">ORT cpu b1 m2<" in section(html, "table2")
    assert ">ORT cpu b1 m3<" in section(html, "table2")
    seeds = cell(html, "table2", "resnet110_relu_bn", "seeds")
    assert 'data-value="2"' in seeds, "the same runs in both folders count once"


@pytest.mark.full
def test_a_report_over_ten_thousand_records_is_quick_and_small(many: Store, add_run: AddRun, tmp_path: Path) -> None:
    templates = {
        stage: json.loads(next((many.root / "records" / stage).iterdir()).read_text())
        for stage in ("train", "export", "parity", "latency")
    }
    rows = [(table, row) for table in map(spec.load_table, spec.DEPLOYED) for row in table.rows]
    root = tmp_path / "large"
    written = 0

    def put(stage: str, model: str, inputs: dict[str, Any], result: dict[str, Any]) -> str:
        nonlocal written
        content = templates[stage]
        content = content | {"inputs": content["inputs"] | {"model": model} | inputs}
        content |= {"result": content["result"] | result, "key": key_of(stage, content["inputs"]), "digest": ""}
        path = root / "records" / stage / f"{model}-{content['key']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        written += 1
        return str(content["key"])

    for seed in range(10_000):
        for table, row in rows:
            recipe = dataclasses.asdict(spec.recipe_for(table, row))
            data = templates["train"]["inputs"]["data"] | {"name": row.data}
            epochs = [{"epoch": n, "top1": 90 / n, "train_error": 80 / n, "train_loss": 2 / n} for n in range(1, 165)]
            result = {"top1": 6.0, "trained": True, "epochs": epochs, "steps": 9999, "test_images": 10000}
            train = put("train", row.model, {"data": data, "recipe": recipe, "seed": seed}, result)
            export = put("export", row.model, {"train": train}, {})
            put("parity", row.model, {"export": export}, {})
            for batch in range(1, 8):
                put(
                    "latency",
                    row.model,
                    {"export": export, "batch_size": batch},
                    {"samples": [batch * 0.001 + 1e-6 * n for n in range(200)]},
                )
        if written >= 10_000:
            break
    code = (
        "import re, sys, time; from pathlib import Path\n"
        "from suite.report import page; from suite.results.store import Store\n"
        "start = time.process_time(); page.write(Store(Path(sys.argv[1])), Path(sys.argv[2]))\n"
        # Not getrusage, whose figure a process inherits from the one that started it.
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())\n"
        "print(time.process_time() - start, int(peak[1]) / 1024)"
    )
    out = tmp_path / "large-out"
    done = subprocess.run([sys.executable, "-c", code, root, out], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 10
    assert megabytes < 500
    assert (out / "index.html").stat().st_size < 8e6
    start = resource_seconds()
    show = [sys.executable, "-m", "suite", "show", "--table", "2", "--results", root]
    subprocess.run(show, check=True, stdout=subprocess.DEVNULL)
    assert resource_seconds() - start < 3  # 2.2 on an older CPU without AVX-512


def resource_seconds() -> float:
    """Processor seconds of finished children: the same however busy the machine is."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "quiet", "link", "quick", "failed", "good"])
def test_every_colour_of_text_can_be_read_on_both_grounds(scheme: int, name: str) -> None:
    style = (Path(page.__file__).parent / "assets" / "report.css").read_text("utf-8")
    colors = dict(re.findall(r"--(\w+): (#\w+)", re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)[scheme]))
    for ground in ("ground", "raised"):
        light, dark = sorted((luminance(colors[name]), luminance(colors[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, "WCAG 2, AA"


def luminance(color: str) -> float:
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    shares = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
