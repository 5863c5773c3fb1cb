"""The report page in a browser, from disk, with Debian's chromium; one launch for the whole file.

Console errors, and requests for anything but the page itself, fail every test that opens one.
"""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from builders import CLASSES, FEATURES, dataset_engine, small_engine
from heptad import TransitionLog
from heptad.report import server
from heptad.report.page import write_report
from heptad.report.server import LivePage, ReportServer
from heptad_plugins import Journal

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import report as benchmark

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

HOSTILE = "</script><img src=x onerror=document.title='taken'>"
SECONDS = 20_000


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    """One chromium, headless."""
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def log() -> TransitionLog:
    """A run of names and values that would do harm if they could, two epochs long."""
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(18, FEATURES, generator=generator), torch.arange(18) % CLASSES)
    engine = dataset_engine(data, epochs=2, accumulation=2)

    @engine.on_exit("after_step")
    def act(run: Any) -> None:
        run.record("train/loss", 10.0 / (1 + run.step))
        run.record("valid/loss", math.nan if run.step == 5 else 12.0 / (1 + run.step))
        run.record(HOSTILE, math.inf if run.step == 3 else run.step)
        run.record("$$x^2$$", run.step)
        if run.step == 4:
            run.note(HOSTILE)

    @engine.on_enter("optimizer_update", every=4)
    def leave_out(run: Any) -> None:
        run.skip_update("only to show what that looks like")

    return engine.run().log


