"""The HTML page: self-contained, escaped, with the numbers of the plans; looked at in Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from test_first_screen import SIX, answer, frozen_option, plan

from planner.cli import cli
from planner.cli.page.charts import step_chart, ticks
from planner.cli.page.write import answer_view, check_page_file, page_html, plans_view, write_page
from planner.plan import write_plan
from planner.recommendation.baselines import Baseline
from planner.training_free.plan_file import plan_of_option, write_frozen_plan
from profiler.devices.table import device_label
from profiler.errors import InputError
from profiler.prediction.timeline import STACK
from profiler.units import MIB

EVIL = '"><script>alert(1)</script>'


class Tags(HTMLParser):
    """Collects tags and attributes, and checks that they are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in {"meta", "circle", "rect", "line", "path", "polygon"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"circle", "rect", "line", "path", "polygon"}:
            assert self.open.pop() == tag


def test_it_is_one_file_without_network_and_script() -> None:
    text = page_html(answer_view(answer(*SIX)))
    found = Tags(text)
    assert not found.open
    assert not {"script", "link", "img", "iframe", "object"} & {*found.tags}
    assert not {"src", "href", "onload"} & {name for name, _ in found.attributes}
    assert not re.search(r"https?://|url\(|@import", text)
    assert found.tags.count("svg") == 4


def test_the_numbers_and_the_command_are_there() -> None:
    text = page_html(answer_view(answer(*SIX)))
    for part in ("1.26 GB", "2.00 GB", "lora r8", "budgetplan train plans/", "fastest", "budget"):
        assert part in text
    assert text.count('class="recommended"') == 1


def test_the_memory_of_the_host_is_shown_where_a_plan_takes_some() -> None:
    one = plan()
    memory = replace(one.prediction.memory, host_bytes=340_000_000)
    on_host = replace(one, prediction=replace(one.prediction, memory=memory))
    facts = [dict(answer_view(answer(each)).facts) for each in (one, on_host)]
    assert "host's memory" not in facts[0]
    assert facts[1]["host's memory"] == "0.34 GB"


def test_the_papers_defaults_are_in_the_chart_and_in_a_table() -> None:
    shown = replace(
        answer(*SIX),
        baselines={
            "lora": Baseline(prediction=plan(need=2400 * MIB).prediction, fits=False),
            "lora_static": Baseline(prediction=plan(need=1100 * MIB).prediction, fits=True),
        },
    )
    text = page_html(answer_view(shown))
    assert not Tags(text).open
    # 2400 MiB are 2.52 GB, the unit of the budget
    first = "<td>a</td><td>lora, no checkpointing</td><td>2.52 GB</td><td>no</td>"
    assert first in text
    assert "<td>b</td><td>lora, static</td><td>1.15 GB</td><td>yes</td>" in text
    places = {
        name: re.search(rf'<circle cx="([\d.]+)"[^>]*/><text[^>]*>{name}</text>', text)
        for name in ("a", "b", "1")
    }
    x = {name: float(found[1]) for name, found in places.items() if found}
    (line, *_) = map(float, re.findall(r'<line x1="([\d.]+)"', text))
    assert x["b"] < x["1"] < line < x["a"]
    assert "The paper" not in page_html(answer_view(answer(*SIX)))


@given(st.floats(min_value=1e-9, max_value=1e15))
def test_ticks_are_round_numbers_within_the_axis(most: float) -> None:
    found = ticks(most)
    assert 2 <= len(found) <= 5
    assert all(0 < each <= most * (1 + 1e-9) for each in found)
    step = found[0]
    assert found == pytest.approx([step * (i + 1) for i in range(len(found))])
    assert f"{step:.0e}"[0] in "125"
    assert step == pytest.approx(float(f"{step:.0e}"))


def test_models_without_fine_tuning_have_a_table() -> None:
    shown = replace(answer(*SIX), training_free=(frozen_option(), frozen_option("siglip_b16")))
    text = page_html(answer_view(shown))
    assert not Tags(text).open
    assert "Without fine-tuning" in text
    assert "91.7 %" in text and "304.4 M" in text and "zero-shot" in text
    assert "Without fine-tuning" not in page_html(answer_view(answer(*SIX)))


