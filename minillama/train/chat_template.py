"""Which template a conversation is put in, and the model's own one: a Jinja program that its folder brings.

It is rendered in jinja2's sandbox (`jinja_sandbox`), as transformers does it (huggingface.co/docs/transformers). What
it writes becomes control tokens where it names them; the same letters inside a message stay text. A template of ours is
kept in a model's folder as a Jinja program too (`JINJA`): other programs then put questions to it the same way.
"""

import functools
from pathlib import Path

from minillama.tokenizer.added_tokens import AddedToken
from minillama.train.jinja_sandbox import BEGIN, END, render
from minillama.train.sequence_loss import control_id
from minillama.train.templates import TEMPLATES, Segment

OWN = "own"  # the name of the model's own template, beside those of `TEMPLATES`
APART = "\ue100"  # a letter for private use, as BEGIN and END are: it stands inside a name that a message holds
JINJA = {path.stem: path.read_text(encoding="utf-8").strip()
         for path in sorted(Path(__file__).with_name("chat_templates").glob("*.jinja"))}  # ours, as Jinja programs
NAMES = {program: name for name, program in JINJA.items()}


def template_for(tokenizer):
    """The name of the template that a model's files bring: one of ours, or "own" for any other Jinja program; without
    one, what the control tokens give away; else None."""
    if getattr(tokenizer, "chat_template", None):
        return NAMES.get(tokenizer.chat_template.strip(), OWN)
    known = getattr(tokenizer, "special_tokens", {})
    return "llama3" if "<|eot_id|>" in known else "chatml" if "<|im_start|>" in known else None


def chosen_template(asked, tokenizer, otherwise, model="the model"):
    """(the name of the template to use, what to tell of it): the one asked for, else the model's, else `otherwise`.
    The tokenizer's `chat_template` becomes that one, so that it is kept wherever the tokenizer is written."""
    own = template_for(tokenizer)
    name, told = asked or own or otherwise, ""
    if asked and own and asked != own and tokenizer.chat_template:
        told = f": {model} was tuned in {own}, expect worse answers"
    elif not asked and not own:
        told = f", for {model} names none"
    if name == OWN and own != OWN:
        raise ValueError(f"{model} brings no template of its own: choose one of {', '.join(TEMPLATES)}")
    if name != OWN:
        tokenizer.chat_template = JINJA[name]
    return name, f"template {name}{told}"


def template_function(name, tokenizer):
    """messages -> segments, by the name of a template; ValueError for one that is not known."""
    if name == OWN:
        return functools.partial(own_template, tokenizer)
    if name not in TEMPLATES:
        raise ValueError(f"template {name!r} is not known: choose one of {', '.join([*TEMPLATES, OWN])}")
    return TEMPLATES[name]


def pair_function(name, tokenizer):
    """(prompt, answer or None) -> segments up to the token that ends the answer."""
    template = template_function(name, tokenizer)

    def segments(prompt, answer=None):
        asked = [{"role": "user", "content": prompt}]
        if answer is None:
            return template(asked)
        found = template([*asked, {"role": "assistant", "content": answer}])
        return found[:1 + max(place for place, segment in enumerate(found) if segment.learn)]

    return segments


def end_of_answer(name, tokenizer):
    """The id of the control token that ends an answer, None in a template that ends it otherwise."""
    last = pair_function(name, tokenizer)("?", "!")[-1]
    return control_id(last.text, tokenizer) if last.control else None


def own_template(tokenizer, messages):
    """The segments of messages as the model's own Jinja program writes them: without an answer at the end, the prompt
    for one. What is learned are the answers and the control tokens that end them: {% generation %} says which parts
    they are, or what the program adds behind the prompt for each. ValueError where neither can be told."""
    apart = [{**message, "content": _kept_apart(message["content"], tokenizer)} for message in messages]
    asked = messages[-1]["role"] != "assistant"
    text = _render_chat(tokenizer, apart, asked)
    marked = [(part, place % 2 == 1) for place, part in enumerate(text.replace(END, BEGIN).split(BEGIN))]
    runs = marked if BEGIN in text else _answers(tokenizer, apart, text)
    return [Segment(part.text if isinstance(part, AddedToken) else part.replace(APART, ""), learn,
                    isinstance(part, AddedToken) and part.special)
            for run, learn in runs if run for part in tokenizer.split_added(run, "all")]


def _kept_apart(content, tokenizer):
    """The content, with a mark inside every name of a special token: what it holds must not become one."""
    for name in tokenizer.special_tokens:
        content = content.replace(name, name[0] + APART + name[1:])
    return content


def _answers(tokenizer, messages, text):
    """[(part of the text, whether it is learned)]: an answer goes from the end of its prompt to its control token."""
    runs, done = [], 0
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render_chat(tokenizer, messages[:place], True)
        through = _render_chat(tokenizer, messages[:place + 1], False)
        if not text.startswith(prompt) or not done <= len(prompt):
            if messages[-1]["role"] != "assistant":  # they ask for an answer: nothing is learned from them
                return [(text, False)]
            raise ValueError("the model's own chat_template writes earlier turns otherwise once an answer follows: "
                             f"which part is learned cannot be told: choose --template {', '.join(TEMPLATES)}")
        rest = text[len(prompt):len(through)] if text.startswith(through) else text[len(prompt):]
        parts = tokenizer.split_added(rest, "all")
        end = next((part.text for part in parts if isinstance(part, AddedToken) and part.special), None)
        size = len(rest) if end is None else rest.index(end) + len(end)
        runs += [(text[done:len(prompt)], False), (text[len(prompt):len(prompt) + size], True)]
        done = len(prompt) + size
    return [*runs, (text[done:], False)]


def _render_chat(tokenizer, messages, asks):
    names = {f"{which}_token": tokenizer.id_to_piece(index) for which, index in (
        ("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("unk", tokenizer.unk_id), ("pad", tokenizer.pad_id))
        if index is not None}
    values = {"messages": messages, "add_generation_prompt": asks, "tools": None, "documents": None}
    try:
        return render(tokenizer.chat_template, {"bos_token": "", "eos_token": "", **names, **values})
    except ValueError as error:
        raise ValueError(f"{error}: choose another with --template {', '.join(TEMPLATES)}") from None
