"""A page of the book on a narrow screen."""

import re
import shutil
import subprocess

import pytest
from test_book import libraries, made

FIXTURES = (libraries, made)  # of test_book, used here by name
PHONE = """<script>addEventListener("load", () => {
  const boxes = [...document.querySelectorAll("pre, .table, math[display=block]")];
  const wide = boxes.filter(box => box.scrollWidth > box.clientWidth);
  for (const box of wide) box.scrollLeft = 1e6;
  const reached = wide.filter(box => Math.abs(box.scrollLeft - (box.scrollWidth - box.clientWidth)) <= 1);
  const out = boxes.filter(box => box.getBoundingClientRect().right > innerWidth);
  const code = wide.filter(box => box.matches("pre:not(.output)"));
  const still = document.documentElement.scrollWidth <= innerWidth;
  parent.postMessage([innerWidth, wide.length, reached.length, out.length, still, code.length].join(";"), "*");
});</script></body>"""


@pytest.mark.long
def test_on_a_phone_code_wraps_output_scrolls_in_its_box_and_the_page_stands_still(made, tmp_path):
    """390 pixels wide, in a frame: no code is wider than its box; output that is can be scrolled to its end there."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or pytest.skip("no Chromium here")
    page = (made / "05_rms_norm.html").read_text(encoding="utf-8")
    long = f"<pre><code>{'x = 1; ' * 30}</code></pre><pre class='output'>{'1 2 3 ' * 40}</pre>"
    (made / "phone.html").write_text(page.replace("</main>", long + "</main>").replace("</body>", PHONE))
    outer = tmp_path / "outer.html"
    outer.write_text('<script>addEventListener("message", e => document.title = e.data)</script>'
                     f'<iframe width=390 height=800 style="border:0" src="{(made / "phone.html").as_uri()}"></iframe>')
    done = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/u",
                           "--virtual-time-budget=5000", "--dump-dom", outer.as_uri()],
                          capture_output=True, text=True, timeout=120)
    width, wide, reached, out, still, code = re.search("<title>(.*?)</title>", done.stdout)[1].split(";")
    assert (width, out, still, code) == ("390", "0", "true", "0") and wide == reached and int(wide) >= 1