@pytest.fixture(scope="module")
def page(log: TransitionLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its page."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(log, path)
    return path


@pytest.fixture(scope="module")
def long_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 512,000 turns, of which it does not hold each, with a spike."""
    folder = tmp_path_factory.mktemp("long")
    benchmark.write_long(folder / "run.journal", 500 * 1024, spike=77_777)
    write_report(TransitionLog.load(folder / "run.journal"), folder / "report.html")
    return folder / "report.html"


class Shown:
    """A page in a tab, and what the browser complained of."""

    def __init__(self, browser: Any, where: Path | str, width: int = 1280, **context: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **context)
        self.tab = self.context.new_page()
        self.wrong: list[str] = []
        self.tab.on("console", lambda message: self._hear(message.type, message.text))
        self.tab.on("pageerror", lambda error: self._hear("error", str(error)))
        self.tab.on("request", lambda request: self._ask(request.url))
        self._own = where if isinstance(where, str) else where.as_uri()
        self.tab.goto(self._own)

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.wrong.append(f"{kind}: {text}")

    def _ask(self, url: str) -> None:
        live = self._own.startswith("http") and url.startswith(self._own)
        if url != self._own and not live and not url.startswith(("data:", "blob:")):
            self.wrong.append(f"request: {url}")

    def ready(self) -> Any:
        """Wait until all is drawn."""
        self.tab.wait_for_selector("body[data-ready]", timeout=SECONDS)
        assert self.tab.evaluate("document.body.dataset.ready") == "yes"
        return self.tab

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()
        if error[0] is None:
            assert self.wrong == []


def until(tab: Any, holds: str) -> None:
    """Wait for an expression; playwright's own waiting is refused by the policy of the page."""
    end = time.monotonic() + SECONDS / 1000
    while not tab.evaluate(holds):
        assert time.monotonic() < end, holds
        tab.wait_for_timeout(20)


def brush(tab: Any, low: float, high: float) -> str:
    """Drag over a part of the figure in the middle of the timeline; return what is drawn then."""
    before = tab.evaluate("document.body.dataset.drawn")
    box = tab.evaluate(
        """() => {
            const root = document.querySelector('#figure-timeline-0');
            root.scrollIntoView();
            const views = Bokeh.index ? [...Bokeh.index] : [];
            const found = [];
            const walk = (view) => {
                if (view.model.tags?.includes('spikes')) found.push(view);
                for (const child of view.child_views ?? []) walk(child);
            };
            views.forEach(walk);
            const frame = found[0].frame.bbox, at = found[0].el.getBoundingClientRect();
            return [at.x + frame.left, at.y + frame.top, frame.width, frame.height];
        }"""
    )
    x, y, wide, high_px = box
    tab.mouse.move(x + wide * low, y + high_px / 2)
    tab.mouse.down()
    tab.mouse.move(x + wide * (low + high) / 2, y + high_px / 2, steps=4)
    tab.mouse.move(x + wide * high, y + high_px / 2, steps=4)
    tab.mouse.up()
    until(tab, f"document.body.dataset.drawn !== {before!r}")
    return tab.evaluate("document.body.dataset.drawn")


def test_it_draws_without_a_complaint_and_asks_nobody(browser: Any, page: Path):
    with Shown(browser, page) as shown:
        tab = shown.ready()
        assert tab.title() != "taken"
        assert tab.locator(".figure canvas").count() > 0
        for section in ("verdict", "curves", "time", "machine", "timeline", "events", "ending", "provenance"):
            assert tab.locator(f"#{section}-0").is_visible()


def test_an_explanation_made_in_the_page_is_that_of_the_log(browser: Any, page: Path, log: TransitionLog):
    """Counters and answers are derived from the path alone, as the log derives them; a skipped update counts not."""
    with Shown(browser, page) as shown:
        tab = shown.ready()
        tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        known = tab.evaluate("JSON.parse(document.getElementById('data').textContent).runs[0].explained")
        derived = [turn for turn in log if str(turn.seq) not in known]
        assert len(derived) > 10
        for turn in derived[::2]:
            tab.locator("form.goto input").fill(str(turn.seq))
            tab.locator("form.goto button").click()
            until(tab, f"document.querySelector('#explain-0').textContent.startsWith('#{turn.seq} ')")
            text = tab.locator("#explain-0").inner_text()
            at = f"epoch {turn.epoch} batch {turn.batch_index} step {turn.step} update {turn.update} "
            assert text.splitlines()[0].startswith(f"#{turn.seq} {turn.source} -> {turn.dest} "), text
            assert at in text
            said = [f"if {guard}: {'yes' if answer else 'no'}" for guard, answer in turn.guards.items()]
            assert [line.rpartition(" if ")[2] for line in text.splitlines() if " if " in line] == [
                words.removeprefix("if ") for words in said
            ]


def test_a_brush_leads_down_to_single_turns_and_a_click_explains(browser: Any, page: Path):
    with Shown(browser, page) as shown:
        tab = shown.ready()
        run, low, high, kind = brush(tab, 0.25, 0.5).split(":")
        turns = tab.evaluate("JSON.parse(document.getElementById('data').textContent).runs[0].end")
        assert (run, kind) == ("0", "turns")
        assert abs(int(low) - turns / 4) <= turns / 50 + 1
        assert abs(int(high) - turns / 2) <= turns / 50 + 1
        tab.locator("#ending-0 button.turn").last.click()
        until(tab, "document.querySelector('#explain-0').textContent.includes('finished')")


def test_a_spike_of_a_long_run_is_drawn_wherever_one_looks(browser: Any, long_page: Path):
    """In the strip, in a brush of more turns than are drawn one by one, and turn by turn around it."""
    with Shown(browser, long_page) as shown:
        tab = shown.ready()
        highest = """() => {
            const found = {};
            const models = [...Bokeh.documents].flatMap((doc) => doc.roots()).flatMap((root) => [...root.references()]);
            for (const one of models) {
                if (one.type !== 'ColumnDataSource') continue;
                const column = one.data.high ?? one.data.y1 ?? (one.tags.includes('turns') ? one.data.y : null);
                const name = one.tags.includes('ranges') ? 'ranges' : one.tags.includes('turns') ? 'turns' : one.name;
                if (column && column.length) found[name] = Math.max(...column);
                if (one.tags.includes('curve')) found.curve = Math.max(found.curve ?? 0, ...one.data.y);
            }
            return found;
        }"""
        assert tab.evaluate("document.body.dataset.drawn").endswith(":ranges")
        found = tab.evaluate(highest)
        assert found == {"curve": 1e6, "spikes": pytest.approx(60_000), "ranges": pytest.approx(60_000)}
        assert brush(tab, 0.4, 0.7).endswith(":ranges")  # the spike is at 0.61
        assert tab.evaluate(highest)["ranges"] == pytest.approx(60_000)
        spike = 4 * 77_777
        tab.locator(f"#time-0 button.turn[data-seq='{spike}']").first.click()
        until(tab, "document.body.dataset.drawn.endsWith(':turns')")
        assert tab.evaluate(highest)["turns"] == pytest.approx(60_000)
        assert f"#{spike} before_step -> process_batch" in tab.locator("#explain-0").inner_text()


def test_the_machine_answers_a_click_and_a_key(browser: Any, page: Path):
    with Shown(browser, page) as shown:
        tab = shown.ready()
        tab.locator(".node[data-node=after_step]").click()
        panel = tab.locator("#guards-0")
        assert "update_due: asked 20 times, yes 10, no 10" in panel.inner_text()
        tab.locator(".node[data-node=after_epoch]").focus()
        tab.keyboard.press("Enter")
        assert "epochs_remain: asked 2 times, yes 1, no 1" in panel.inner_text()


def test_curves_can_be_drawn_over_time_and_logarithmically(browser: Any, page: Path):
    with Shown(browser, page) as shown:
        tab = shown.ready()
        for axis in ("time", "epoch", "samples", "update"):
            tab.locator(f"#curves-0 input[value={axis}]").check()
        tab.locator("#curves-0 input[value=log]").check()
        visible = """() => [...Bokeh.documents].flatMap((doc) => doc.roots()).flatMap((root) => [...root.references()])
            .filter((one) => one.tags?.includes('log') && one.visible).length"""
        assert tab.evaluate(visible) >= 1


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_window_in_light_and_dark(browser: Any, page: Path, width: int, scheme: str):
    with Shown(browser, page, width, color_scheme=scheme) as shown:
        tab = shown.ready()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        ink = tab.evaluate("getComputedStyle(document.body).color")
        lightness = [sum(map(int, colour[4:-1].split(","))) for colour in (paper, ink)]
        assert (lightness[0] > lightness[1]) == (scheme == "light")


def test_it_prints_in_dark_ink_on_white(browser: Any, page: Path):
    with Shown(browser, page, color_scheme="dark") as shown:
        tab = shown.ready()
        pdf = tab.pdf()
        assert pdf.startswith(b"%PDF")
        tab.emulate_media(media="print")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not tab.locator("nav").is_visible()


def test_figures_fit_on_paper(browser: Any, page: Path):
    """They are drawn as wide as the window; an A4 page is 718 pixels wide between the margins of a browser."""
    edges = "[...document.querySelectorAll('.figure > *')].map((one) => one.getBoundingClientRect().right)"
    with Shown(browser, page) as shown:
        tab = shown.ready()
        before = tab.evaluate(edges)
        assert max(before) > 1000
        tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert max(tab.evaluate(edges)) <= 718
        tab.evaluate("dispatchEvent(new Event('afterprint'))")
        assert tab.evaluate(edges) == before


def test_without_scripts_there_are_tables(browser: Any, page: Path):
    with Shown(browser, page, java_script_enabled=False) as shown:
        text = shown.tab.inner_text("body")
        assert "Scripts are switched off" in text
        assert "train/loss" in shown.tab.inner_text("#curves-0")
        assert shown.tab.locator("#machine-0 svg").is_visible()


def test_a_live_page_follows_its_run(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is drawn anew where it is; what was chosen stays chosen."""
    monkeypatch.setattr(server, "SHARE", 0)
    engine = small_engine(6, [Journal(tmp_path / "run.journal", flush_every=1)], epochs=20)
    engine.on_exit("after_step")(lambda run: run.record("train/loss", run.step + 1.0))
    for _ in range(40):
        engine.advance()
    served = ReportServer(LivePage([TransitionLog.load(tmp_path / "run.journal")]))
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        with Shown(browser, served.address) as shown:
            tab = shown.ready()
            tab.locator("#curves-0 input[value=log]").check()
            tab.locator("#ending-0 button.turn").first.click()
            until(tab, "document.querySelector('#explain-0').textContent.startsWith('#20 ')")
            for _ in range(60):
                engine.advance()
            until(tab, "JSON.parse(document.getElementById('data').textContent).runs[0].end > 90")
            until(tab, "document.querySelector('#live').textContent.startsWith('As of')")
            assert tab.locator("#curves-0 input[value=log]").is_checked()
            assert tab.locator("#explain-0").inner_text().startswith("#20 ")
            assert tab.locator("#figure-curves-0 canvas").count() > 0
            shown.context.set_offline(True)
            until(tab, "document.querySelector('#live').textContent.startsWith('The server has ended')")
            shown.wrong = [words for words in shown.wrong if "ERR_INTERNET_DISCONNECTED" not in words]
    finally:
        served.shutdown()
        served.server_close()
        thread.join()
        engine.close()