def test_texts_of_a_plan_of_unknown_origin_are_escaped(tmp_path: Path) -> None:
    evil = plan()
    workload = evil.candidate.workload.replace(model=EVIL)
    candidate = replace(evil.candidate, workload=workload)
    evil = replace(
        evil,
        candidate=candidate,
        prediction=replace(evil.prediction, candidate=candidate, notes=(EVIL,)),
    )
    text = page_html(plans_view([(tmp_path / EVIL.replace("/", "_"), evil)]))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_the_step_chart_has_its_peak_below_the_budget_line_only_if_it_fits() -> None:
    report = plan().prediction
    peak = report.memory.peak_bytes
    timeline = SimpleNamespace(
        ticks=np.arange(3),
        owners=np.array([[peak // 2, peak, peak // 2]] + [[0, 0, 0]] * (len(STACK) - 1)),
        peak_bytes=peak,
    )
    assert report.memory.device_bytes is not None
    for budget, fits in ((2 * report.memory.device_bytes, True), (peak // 2, False)):
        text = step_chart(timeline, report, budget)
        line = float(re.search(r'class="budget"', text) and re.search(r'y1="([\d.-]+)"', text)[1])
        highest = min(
            float(y)
            for points in re.findall(r'points="([^"]+)"', text)
            for y in re.findall(r",([\d.-]+)", points)
        )
        assert (highest > line) == fits


def test_only_an_own_page_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    view = answer_view(answer(*SIX))
    write_page(view, path, with_step=False)
    write_page(view, path, with_step=False)
    path.write_text("mine")
    with pytest.raises(InputError, match="is no page of budgetplan"):
        check_page_file(path)
    with pytest.raises(InputError, match="there is no folder"):
        check_page_file(tmp_path / "none" / "page.html")


def test_the_command_reports_on_plan_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.cli.page.write._step_svg", lambda plan: "<svg></svg>")
    files = [tmp_path / f"{i}.json" for i in (1, 2)]
    for file, each in zip(files, SIX, strict=False):
        write_plan(each, file)
    page = tmp_path / "out.html"
    asked = ["report", *map(str, files), "--html", str(page)]
    done = CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert done.exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "adaptformer" in text
    assert "Memory over one step" in text


def test_the_report_has_a_table_of_plans_without_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.cli.page.write._step_svg", lambda plan: "")
    files = []
    for name, budget in (("dinov2_l", 2000 * MIB), ("siglip_b16", 1000 * MIB)):
        made = plan_of_option(
            frozen_option(name),
            device=device_label("rtx-2060-super"),
            budget_bytes=budget,
            data="cifar100",
        )
        files.append(write_frozen_plan(made, tmp_path))
    tuned, page = tmp_path / "tuned.json", tmp_path / "page.html"
    write_plan(plan(), tuned)
    for asked in (files, [files[0], tuned, files[1]]):
        command = ["report", *map(str, asked), "--html", str(page), "--json"]
        done = CliRunner().invoke(cli, command, catch_exceptions=False)
        assert json.loads(done.stdout)["plans"] == len(asked)
        text = page.read_text(encoding="utf-8")
        # 0.5 s and 50 J for 32 images; 1200 MiB fit the first budget only
        cells = {
            name: re.findall(f"<tr><td>{name}</td>(.*?)</tr>", text)[0]
            for name in ("dinov2_l", "siglip_b16")
        }
        assert "<td>yes</td><td>15.6 ms</td><td>1.56 J</td><td>91.7 %</td>" in cells["dinov2_l"]
        assert "<td>no</td>" in cells["siglip_b16"]
        assert ("<h2>Plans</h2>" in text) == (tuned in asked)
        Tags(text)


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_fits_a_screen_in_chromium(tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed")
    page = tmp_path / "page.html"
    write_page(answer_view(answer(*SIX)), page, with_step=False)
    probe = tmp_path / "probe.html"  # the width of the page's content, written into its title
    script = (
        "<script>onload=()=>{document.title="
        "document.documentElement.scrollWidth+' '+innerWidth}</script></body>"
    )
    probe.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
         "--dump-dom", f"file://{probe}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r"<title>(\d+) (\d+)</title>", done.stdout)
    assert found is not None
    assert int(found[1]) <= int(found[2])


def test_a_folder_that_takes_no_file_is_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="cannot write /proc"):
        check_page_file(Path("/proc/answer.html"))
