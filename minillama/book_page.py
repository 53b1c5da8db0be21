"""The look of the book: one template, one style sheet for light and dark, a few lines of script; no network."""

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · minillama</title>
<link rel="icon" href="data:,">
<style>{style}</style></head>
<body>
<nav><a href="index.html">minillama</a>
<span class="search"><input id="search" type="search" placeholder="search" aria-label="search the book"
 autocomplete="off"><div id="found" role="listbox"></div></span>
<span class="turn">{turn}</span></nav>
<main>
{body}
</main>
<footer>{turn}<p class="soft">Keys: ← → turn pages, / searches, Esc closes.</p></footer>
<script src="search.js" defer></script>
<script>{script}</script>
</body></html>
"""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2430; --soft: #5d6875; --line: #d9dee4; --tint: #f3f6f9;
  --link: #1f5fb5; --k: #8a3ea8; --s: #1d7f5f; --n: #b3401d; --c: #67727e; --f: #1f5fb5; --mark: #fff1c9;
  --edge: #0004; --under: var(--paper); }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --ink: #e4e9ef; --soft: #9aa6b3; --line: #2d3540;
  --tint: #1a2028; --link: #7fb2f5; --k: #cf9be8; --s: #56c9a1; --n: #f0a07c; --c: #8e99a6; --f: #8fbcf7;
  --mark: #4a3d12; --edge: #fff5; } }
* { box-sizing: border-box; }
body { background: var(--paper); color: var(--ink); margin: 0; font: 17px/1.6 Charter, "Bitstream Charter",
  "Noto Serif", "Noto Serif CJK SC", Georgia, serif; overflow-wrap: break-word; }
main, footer { max-width: 50rem; margin: 0 auto; padding: 0 1rem; } footer { padding-bottom: 3rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: center; max-width: 50rem; margin: 0 auto;
  padding: .8rem 1rem; font: 14px/1.5 system-ui, sans-serif; } .turn { margin-left: auto; }
.turn a { margin-left: 1rem; }
footer { font: 15px/1.5 system-ui, sans-serif; margin-top: 3rem; border-top: 1px solid var(--line);
  padding-top: 1rem; } footer .turn a, footer > a { margin: 0 1.2rem 0 0; }
a { color: var(--link); text-decoration-thickness: 1px; text-underline-offset: 2px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 1.2rem 0 .6rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .4rem; }
h1 .number { color: var(--soft); font-weight: 400; }
.soft { color: var(--soft); font-size: .88rem; }
.facts { font: 14px/1.5 system-ui, sans-serif; color: var(--soft); margin: 0 0 1.6rem; padding: 0; list-style: none; }
.facts b { font-weight: 600; color: var(--ink); }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
a code { text-decoration: none; } a:has(code) { text-decoration: none; } a:hover code { text-decoration: underline; }
.whole { white-space: nowrap; }
code { font-size: .86em; background: var(--tint); padding: .08em .3em; border-radius: 4px; }
pre { margin: 1rem 0 0; padding: .8rem 1rem; border-radius: 8px; font-size: 13.5px;
  line-height: 1.5; overflow-x: auto; } pre code { font-size: inherit; background: none; padding: 0; }
pre.output { margin: 0 0 1rem; padding: .6rem 1rem .2rem; color: var(--soft);
  border-left: 3px solid var(--line); border-radius: 0; white-space: pre-wrap; }
figure { margin: 1.2rem 0; } figure svg { display: block; max-width: 100%; height: auto; }
figcaption { font: 14px/1.5 system-ui, sans-serif; color: var(--soft); margin-top: .3rem; }
math[display=block] { margin: .6rem 0; padding: .5rem 0; font-size: 1.12em; overflow: auto hidden; max-width: 100%; }
.table { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-size: .92rem; width: 100%; }
th { font: 600 13px/1.5 system-ui, sans-serif; color: var(--soft); }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
pre { --under: var(--tint); } pre.output { --under: var(--paper); }
pre, .table, math[display=block] { background: /* an edge is shaded where there is more to scroll to */
  linear-gradient(to right, var(--under) 30%, transparent) 0 / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--under) 30%, transparent) 100% / 2rem 100% no-repeat local,
  radial-gradient(farthest-side at 0 50%, var(--edge), transparent) 0 / .8rem 100% no-repeat scroll,
  radial-gradient(farthest-side at 100% 50%, var(--edge), transparent) 100% / .8rem 100% no-repeat scroll,
  var(--under); }
blockquote { margin: 1rem 0; padding-left: 1rem; border-left: 3px solid var(--line); color: var(--soft); }
section.exercise { border: 1px solid var(--line); border-radius: 8px; padding: .2rem 1rem; margin: 2rem 0 1rem; }
.contents { list-style: none; padding: 0; margin: .4rem 0; }
.contents li { padding: .28rem 0; display: flex; gap: .8rem; align-items: baseline; }
.contents li { border-bottom: 1px solid var(--line); } .contents .no { color: var(--soft); min-width: 1.6em; }
.contents .time { margin-left: auto; white-space: nowrap; font-size: .88rem; } .planned { color: var(--soft); }
.search { position: relative; } input { font: inherit; color: inherit; background: var(--tint); width: 11rem;
  border: 1px solid var(--line); border-radius: 6px; padding: .2rem .6rem; }
#found { display: none; position: absolute; z-index: 2; left: 0; top: 2.1rem; width: min(26rem, 88vw);
  background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: .3rem;
  box-shadow: 0 6px 24px #0003; max-height: 24rem; overflow-y: auto; } #found.open { display: block; }
#found a { display: block; padding: .3rem .5rem; border-radius: 5px; color: inherit; text-decoration: none; }
#found a:hover, #found a:focus { background: var(--tint); outline: none; } #found b { font-weight: 600; }
mark { background: var(--mark); color: inherit; }
a:focus-visible, input:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.k, .kn, .kc, .kd, .ow { color: var(--k); } .s, .sa, .sd, .s1, .s2, .si, .sf, .se, .sr { color: var(--s); }
.mi, .mf, .mh { color: var(--n); } .c, .c1, .cm { color: var(--c); font-style: italic; }
.nf, .nc, .nd { color: var(--f); }
@media (max-width: 30rem) { body { font-size: 16px; } h1 { font-size: 1.6rem; } pre { font-size: 12px;
  margin-left: -1rem; margin-right: -1rem; border-radius: 0; } .search { order: 3; width: 100%; }
input { width: 100%; } pre.output { white-space: pre; } }
@media print { nav, footer { display: none; } }
"""

