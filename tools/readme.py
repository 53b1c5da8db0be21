"""Numbers and pictures of the README come from a recorded run: `python tools/readme.py out/tour`, typed in
`python3 run.py shell`, puts them in."""

import ast
import html
import json
import re
import sys
from pathlib import Path

from minillama.system.files import atomic_write

ROOT = Path(__file__).parents[1]
PICTURES = {  # name in docs/figures: the heading of the report under which it stands
    "pretrain": "Pretraining: predict the next token",
    "nf4": "QLoRA: sixteen levels for a weight",
    "ppo": "PPO: practise what was preferred",
    "hacking": "Reward hacking, against a known truth",
}
INKS = {"light": "#1f2328", "dark": "#e6edf3"}  # of text on GitHub's two grounds


def tour_block(report):
    """The closing table of a tour as it stands in the README."""
    width = max(len(row["stage"]) for row in report["rows"])
    lines = [f"{'pass' if row['pass'] else 'FAIL'}  {row['stage']:{width}}  expected {row['expected']};\n"
             f"      {'':{width}}  got {row['got']}  ({row['seconds']:.1f} s)" for row in report["rows"]]
    passed = sum(row["pass"] for row in report["rows"])
    lines.append(f"\n{passed} of {len(lines)} numbers in their bands, {report['seconds']:.0f} seconds, no download.")
    return "<!-- tour -->\n```text\n" + "\n".join(lines) + "\n```\n<!-- /tour -->"


def pictures(page):
    """{"<name>-<scheme>.svg": SVG}: figures of a report, their ink fixed for a light and for a dark ground."""
    found = {}
    for name, heading in PICTURES.items():
        part = page[page.index(f"<h2>{html.escape(heading)}</h2>"):]
        drawing = part[part.index("<svg"):part.index("</svg>") + len("</svg>")]
        for scheme, ink in INKS.items():
            found[f"{name}-{scheme}.svg"] = drawing.replace("currentColor", ink) + "\n"
    return found


def picture_block(page):
    """Each figure as it stands in the README: the file that suits the reader's scheme, and its alt text."""
    lines = []
    for name in PICTURES:
        drawing = pictures(page)[f"{name}-light.svg"]
        alt = re.search(r'aria-label="([^"]*)"', drawing)[1]
        lines.append(f'<picture><source media="(prefers-color-scheme: dark)" srcset="docs/figures/{name}-dark.svg">'
                     f'<img src="docs/figures/{name}-light.svg" alt="{alt}" width="49%"></picture>')
    return "<!-- pictures -->\n" + "\n".join(lines) + "\n<!-- /pictures -->"


def rooms_block():
    """The package from the top down: each room with its docstring's first sentence, and the modules beside them."""
    package, rows = ROOT / "minillama", []
    for path in sorted(package.glob("*/__init__.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        sentence = ast.get_docstring(tree).splitlines()[0].split(". ")[0].rstrip(".")
        rows.append((constant(tree, "FLOOR"), path.parent.name + "/", sentence.replace("`", "")))
    floors = constant(ast.parse((package / "__init__.py").read_text(encoding="utf-8")), "FLOORS")
    for floor in set(floors.values()):
        beside = ", ".join(f"{name}.py" for name in floors if floors[name] == floor and not name.startswith("_"))
        rows += [(floor, "", beside)] if beside else []
    lines = [f"{floor}  {room:{max(len(row[1]) for row in rows)}}  {what}" for floor, room, what in
             sorted(rows, key=lambda row: (-row[0], row[1] == "", row[1]))]
    return "<!-- rooms -->\n```text\n" + "\n".join(lines) + "\n```\n<!-- /rooms -->"


def constant(tree, name):
    """The literal that a module assigns to a name."""
    (value,) = [node.value for node in tree.body if isinstance(node, ast.Assign)
               and getattr(node.targets[0], "id", "") == name]
    return ast.literal_eval(value)


def words():
    """{usual word: the file to open for it}: docs/words.txt, one `word -> file` a line."""
    lines = (ROOT / "docs" / "words.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" -> ") for line in lines)


def words_block():
    """The word index as it stands in the README."""
    rows = [f"| {word} | [{file.removeprefix('minillama/')}]({file}) |" for word, file in words().items()]
    return "\n".join(["<!-- words -->", "| the field's word | file |", "|---|---|", *rows, "<!-- /words -->"])


def main(folder):
    """Record a tour's folder: docs/tour.json, docs/figures/, and the table and the pictures in both READMEs."""
    report = json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))
    page = Path(folder, "report.html").read_text(encoding="utf-8")
    (ROOT / "docs" / "figures").mkdir(exist_ok=True)
    for name, text in {"tour.json": json.dumps(report, indent=1) + "\n",
                       **{f"figures/{name}": drawing for name, drawing in pictures(page).items()}}.items():
        with atomic_write(ROOT / "docs" / name, "w") as file:
            file.write(text)
    for name in ("README.md", "README.zh.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for block in (tour_block(report), picture_block(page), words_block(), rooms_block()):
            first, last = (block.splitlines()[i] for i in (0, -1))
            text = re.sub(f"{first}.*?{last}", lambda _, block=block: block, text, flags=re.S)
        with atomic_write(ROOT / name, "w") as file:
            file.write(text)


if __name__ == "__main__":
    main(sys.argv[1])
