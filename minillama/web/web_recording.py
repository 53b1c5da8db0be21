"""A conversation as one file that needs no server: `chat --web --record FILE.html`."""

import base64
import hashlib
import json
from pathlib import Path

from minillama.system.files import atomic_write
from minillama.web.inspection import inspection
from minillama.web.protocol import read_asked
from minillama.web.token_facts import answers, label

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
MOST_BYTES = 300_000  # of a file, so that a page of documentation stays light


def record(loaded, questions, path):
    """Ask the questions in turn, look inside every token of the answers, and write all of it as one page. ValueError
    where it is longer than MOST_BYTES."""
    messages = [{"role": "system", "content": loaded.system}] * bool(loaded.system)
    turns = []
    for question in filter(None, map(str.strip, questions)):
        messages.append({"role": "user", "content": question})
        asked = read_asked({"messages": messages, "logprobs": True, "top_logprobs": 5}, "chat", loaded)
        (ids,), tokens, finish = asked.prompts, [], None
        for piece in answers(loaded.model, loaded.tokenizer, [ids], asked.max_new_tokens, asked.sampling, asked.stop,
                             asked.seed + len(turns), asked.stop_ids):
            tokens += [{**fact, "text": ""} for fact in piece.tokens]
            if tokens:
                tokens[-1]["text"] += piece.text
            finish = piece.finish
        text = "".join(token["text"] for token in tokens).strip()
        messages.append({"role": "assistant", "content": text})
        whole = ids + [token["id"] for token in tokens]
        looks = [packed(inspection(loaded.model, loaded.tokenizer, whole[:len(ids) + place], token["id"], 3, 16))
                 for place, token in enumerate(tokens)]
        prompt = [{"id": index, "token": label(loaded.tokenizer, index)} for index in ids]
        said = {"voice": {"model": loaded.name}, "prompt": prompt, "text": text, "tokens": tokens, "finish": finish}
        turns.append({"question": question, "answers": [{**said, "looks": looks}]})
    page = static_page({"models": [loaded.described()], "turns": turns})
    if len(page) > MOST_BYTES:
        raise ValueError(f"the recording has {len(page)} bytes and {MOST_BYTES} are allowed: choose a smaller "
                         "--max-new-tokens, or ask less")
    with atomic_write(path) as file:
        file.write(page)


def packed(look):
    """An inspection with each row of attention as a text: a digit of base 64 for the root of each weight."""
    rows = [["".join(DIGITS[round(63 * weight ** 0.5)] for weight in head) for head in layer]
            for layer in look["attention"]]
    return json.loads(json.dumps({**look, "attention": rows}), parse_float=lambda number: round(float(number), 3))


def static_page(recording):
    """The bytes of the page with its style, its script and a recording inside; its policy lets only these act."""
    html, style, script = ((Path(__file__).with_name(f"page.{kind}")).read_text(encoding="utf-8")
                           for kind in ("html", "css", "js"))
    sums = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = f"default-src 'none'; style-src 'sha256-{sums[0]}'; script-src 'sha256-{sums[1]}'"
    data = json.dumps(recording, separators=(",", ":")).replace("<", "\\u003c")
    html = html.replace('<link rel="stylesheet" href="page.css">', "<meta http-equiv=\"Content-Security-Policy\" "
                        f'content="{policy}">\n<style>{style}</style>')
    return html.replace('<script src="page.js"></script>', f'<script id="recording" type="application/json">{data}'
                        f"</script>\n<script>{script}</script>").encode()