SCRIPT = """
const box = document.getElementById("search"), found = document.getElementById("found");
function look() {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  found.replaceChildren();
  const hits = words.length ? BOOK.filter(p => words.every(w => p.text.toLowerCase().includes(w))).slice(0, 12) : [];
  for (const page of hits) {
    const link = document.createElement("a"), name = document.createElement("b"), at = document.createElement("div");
    link.href = page.href;
    name.textContent = page.title;
    const place = page.text.toLowerCase().indexOf(words[0]);
    at.className = "soft";
    const mark = document.createElement("mark");
    mark.textContent = page.text.substr(place, words[0].length);
    at.append(page.text.slice(Math.max(0, place - 40), place), mark,
      page.text.slice(place + words[0].length, place + words[0].length + 60));
    link.append(name, at);
    found.append(link);
  }
  if (words.length && !hits.length) found.textContent = "no page has all these words";
  found.classList.toggle("open", words.length > 0);
}
box.addEventListener("input", look);
document.addEventListener("keydown", event => {
  const typing = document.activeElement === box;
  if (event.key === "Escape") { box.value = ""; look(); box.blur(); }
  else if (event.key === "/" && !typing) { event.preventDefault(); box.focus(); }
  else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && found.classList.contains("open")) {
    const links = [...found.querySelectorAll("a")], at = links.indexOf(document.activeElement);
    const next = links[at + (event.key === "ArrowDown" ? 1 : -1)] || (event.key === "ArrowUp" ? box : links[0]);
    if (next) { event.preventDefault(); next.focus(); }
  } else if (!typing && !event.altKey && !event.ctrlKey && !event.metaKey) {
    const link = document.querySelector({ArrowLeft: "a[rel=prev]", ArrowRight: "a[rel=next]"}[event.key] || "none");
    if (link) location.href = link.href;
  }
});
document.addEventListener("click", event => {
  if (!event.target.closest(".search")) found.classList.remove("open");
});
"""
