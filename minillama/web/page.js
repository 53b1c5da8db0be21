"use strict";
// The page of `chat --web`. In the order of reading: words, the server's protocol, talking, what a token shows, looking
// inside, sliders, and at last what starts it all. Every text of the model goes through `visible` and textContent.

const ENGLISH = {
  conversation: "Conversation", question: "Your question", send: "Send", stop: "Stop", retry: "Retry", copy: "Copy",
  export: "Export JSON", fresh: "New conversation", sampling: "How the next token is drawn", temperature: "temperature",
  adapter: "adapter's strength", seed: "seed", most: "longest answer", side: "side by side with",
  inside: "Inside the model", hint: "Point at a token, or walk with the arrow keys; click or press Enter to look inside.",
  you: "you", spelled: "the prompt as the template spells it", cache: "KV cache", tokens: "tokens", all: "all",
  dead: "The server does not answer: is chat --web still running?", ready: "ready", busy: "answering",
  stopped: "stopped", copied: "copied", probability: "probability", rank: "rank", entropy: "entropy",
  choose: "say this", other: "the other model's probability", difference: "difference", token: "token",
  lens: "What each layer would say (logit lens)", layer: "layer", embedding: "embedding", thisToken: "this token",
  attention: "What each head looks at", mean: "mean of all heads", head: "head", mostly: "most at",
  over: "Attention over the text", distribution: "The next token, before it is drawn", before: "model",
  after: "drawn from", rest: "all others", looking: "looking inside", without: "the same without its adapter",
  shares: "Heads that stand together share keys and values.", recorded: "a recording: nothing is computed here",
  ended: "ended", length: "cut at the longest answer",
};
const CHINESE = {
  conversation: "对话", question: "你的问题", send: "发送", stop: "停止", retry: "重试", copy: "复制",
  export: "导出 JSON", fresh: "新对话", sampling: "下一个词元怎样抽取", temperature: "温度",
  adapter: "适配器强度", seed: "随机种子", most: "回答最长", side: "并排对比", inside: "模型内部",
  hint: "指向一个词元，或用方向键移动；点击或按回车查看内部。", you: "你", spelled: "按模板写成的提示",
  cache: "KV 缓存", tokens: "个词元", all: "全部", dead: "服务器没有回应：chat --web 还在运行吗？", ready: "就绪",
  busy: "正在回答", stopped: "已停止", copied: "已复制", probability: "概率", rank: "名次", entropy: "熵",
  choose: "改说这个", other: "另一个模型的概率", difference: "差", token: "词元",
  lens: "每一层会说什么（logit lens）", layer: "层", embedding: "嵌入", thisToken: "这个词元",
  attention: "每个头在看什么", mean: "所有头的平均", head: "头", mostly: "最多看", over: "注意力在文本上的分布",
  distribution: "抽取之前的下一个词元", before: "模型", after: "抽取用", rest: "其余全部", looking: "正在查看内部",
  without: "不带适配器的同一模型", shares: "靠在一起的头共用键和值。", recorded: "这是录制：这里不做计算",
  ended: "已结束", length: "到最长处截断",
};
const WORDS = navigator.language.toLowerCase().startsWith("zh") ? CHINESE : ENGLISH;
const $ = (id) => document.getElementById(id);

// C0, C1, and what turns or hides text; the same characters as minillama.system.terminal shows.
const CONTROL = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;
const SHOWN = { "\n": "⏎\n", "\t": "⇥\t" };

function visible(text) {
  return text.replace(CONTROL, (c) => SHOWN[c] ?? "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
}

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const percent = (p) => (p === 0 ? "0" : p >= 0.1 ? (100 * p).toFixed(0) : p >= 0.001 ? (100 * p).toFixed(1) : "<0.1") + " %";

// The server's protocol

const key = location.hash.slice(1);
const recording = $("recording") && JSON.parse($("recording").textContent);

async function request(path, body, signal) {
  const headers = { Authorization: "Bearer " + key, "Content-Type": "application/json" };
  const options = body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers, signal };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(WORDS.dead);
  }
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  return answer;
}

