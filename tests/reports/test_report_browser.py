"""The report in a browser: it opens without errors or requests, and fits a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import simulated_units
from explained_class import explained_class
from simulated_classes import with_classes
from simulated_trials import add_tables, write_run

from causalprune.reports import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)

# Measures the page in a frame as wide as a phone, with all that folds unfolded, and leaves what it
# found where --dump-dom prints it.
MEASURE = """
<script>
window.addEventListener("load", () => {
  document.querySelectorAll("details").forEach((each) => { each.open = true; });
  const root = document.documentElement;
  const boxes = [...document.querySelectorAll("svg")].map((each) => each.getBoundingClientRect());
  const ink = getComputedStyle(document.body).color;
  parent.postMessage(JSON.stringify({
    width: root.clientWidth, content: root.scrollWidth, ink: ink,
    figures: boxes.map((box) => [box.width, box.height, box.left]),
    texts: document.querySelectorAll("svg text").length,
    requests: performance.getEntriesByType("resource").map((each) => each.name),
  }), "*");
});
</script>
"""
FRAME = """
<body><iframe src="page.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<pre id="found"></pre>
<script>
window.addEventListener("message", (event) => {{
  document.getElementById("found").textContent = event.data;
}});
</script></body>
"""


def opened(folder: Path, page: str, width: int) -> tuple[dict, str]:
    """Open a page in a frame of a width; return what it measured, and the browser's log."""
    (folder / "page.html").write_text(page.replace("</body>", MEASURE + "</body>"), "utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width), "utf-8")
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--disable-background-networking", "--disable-component-update", "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}",
        "--allow-file-access-from-files", "--enable-logging=stderr", "--window-size=1400,1000",
        "--hide-scrollbars",
        "--virtual-time-budget=5000", "--dump-dom", str(folder / "frame.html"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), done.stderr


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_page_fits_a_phone_and_asks_for_nothing(tmp_path):
    folder = write_run(tmp_path / "run", with_classes(1, {2: 0.5}))
    add_tables(folder / "scores" / "0-path.npz", explained_class())
    page = report(folder, tmp_path / "report.html", analyses=()).read_text("utf-8")
    assert "<script" not in page
    assert 'id="classes"' in page
    found, log = opened(tmp_path, page, 375)
    assert "CONSOLE" not in log
    assert found["requests"] == []
    assert found["width"] == 375
    assert found["content"] == 375
    assert len(found["figures"]) == page.count("<svg ")
    assert len(found["figures"]) >= 11
    assert all(width > 200 and height > 60 for width, height, _ in found["figures"])
    assert found["texts"] > 100
    assert page.count("data:image/png") == 3


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_page_of_units_fits_a_phone_and_asks_for_nothing(tmp_path):
    table = simulated_units.drawn(simulated_units.population(), 0).assign(measured="loss")
    page = report(table, tmp_path / "report.html").read_text("utf-8")
    found, log = opened(tmp_path, page, 375)
    assert "CONSOLE" not in log
    assert found["requests"] == []
    assert found["content"] == found["width"] == 375
    assert len(found["figures"]) == page.count("<svg ") == 6
    assert all(width > 200 and height > 60 for width, height, _ in found["figures"])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_browser_test_would_notice(tmp_path):
    broken = """<!DOCTYPE html><html><body><div style="width: 600px">wide</div>
    <img src="http://example.invalid/x.png"><script>nothing();</script></body></html>"""
    found, log = opened(tmp_path, broken, 375)
    assert "CONSOLE" in log
    assert found["content"] > 375
    assert found["requests"]
