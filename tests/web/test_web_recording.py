"""A recorded conversation: what the server would say, in one file that asks nobody for anything."""

import base64
import hashlib
import json
import re
from functools import partial
from pathlib import Path

import pytest
from mutants import Mutant
from web_server import Bytes, made_loaded

from minillama.chat import Conversation, reply
from minillama.web.inspection import inspect
from minillama.web.web_recording import DIGITS, record, static_page

ROOT = Path(__file__).resolve().parents[2]


def recorded(tmp_path, questions=("Hi", "</script><b>?")):
    loaded = made_loaded()
    record(loaded, questions, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    return loaded, page, recording_in(page)


def recording_in(page):
    (data,) = re.findall(r'<script id="recording" type="application/json">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(data)


def test_a_recording_is_the_conversation_that_chat_has(tmp_path):
    loaded, _, data = recorded(tmp_path)
    conversation = Conversation(Bytes(), "vicuna")
    for place, turn in enumerate(data["turns"]):
        conversation.ask(turn["question"])
        said = "".join(reply(loaded.model, conversation, 12, loaded.sampling, place))
        assert turn["answers"][0]["text"] == said.strip()
    assert len(data["turns"]) == 2


def test_its_attention_is_the_models_to_half_a_digit(tmp_path):
    loaded, _, data = recorded(tmp_path)
    answer = data["turns"][1]["answers"][0]
    ids = [token["id"] for token in [*answer["prompt"], *answer["tokens"]]]
    for place, look in enumerate(answer["looks"]):
        weights_LHS = inspect(loaded.model, ids[:len(answer["prompt"]) + place])[0]
        for layer, rows in zip(look["attention"], weights_LHS.tolist(), strict=True):
            for digits, row in zip(layer, rows, strict=True):
                for digit, weight in zip(digits, row, strict=True):
                    assert abs(DIGITS.index(digit) / 63 - weight ** 0.5) <= 0.5 / 63 + 1e-6


def test_it_is_one_small_file_whose_policy_names_its_own_script_and_style(tmp_path):
    _, page, _ = recorded(tmp_path)
    assert len(page.encode()) < 300_000 and not re.search(r'(src|href)="', page)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    for kind in ("style", "script"):
        (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, flags=re.DOTALL)
        wanted = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{wanted}'" in policy
    assert page.count("</script>") == 2 and "<b>?" not in page


def test_the_page_in_the_documentation_is_todays_page_with_its_recording():
    """Made by: echo "Once upon a time there was a cat. What did it do?" | python3 run.py chat --web --record
    docs/inside.html --model stories260K.bin --max-new-tokens 48."""
    page = (ROOT / "docs" / "inside.html").read_bytes()
    assert static_page(recording_in(page.decode())) == page and len(page) < 300_000


def test_a_recording_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("minillama.web.web_recording.MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="--max-new-tokens"):
        recorded(tmp_path)
    assert not (tmp_path / "page.html").exists()


def in_a_folder(law):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        law(Path(folder))


plant = partial(Mutant, "minillama.web.web_recording")
MUTANTS = [
    plant("{style}</style>", "{style} </style>",
          test_the_page_in_the_documentation_is_todays_page_with_its_recording),
    plant("asked.seed + len(turns)", "asked.seed",
          lambda: in_a_folder(test_a_recording_is_the_conversation_that_chat_has)),
    plant("round(63 * weight ** 0.5)", "int(63 * weight ** 0.5)",
          lambda: in_a_folder(test_its_attention_is_the_models_to_half_a_digit)),
    plant('.replace("<", "\\\\u003c")', "",
          lambda: in_a_folder(test_it_is_one_small_file_whose_policy_names_its_own_script_and_style)),
]