// Calls onEvent with each event of a stream, as soon as it is whole.
async function stream(path, body, signal, onEvent) {
  const answer = await request(path, { ...body, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Error(WORDS.dead);
    });
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const event of parts.filter((part) => part !== "data: [DONE]").map((part) => JSON.parse(part.slice(6)))) {
      if (event.error) throw new Error(event.error.message);
      onEvent(event);
    }
  }
}

// Talking. A turn is {question, answers}; an answer {voice, prompt, stop, stop_token_ids, tokens, text, finish}, where
// voice is {model, adapter_scale}. Each token has the server's facts and the `text` that it completed.

let models = [];
let turns = [];
let chosen = null; // {answer, index, node}
let running = null; // an AbortController

const value = (id) => Number($(id).value);

function voices() {
  const first = { model: models[0].id };
  if (models[0].adapter) first.adapter_scale = value("adapter_scale");
  if (!$("side").checked) return [first];
  return [first, models.length > 1 ? { model: models[1].id } : { model: models[0].id, adapter_scale: 0 }];
}

function wanted(turn) {
  return { temperature: value("temperature"), top_k: value("top_k"), top_p: value("top_p"),
    seed: value("seed") + turn, max_tokens: value("max_tokens") };
}

function history(before) {
  const messages = models[0].system ? [{ role: "system", content: models[0].system }] : [];
  for (const turn of turns.slice(0, before)) {
    messages.push({ role: "user", content: turn.question }, { role: "assistant", content: turn.answers[0].text.trim() });
  }
  return messages;
}

async function answerTurn(place) {
  const turn = turns[place];
  turn.answers = voices().map((voice) => ({ voice, prompt: [], tokens: [], text: "", finish: null }));
  drawTurn(place);
  const [first, ...others] = turn.answers;
  const messages = [...history(place), { role: "user", content: turn.question }];
  await work(async (signal) => {
    await stream("/v1/chat/completions", { ...first.voice, ...wanted(place), messages, logprobs: true, top_logprobs: 5 },
      signal, (event) => take(first, event, event.choices[0].delta.content, event.choices[0].logprobs.content));
    for (const other of others) {
      Object.assign(other, { prompt: first.prompt, stop: first.stop, stop_token_ids: first.stop_token_ids });
      await goOn(other, place, signal);
      await compare(first, other.voice, signal);
    }
  });
  announce(turn);
}

// Continues an answer behind the tokens that it has.
async function goOn(answer, place, signal) {
  const prompt = [...answer.prompt, ...answer.tokens].map((token) => token.id);
  const stops = { stop: answer.stop, stop_token_ids: answer.stop_token_ids };
  await stream("/v1/completions", { ...answer.voice, ...wanted(place), ...stops, prompt, logprobs: 5 }, signal,
    (event) => take(answer, event, event.choices[0].text, event.choices[0].logprobs.facts));
}

// How likely another voice finds the tokens of an answer.
async function compare(answer, voice, signal) {
  const prompt = [...answer.prompt, ...answer.tokens].map((token) => token.id);
  const body = { ...voice, prompt, max_tokens: 0, echo: true, logprobs: 0 };
  const found = await (await request("/v1/completions", body, signal)).json();
  const theirs = found.choices[0].logprobs.token_logprobs.slice(answer.prompt.length);
  answer.tokens.forEach((token, i) => { token.other = theirs[i]; });
  for (const [i, node] of [...answer.node.querySelectorAll(".token")].entries()) {
    const token = answer.tokens[i];
    node.classList.toggle("differs", Math.abs(Math.exp(token.logprob) - Math.exp(token.other)) > 0.2);
  }
}

function take(answer, event, text, facts) {
  if (event.prompt_tokens && !answer.prompt.length) {
    Object.assign(answer, { prompt: event.prompt_tokens, stop: event.stop, stop_token_ids: event.stop_token_ids });
    drawPrompt(answer);
  }
  for (const fact of facts) addToken(answer, { ...fact, text: "" });
  if (answer.tokens.length) answer.tokens.at(-1).text += text;
  answer.text = answer.tokens.map((token) => token.text).join("").trimStart();
  answer.finish = event.choices[0].finish_reason ?? answer.finish;
  drawFoot(answer);
}

