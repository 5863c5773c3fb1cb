"""Draw the pictures of the README and the docs from a run of the demo: `make pictures`. Needs the system's chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"

TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #14171b }}
pre {{ color: #e8eaed; padding: 18px 22px; margin: 0; font: 14px/1.45 "DejaVu Sans Mono", monospace }}
b {{ color: #7cc0ff; font-weight: 400 }}
</style><pre><b>$ heptad {path}</b>
{text}</pre>"""


def main() -> None:
    """Run the demo and draw what it leaves."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        subprocess.run([sys.executable, "-m", "heptad", "demo"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        draw_report(browser, Path(folder) / "runs" / "digits")
        draw_terminal(browser, Path(folder))
        browser.close()


def draw_report(browser: Browser, folder: Path) -> None:
    """Draw the beginning of the report of the run that was killed and resumed, and its timeline."""
    command = [sys.executable, "-m", "heptad", "report", "killed/log.journal", "-o", "one.html"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    page.goto((folder / "one.html").as_uri())
    page.wait_for_selector("body[data-ready=yes]")
    page.wait_for_timeout(500)
    page.screenshot(path=PICTURES / "report.png")
    page.locator("#machine-0").screenshot(path=PICTURES / "machine.png")


def draw_terminal(browser: Browser, folder: Path) -> None:
    """Draw what `heptad RUN` prints in a terminal of 100 columns."""
    path = "runs/digits/killed/log.journal"
    script = f"stty cols 100; {sys.executable} -m heptad {path}"
    done = subprocess.run(
        ["script", "-qec", script, "/dev/null"], cwd=folder, check=True, capture_output=True, encoding="utf-8"
    )
    page = browser.new_page(viewport={"width": 920, "height": 100})
    page.set_content(TERMINAL.format(path=path, text=escape(done.stdout.replace("\r", "").rstrip())))
    page.screenshot(path=PICTURES / "terminal.png", full_page=True)


if __name__ == "__main__":
    main()
