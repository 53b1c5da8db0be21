"""A stranger's template: rendered as transformers renders it, and ended where it takes too much time or memory."""

import io
import os
import sys
import time
from types import SimpleNamespace

import pytest
from mutants import Mutant

from minillama.train import jinja_sandbox
from minillama.train.jinja_sandbox import render, rendered

TALK = [{"role": "user", "content": " hi <\n"}, {"role": "assistant", "content": "a 'b' & \u4f60 "}]
PROGRAMS = [
    "{% for m in messages %}\n  {% if m.role %}\n[{{ m['role'] }}]{{ m.content | trim }}\n  {% endif %}\n"
    "{% endfor %}\n",
    "{%- for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor -%} "
    "{{ bos_token }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ tools }}",
    "{% macro q(x, y='!') %}{{ x ~ y }}{% endmacro %}{{ q(messages[0].content) }}{{ messages | map(attribute='role') | "
    "join(',') }}{% if add_generation_prompt %}A{% endif %}",
    "{{ messages | tojson(separators=(',', ':')) }}{{ messages[1] | tojson(sort_keys=true, indent=1) }}"
    "{{ messages[1].content | tojson(true) }}{{ messages[1].content | tojson(ensure_ascii=true) }}"]
FOREVER = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4


def values(asks=True):
    return {"messages": TALK, "add_generation_prompt": asks, "tools": None, "documents": None, "bos_token": "<s>",
            "eos_token": "</s>"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_gives_the_text_that_transformers_makes_of_it(program):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    for asks in (True, False):
        [[wanted], _] = utils.render_jinja_template([TALK], chat_template=program, add_generation_prompt=asks,
                                                    bos_token="<s>", eos_token="</s>")
        assert rendered(program, values(asks)) == (wanted, None)
        assert render(program, values(asks)) == wanted


@pytest.mark.parametrize(("program", "message"), [
    ("{{ ''.__class__.__mro__ }}", "refuses this conversation .access to attribute '__class__'"),
    ("{{ messages.append(1) }}", "refuses this conversation"), ("{{ 1 / 0 }}", "refuses .*division by zero"),
    ("{{ cycler.__init__.__globals__ }}", "refuses this conversation"), ("{% if %}", "is no Jinja program"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses this conversation .maximum recursion"),
    ("{{ '%d' % 'x' }}", "refuses this conversation"), ("{% include 'etc' %}", "refuses this conversation")])
def test_what_cannot_be_rendered_is_one_line(program, message):
    text, wrong = rendered(program, values())
    assert text is None and "\n" not in wrong
    with pytest.raises(ValueError, match=message) as caught:
        render(program, values())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_half_an_answer_of_a_process_that_was_ended_is_none(monkeypatch):
    ended = SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO('["half of'), poll=lambda: None, kill=lambda: None,
                            wait=lambda: -9)
    monkeypatch.setattr(jinja_sandbox, "PROCESS", [ended, os.getpid()])
    with pytest.raises(ValueError, match="chat_template does not end within"):
        render("{{ 1 }}", values())


def test_a_program_that_does_not_end_is_ended_and_the_next_one_renders(monkeypatch):
    assert render("{{ 1 }}", values()) == "1"
    monkeypatch.setattr(jinja_sandbox, "SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(ValueError, match="does not end within 1 s"):
        render(FOREVER, values())
    assert time.monotonic() - began < 30
    monkeypatch.undo()
    assert render("{{ messages[0].role }}", values()) == "user"


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space by Linux's means")
def test_a_program_that_fills_the_memory_is_refused():
    doubling = "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
    for program in ("{{ 'x' * 10**12 }}", doubling, "{{ 'x' | center(10**11) }}", "{{ '{:>99999999999}'.format(1) }}"):
        with pytest.raises(ValueError, match="needs more than 1 GiB of memory|does not end within"):
            render(program, values())


def test_a_text_without_end_is_refused():
    with pytest.raises(ValueError, match="writes more than 16777216 letters"):
        render("{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", values())


MODULE = "minillama.train.jinja_sandbox"
MUTANTS = [
    Mutant(MODULE, "sort_keys=sort_keys", "sort_keys=False",
           lambda: test_a_program_gives_the_text_that_transformers_makes_of_it(PROGRAMS[-1])),
    Mutant(MODULE, "trim_blocks=True", "trim_blocks=False",
           lambda: test_a_program_gives_the_text_that_transformers_makes_of_it(PROGRAMS[0])),
    Mutant(MODULE, "ImmutableSandboxedEnvironment(trim", "jinja2.Environment(trim",
           lambda: test_what_cannot_be_rendered_is_one_line("{{ ''.__class__.__mro__ }}", "refuses")),
]