async function work(job) {
  running = new AbortController();
  busy(true);
  say(WORDS.busy);
  try {
    await job(running.signal);
    say(WORDS.ready);
  } catch (error) {
    say(error.name === "AbortError" ? WORDS.stopped : error.message);
  }
  running = null;
  busy(false);
}

function busy(now) {
  $("talk").setAttribute("aria-busy", now);
  $("send").disabled = now;
  $("stop").disabled = !now;
  for (const id of ["retry", "copy", "export"]) $(id).disabled = now || !turns.length;
}

const say = (text) => { $("status").textContent = visible(text); };

function announce(turn) { // one sentence for those who hear the page, once the answer is whole
  $("heard").textContent = visible(turn.answers[0].text);
}

function drawTurn(place) {
  const turn = turns[place];
  turn.node?.remove();
  turn.node = make("div", {}, make("div", { class: "said user" }, make("span", { class: "who" }, WORDS.you),
    visible(turn.question)));
  const answers = make("div", { class: "answers" });
  for (const answer of turn.answers) {
    const { model, adapter_scale: scale } = answer.voice;
    const name = model + (scale === undefined || scale === 1 ? "" : scale === 0 ? ", " + WORDS.without : " × " + scale);
    answer.node = make("div", { class: "tokens", role: "group", "aria-label": name });
    answer.spelled = make("div", { class: "tokens" });
    answer.foot = make("p", { class: "who" });
    answers.append(make("div", { class: "said" }, make("span", { class: "who" }, visible(name)), answer.node,
      answer.foot, make("details", {}, make("summary", {}, WORDS.spelled), answer.spelled)));
    drawPrompt(answer);
    answer.tokens.forEach((_, i) => drawToken(answer, i));
    drawFoot(answer);
  }
  turn.node.append(answers);
  $("talk").insertBefore(turn.node, turns[place + 1]?.node ?? null);
}

function drawPrompt(answer) {
  answer.spelled.replaceChildren(...answer.prompt.map((token) =>
    make("span", { class: "token prompt", title: "id " + token.id }, visible(token.token))));
}

function drawFoot(answer) {
  const model = models.find((one) => one.id === answer.voice.model) ?? models[0];
  const held = answer.prompt.length + answer.tokens.length;
  const size = held * model.kv_bytes_per_token;
  const bytes = size < 1 << 20 ? (size / 1024).toFixed(1) + " KiB" : (size / (1 << 20)).toFixed(1) + " MiB";
  const end = answer.finish === "length" ? " · " + WORDS.length : "";
  answer.foot.textContent = `${held} ${WORDS.tokens} · ${WORDS.cache} ${bytes}${end}`;
}

// What a token shows

function addToken(answer, token) {
  answer.tokens.push(token);
  drawToken(answer, answer.tokens.length - 1);
}

function colour(node, p) {
  node.style.background = `color-mix(in oklab, hsl(var(--sure)) ${100 * p}%, hsl(var(--unsure)))`;
}

function drawToken(answer, index) {
  const token = answer.tokens[index];
  const node = make("span", { class: "token", role: "button", tabindex: index === 0 ? "0" : "-1" }, visible(token.token));
  node.setAttribute("aria-label", `${visible(token.token)} ${percent(Math.exp(token.logprob))}`);
  colour(node, Math.exp(token.logprob));
  node.addEventListener("mouseenter", () => { if (!chosen?.fixed) show(answer, index); });
  node.addEventListener("focus", () => show(answer, index));
  node.addEventListener("click", () => { show(answer, index); lookInside(); });
  node.addEventListener("keydown", (event) => walk(event, answer, index));
  answer.node.append(node);
}

function walk(event, answer, index) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const nodes = answer.node.children;
  const target = event.key === "Home" ? 0 : event.key === "End" ? nodes.length - 1 : index + (steps[event.key] ?? 0);
  if (event.key === "Enter" || event.key === " ") {
    lookInside();
  } else if (target !== index && nodes[target]) {
    nodes[index].tabIndex = -1;
    nodes[target].tabIndex = 0;
    nodes[target].focus();
  } else if (!(event.key in steps)) {
    return;
  }
  event.preventDefault();
}

