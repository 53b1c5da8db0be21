"""A model's own chat template, rendered in a process of its own, which is ended where it runs too long.

The program comes from a stranger: jinja2's sandbox keeps it from files and from Python, but not from looping for ever
or from filling the memory. As `python -m minillama.train.jinja_sandbox` this module answers one line of JSON with one.
"""

import datetime
import functools
import json
import os
import signal
import subprocess
import sys
import threading

SECONDS, MEMORY, OUTPUT = 10, 1 << 30, 1 << 24  # of one text: time; bytes of memory where the system limits it; letters
BEGIN, END = "\ue101", "\ue102"  # Unicode's letters for private use: they stand around an answer
LOCK = threading.Lock()
PROCESS: list = []  # [the process that renders, the one that started it]


def render(program, values):
    """The text that the Jinja program makes of the values, a JSON object; ValueError where it makes none."""
    with LOCK:
        if not PROCESS or PROCESS[0].poll() is not None or PROCESS[1] != os.getpid():  # not that of a parent
            PROCESS[:] = _start(), os.getpid()
        process, _ = PROCESS
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps([program, values]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        except BaseException:  # Ctrl-C: its answer would be taken for the next one's
            process.kill()
            raise
        finally:
            timer.cancel()
        if not answer.endswith("\n"):  # nothing, or half of an answer
            answer = ""
            process.kill()
            process.wait()  # so that the next text finds it dead
    text, error = json.loads(answer) if answer else (
        None, f"does not end within {SECONDS} s and {MEMORY >> 30} GiB of memory")
    if error:
        raise ValueError(f"the model's own chat_template {error}")
    return text


def _start():
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen([sys.executable, "-m", "minillama.train.jinja_sandbox"], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               env={**os.environ, "PYTHONPATH": paths})
    process.stdout.readline()  # it has started: the time of a text does not count what a busy machine needs for that
    return process


def rendered(program, values):
    """[text, None], or [None, what is wrong with the program], for `render`."""
    wrong = "is no Jinja program"
    try:
        compiled, wrong = _compiled(program), "refuses this conversation"
        size, parts = 0, []
        for part in compiled.generate(values):
            size += len(part)
            parts.append(part)
            if size > OUTPUT:
                return None, f"writes more than {OUTPUT} letters"
        return "".join(parts), None
    except MemoryError:
        return None, f"needs more than {MEMORY >> 30} GiB of memory"
    except Exception as error:  # whatever a stranger's program raises
        return None, f"{wrong} ({' '.join(str(error).split())[:200]})"


@functools.lru_cache(8)
def _compiled(program):
    return _sandbox().from_string(program)


def _sandbox():
    """jinja2's sandbox with what transformers gives to a template in it."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)

        def marked(self, caller):
            return BEGIN + caller() + END

    def refuse(message):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=["jinja2.ext.loopcontrols", Generation])
    environment.filters["tojson"] = lambda value, ensure_ascii=False, indent=None, separators=None, sort_keys=False: (
        json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys))
    environment.globals.update(raise_exception=refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form))
    return environment


def main():
    """Answer line after line, within the limit of memory, until the asking process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # Windows, and systems that do not limit it
        pass
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(rendered(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
