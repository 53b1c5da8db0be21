const box = document.getElementById("search"), found = document.getElementById("found");
function look() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
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