function show(answer, index) {
  if (chosen?.answer === answer && chosen.index === index) return;
  chosen?.node.classList.remove("chosen");
  const token = answer.tokens[index];
  chosen = { answer, index, node: answer.node.children[index], fixed: false };
  chosen.node.classList.add("chosen");
  $("look").replaceChildren();
  const facts = [[WORDS.token, make("span", { class: "piece" }, visible(token.token))],
    [WORDS.probability, percent(Math.exp(token.logprob))], [WORDS.rank, token.rank],
    [WORDS.entropy, token.entropy.toFixed(2) + " nats"]];
  if (token.other !== undefined) {
    const change = 100 * (Math.exp(token.other) - Math.exp(token.logprob));
    facts.push([WORDS.other, percent(Math.exp(token.other))],
      [WORDS.difference, (change > 0 ? "+" : "") + change.toFixed(1) + " %"]);
  }
  const rows = facts.map(([name, fact]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, fact)));
  const rivals = token.top_logprobs.map((rival) => rivalRow(rival, Math.exp(rival.logprob), answer, index));
  $("token").replaceChildren(make("table", {}, make("tbody", {}, ...rows)),
    make("table", {}, make("tbody", {}, ...rivals)));
}

function bar(p) {
  const filled = make("i");
  filled.style.width = 100 * p + "%";
  return make("div", { class: "bar" }, filled);
}

function rivalRow(rival, p, answer, index) {
  const cells = [make("td", { class: "piece" }, visible(rival.token)), make("td", {}, percent(p)), make("td", {}, bar(p))];
  if (!recording) {
    const label = `${WORDS.choose}: ${visible(rival.token)}`;
    cells.push(make("td", {}, make("button", { class: "choose", "aria-label": label,
      onclick: () => sayInstead(answer, index, rival) }, WORDS.choose)));
  }
  return make("tr", {}, ...cells);
}

// "What if": the answer up to this token, then the chosen one, then whatever follows from it.
async function sayInstead(answer, index, rival) {
  if (running) return;
  const place = turns.findIndex((turn) => turn.answers.includes(answer));
  const ends = answer.stop_token_ids.includes(rival.id);
  const old = answer.tokens[index];
  answer.tokens = answer.tokens.slice(0, index);
  [...answer.node.children].slice(index).forEach((node) => node.remove());
  chosen = null;
  const rank = 1 + old.top_logprobs.findIndex((one) => one.id === rival.id);
  addToken(answer, { ...old, ...rival, rank, other: undefined, text: ends ? "" : rival.token });
  answer.finish = ends ? "stop" : null;
  if (!ends) await work((signal) => goOn(answer, place, signal));
  answer.text = answer.tokens.map((token) => token.text).join("").trimStart();
}

// Looking inside

async function lookInside() {
  if (!chosen || running) return;
  const { answer, index } = chosen;
  const before = [...answer.prompt, ...answer.tokens.slice(0, index)];
  const said = answer.tokens[index];
  chosen.fixed = true;
  const draw = (look) => { if (chosen?.answer === answer && chosen.index === index) drawLook(look, before, said); };
  if (recording) return draw(answer.looks[index]);
  say(WORDS.looking);
  try {
    const body = { ...answer.voice, tokens: before.map((token) => token.id), said: said.id };
    draw(await (await request("/v1/inspect", body)).json());
    say(WORDS.ready);
  } catch (error) {
    say(error.message);
  }
}

function drawLook(look, before, said) {
  chosen.look = look;
  const weights = look.attention.map((layer) => layer.map(unpacked));
  const filtered = make("div", { id: "filtered" });
  $("look").replaceChildren(
    make("h3", {}, WORDS.distribution), filtered,
    make("h3", {}, WORDS.attention), ...attentionPart(look, weights, before),
    make("h3", {}, WORDS.lens), lensTable(look, said));
  drawFiltered();
}

// In a recording a row of weights is a text of digits, each the square root of a weight in steps of 1 / 63.
const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const unpacked = (row) => (typeof row === "string" ? [...row].map((c) => (DIGITS.indexOf(c) / 63) ** 2) : row);

