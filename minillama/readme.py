"""Numbers of the README come from a recorded run: `python -m minillama.readme out/tour/report.json` puts them there."""

import json
import re
import sys
from pathlib import Path

from minillama.files import atomic_write

ROOT = Path(__file__).parents[1]


def tour_block(report):
    """The closing table of a tour as it stands in the README."""
    width = max(len(row["stage"]) for row in report["rows"])
    lines = [f"{'pass' if row['pass'] else 'MISS'}  {row['stage']:{width}}  expected {row['expected']};\n"
             f"      {'':{width}}  got {row['got']}  ({row['seconds']:.1f} s)" for row in report["rows"]]
    passed = sum(row["pass"] for row in report["rows"])
    lines.append(f"\n{passed} of {len(lines)} numbers in their bands, {report['seconds']:.0f} seconds, no download.")
    return "<!-- tour -->\n```text\n" + "\n".join(lines) + "\n```\n<!-- /tour -->"


def main(report_path):
    """Record the report as docs/tour.json and write its table into README.md and README.zh.md."""
    report = json.loads(Path(report_path).read_text(encoding="utf-8"))
    with atomic_write(ROOT / "docs" / "tour.json", "w") as file:
        file.write(json.dumps(report, indent=1) + "\n")
    block = tour_block(report)
    for name in ("README.md", "README.zh.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        with atomic_write(ROOT / name, "w") as file:
            file.write(re.sub(r"<!-- tour -->.*?<!-- /tour -->", lambda _: block, text, flags=re.S))


if __name__ == "__main__":
    main(sys.argv[1])