function attentionPart(look, weights, before) {
  const text = make("div", { class: "tokens", role: "img" });
  const shown = [...Array(look.virtual_tokens).fill({ token: "▢" }), ...before];
  const nodes = shown.map((token) => make("span", { class: "token source" }, visible(token.token)));
  text.append(...nodes);
  const title = make("p", { class: "who" });
  const most = (row) => row.indexOf(Math.max(...row));
  const sight = (row) => `${WORDS.mostly} ${visible(shown[most(row)].token)} (${percent(Math.max(...row))})`;
  const paint = (name, row, button) => {
    const highest = Math.max(...row);
    nodes.forEach((node, i) => {
      node.style.setProperty("--weight", (row[i] / highest).toFixed(3));
      node.title = percent(row[i]);
    });
    title.textContent = `${name}: ${sight(row)}`;
    text.setAttribute("aria-label", `${WORDS.over}, ${name}: ${sight(row)}`);
    for (const other of grid.querySelectorAll("button")) other.setAttribute("aria-pressed", other === button);
  };
  const grid = make("div", { class: "heads" });
  grid.style.gridTemplateColumns = `auto repeat(${look.heads}, minmax(1.5rem, 1fr))`;
  weights.forEach((layer, l) => {
    grid.append(make("span", {}, `${WORDS.layer} ${l + 1}`));
    layer.forEach((row, h) => {
      const name = `${WORDS.layer} ${l + 1}, ${WORDS.head} ${h + 1}`;
      const button = make("button", { type: "button", "aria-label": `${name}: ${sight(row)}`, title: sight(row),
        onclick: () => paint(name, row, button) });
      button.style.background = `rgba(var(--heat), ${Math.max(...row).toFixed(2)})`;
      const perGroup = look.heads / look.kv_heads;
      if (h && h % perGroup === 0) button.classList.add("group");
      grid.append(button);
    });
  });
  const rows = weights.flat();
  const average = rows[0].map((_, i) => rows.reduce((sum, row) => sum + row[i], 0) / rows.length);
  const mean = make("button", { type: "button", class: "choose", onclick: () => paint(WORDS.mean, average, mean) }, WORDS.mean);
  paint(WORDS.mean, average, mean);
  const grouped = look.kv_heads < look.heads ? [make("p", { class: "who" }, WORDS.shares)] : [];
  return [text, title, mean, grid, ...grouped];
}

function lensTable(look, said) {
  const head = make("tr", {}, ...[WORDS.layer, WORDS.token, "", WORDS.thisToken, WORDS.rank].map((name) =>
    make(name ? "th" : "td", name ? { scope: "col" } : {}, name)));
  const rows = [...look.lens].reverse().map((layer) => make("tr", {},
    make("th", { scope: "row" }, layer.layer === 0 ? WORDS.embedding : String(layer.layer)),
    make("td", { class: "piece", title: layer.top.map((one) => visible(one.token)).join("  ") },
      visible(layer.top[0].token)),
    make("td", {}, percent(Math.exp(layer.top[0].logprob))),
    make("td", {}, percent(Math.exp(layer.logprob))), make("td", {}, String(layer.rank))));
  return make("table", { "aria-label": `${WORDS.lens}: ${visible(said.token)}` }, make("thead", {}, head),
    make("tbody", {}, ...rows));
}

// Sliders. The same order as minillama.sampling: temperature, top-k, top-p.

// {top: [[id, text, logit]], rest: [[mean logit, count]]} -> {top: [probability], rest: probability}
function filtered(distribution, temperature, topK, topP) {
  const { top, rest } = distribution;
  if (temperature === 0) return { top: top.map((_, i) => (i === 0 ? 1 : 0)), rest: 0 };
  const weight = (logit) => Math.exp(logit / temperature);
  let kept = top.map(([, , logit]) => weight(logit));
  let others = rest.map(([logit, count]) => count * weight(logit));
  if (topK) {
    kept = kept.map((w, i) => (i < topK ? w : 0));
    others = others.map(() => 0);
  }
  const sum = (list) => list.reduce((total, w) => total + w, 0);
  if (topP < 1) {
    const all = sum(kept) + sum(others);
    let before = 0;
    const nucleus = (w) => { const keep = before < topP * all; before += w; return keep ? w : 0; };
    kept = kept.map(nucleus);
    others = others.map(nucleus); // a step of the others is kept or cut as a whole
  }
  const all = sum(kept) + sum(others);
  return { top: kept.map((w) => w / all), rest: sum(others) / all };
}

function drawFiltered() {
  const place = $("filtered");
  if (!chosen?.look || !place) return;
  const { distribution } = chosen.look;
  const model = filtered(distribution, 1, 0, 1);
  const drawn = filtered(distribution, value("temperature"), value("top_k"), value("top_p"));
  const row = (text, before, after) => make("tr", after === 0 ? { class: "cut" } : {},
    make("td", { class: "piece" }, visible(text)), make("td", {}, percent(before)), make("td", {}, percent(after)),
    make("td", {}, bar(after)));
  const rows = distribution.top.slice(0, 12).map(([, text], i) => row(text, model.top[i], drawn.top[i]));
  const tail = (found) => found.rest + found.top.slice(12).reduce((total, p) => total + p, 0);
  if (tail(model)) rows.push(row(WORDS.rest, tail(model), tail(drawn)));
  const head = [WORDS.token, WORDS.before, WORDS.after].map((name) => make("th", { scope: "col" }, name));
  place.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...head, make("td"))),
    make("tbody", {}, ...rows)));
}

function slid() {
  for (const id of ["temperature", "top_k", "top_p", "adapter_scale"]) {
    $(id + "-value").textContent = id === "top_k" && value(id) === 0 ? WORDS.all : $(id).value;
  }
  drawFiltered();
}

// What starts it all

async function send(event) {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || running || recording) return;
  turns.push({ question, answers: [] });
  $("question").value = "";
  await answerTurn(turns.length - 1);
}

function retry() {
  $("seed").value = value("seed") + 1;
  answerTurn(turns.length - 1);
}

function forget() {
  running?.abort();
  turns.forEach((turn) => turn.node.remove());
  turns = [];
  chosen = null;
  $("token").replaceChildren();
  $("look").replaceChildren();
  busy(false);
}

function plain() { // the conversation as data
  return turns.map(({ question, answers }) => ({ question, answers: answers.map(
    ({ voice, prompt, tokens, text, finish }) => ({ voice, prompt, tokens, text, finish })) }));
}

function exportJson() {
  const data = new Blob([JSON.stringify({ models, turns: plain() }, null, 1)], { type: "application/json" });
  const link = make("a", { href: URL.createObjectURL(data), download: "conversation.json" });
  link.click();
  URL.revokeObjectURL(link.href);
}

async function copy() {
  await navigator.clipboard.writeText(turns.at(-1).answers[0].text);
  say(WORDS.copied);
}

function setWords() {
  document.documentElement.lang = WORDS === CHINESE ? "zh" : "en";
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = WORDS[node.dataset.text];
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", WORDS[node.dataset.label]);
}

function setControls() {
  const first = models[0];
  $("model").textContent = visible(models.map((model) => model.id).join(" | "));
  $("temperature").value = first.temperature;
  $("top_k").value = first.top_k;
  $("top_p").value = first.top_p;
  $("seed").value = first.seed;
  $("max_tokens").value = Math.min(first.max_tokens, first.context);
  $("adapter").hidden = !first.adapter;
  $("compare").hidden = models.length < 2 && !first.adapter;
  $("side").checked = models.length > 1;
  $("other").textContent = visible(models.length > 1 ? models[1].id : WORDS.without);
  slid();
}

function replay() {
  ({ models, turns } = recording);
  setControls();
  turns.forEach((_, place) => drawTurn(place));
  for (const id of ["ask", "adapter", "compare"]) $(id).hidden = true;
  say(WORDS.recorded);
}

async function start() {
  setWords();
  $("ask").addEventListener("submit", send);
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
  });
  $("stop").addEventListener("click", () => running?.abort());
  $("retry").addEventListener("click", retry);
  $("copy").addEventListener("click", copy);
  $("export").addEventListener("click", exportJson);
  $("fresh").addEventListener("click", forget);
  for (const id of ["temperature", "top_k", "top_p", "adapter_scale"]) $(id).addEventListener("input", slid);
  if (recording) return replay();
  try {
    models = (await (await request("/v1/models")).json()).data;
    setControls();
    say(WORDS.ready);
  } catch (error) {
    say(error.message);
  }
}

start();
