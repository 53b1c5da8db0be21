#!/usr/bin/env python3
"""minillama's front door: nothing to install first, nothing to activate.

learn:
    python3 run.py tour            the whole story on this computer, in minutes: text, model, chat, kernels
    python3 run.py lesson 5        a lesson, cell by cell in the terminal; `lesson`: what there is to learn;
                                   `lesson 5 --seeds 3`: do its numbers hold for three seeds?
    python3 run.py check 5         grade your answer to its exercise; `--watch`: at every save; `--solution`: show one
    python3 run.py notebook 5      the lesson as a Jupyter notebook
    python3 run.py book            all lessons as pages to read offline
    python3 run.py docs            the docstrings of every module as pages (needs pdoc, and says so)
use, train, convert, verify:
    python3 run.py clean-corpus    keep of raw text what is worth learning from, and say what went
    python3 run.py evaluate        score a model on benchmark files, with standard errors
    python3 run.py judge           let a model compare the answers of two others, in both orders
    python3 run.py align           a published road, stage by stage: fine-tuning, reward model, PPO
    python3 run.py llama2-chat     `ppo` with two reward models, helpful and safe; `best`: the best of several answers
    python3 run.py ghost-attention conversations that teach a model to keep a system's instruction over turns
    python3 run.py stack-exchange  your own dump of a Stack Exchange site as text, answers and pairs
    python3 run.py ANYTHING ELSE   is `python -m minillama ANYTHING ELSE`, and `python -m minillama --help` lists them:
                                   generate, chat, pretrain, sft, reward, ppo, convert, parity and others
test and measure:
    python3 run.py test            the quick tests; `test --all`: the long ones too; `test tests/test_rope.py`: one file
    python3 run.py test --cap sse  the numeric tests, as on a CPU with SSE alone; `--cap avx2`: with AVX2
    python3 run.py bench [name]    ratios to named peers and to the machine's limit
    python3 run.py gpu             build the CUDA kernels for your GPU, verify and time them: one report to paste
    python3 run.py mutate 20 7     plant 20 random mistakes, one at a time, and list those that no test notices
this checkout:
    python3 run.py shell           a shell in which `python` is minillama's own
    python3 run.py clean           remove what the set-up made: .venv and the compiled kernels

The first start makes `.venv` beside this file (bootstrap.py) and says what that costs; later starts are instant
and offline. MINILLAMA_TORCH="torch==2.9.1" (a requirement, or the path of a wheel) chooses another PyTorch.
"""
# Python 2.7 has to read this file to say that it is too old: no f-string, no print(file=), one * in a call

import os
import signal
import subprocess
import sys

if sys.version_info < (3, 10):
    sys.exit("minillama needs Python 3.10 or newer, this is %d.%d: try python3.12 run.py" % sys.version_info[:2])

import bootstrap
from bootstrap import PYTHON, ROOT, VENV, WINDOWS

CAPS = {  # what PyTorch, its libraries and our kernels may use of a CPU
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "sse": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
}
TOOLS = {"book": "book_markdown", "docs": "api_pages", "gpu": "on_gpu", "mutate": "mutate", "judge": "judge_answers",
         "evaluate": "evaluate", "clean-corpus": "clean_corpus", "align": "align", "stack-exchange": "stack_exchange",
         "llama2-chat": "two_rewards", "ghost-attention": "ghost_attention"}


def main(argv):
    """Do what the first word says, and return the exit code."""
    verb, rest = (argv[0], argv[1:]) if argv else ("help", [])
    if verb in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0
    if verb == "clean":
        return bootstrap.clean()
    if verb == "bench" and (not rest or rest[0] not in benchmarks()):
        print("bench what? There are: " + ", ".join(benchmarks()))
        return 2 if rest else 0
    with bootstrap.one_at_a_time():
        bootstrap.set_up(for_tests=verb in ("test", "mutate"), for_web="--web" in rest)
    if verb == "test":
        return run_tests(rest)
    if verb == "lesson" and "--seeds" in rest:
        return call(PYTHON, ROOT / "tools" / "lesson_seeds.py", *rest)
    if verb == "info" and ("--method" in rest or "--articles" in rest):
        return call(PYTHON, ROOT / "tools" / "memory_cost.py", *rest)
    if verb == "info" and any(word.startswith("--mesh") for word in rest):
        return call(PYTHON, ROOT / "tools" / "mesh_plan.py", *rest)
    if verb == "pretrain" and "--recipe" in rest:
        return call(PYTHON, ROOT / "tools" / "pretrain_recipe.py", *rest)
    if any(word.split("=")[0] == "--tensorboard" for word in rest):
        return call(PYTHON, ROOT / "tools" / "tensorboard_log.py", *argv)
    if verb == "tokenizer" and any(word.startswith("--normalization") for word in rest):
        return call(PYTHON, ROOT / "tools" / "normalized_tokenizer.py", *argv)
    if verb in TOOLS:
        return call(PYTHON, ROOT / "tools" / (TOOLS[verb] + ".py"), *rest)
    if verb == "ppo" and any(word.startswith("--like") for word in rest):
        return call(PYTHON, ROOT / "tools" / "ppo_like.py", *rest)
    if verb == "generate" and any(word.startswith("--device-map") for word in rest):
        return call(PYTHON, ROOT / "tools" / "generate_over_devices.py", *rest)
    if verb == "bench":
        return call(PYTHON, ROOT / "bench" / (rest[0] + ".py"), *rest[1:])
    if verb == "shell":
        print("here `python` is minillama's own; leave with `exit`")
        return call(os.environ.get("COMSPEC", "cmd") if WINDOWS else os.environ.get("SHELL", "/bin/sh"))
    return call(PYTHON, "-m", "minillama", *argv)


def run_tests(words):
    """pytest, with the words that are ours taken out: --all, and --cap avx2 or sse."""
    marks = ["-m", ""] if "--all" in words else []
    words = [word for word in words if word != "--all"]
    if "--cap" in words:
        at = words.index("--cap")
        if words[at + 1:at + 2] not in [[name] for name in CAPS]:
            print("--cap what? There are: " + ", ".join(CAPS))
            return 2
        os.environ.update(CAPS[words[at + 1]])
        del words[at:at + 2]
        marks = ["-m", "numeric" if marks else "numeric and not long"]
    return call(PYTHON, "-m", "pytest", *(marks + side_by_side(words) + words), cwd=ROOT)


def benchmarks():
    """Names of the files in bench/ that are benchmarks (a leading underscore is a helper)."""
    return sorted(path.stem for path in (ROOT / "bench").glob("[!_]*.py"))


def side_by_side(words):
    """pytest's flags for the whole suite, or several files, on several cores; none where one file or flag is named."""
    workers = min(4, os.cpu_count() or 1)
    if workers == 1 or len(words) == 1 or any(word.startswith("-") for word in words) or not has("xdist"):
        return []
    return ["-n", str(workers), "--dist", "worksteal"]  # each takes a run of neighbours: they share their fixtures


def has(module):
    """Whether .venv has that module."""
    return subprocess.run([str(PYTHON), "-c", "import " + module], stderr=subprocess.DEVNULL).returncode == 0


def call(*command, **options):
    """Run the real thing inside .venv. Its exit code is ours; after Ctrl-C, which it hears too, ours is 130. SIGTERM
    and SIGHUP are passed on to it, and its last words waited for; where they are ignored (nohup), they stay so."""
    child, came, interrupted = None, [], False

    def pass_on(number, frame):
        came.append(number)
        if child:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None))
              if number and signal.getsignal(number) not in (signal.SIG_IGN, None)}
    try:
        child = subprocess.Popen(list(map(str, command)), env=environment(), **options)
        for number in came:  # before there was a child
            child.send_signal(number)
        while True:
            try:
                code = child.wait()
                break
            except KeyboardInterrupt:  # the child got it too: let it end in its own words
                interrupted = True
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 130 if interrupted else code if code >= 0 else 128 - code  # killed by signal n: 128 + n, as shells say


def environment():
    """This process's environment with .venv first on PATH and the checkout importable from any folder."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), inherited] if inherited else [str(ROOT)])
    env = dict(os.environ, VIRTUAL_ENV=str(VENV), PYTHONPATH=path, MINILLAMA_LAUNCHER=str(os.getpid()),
               PATH=str(PYTHON.parent) + os.pathsep + os.environ.get("PATH", ""))
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait starve a busy laptop
    if env.pop("PYTHONDONTWRITEBYTECODE", ""):  # not beside the sources, but PyTorch is not compiled at every start
        env.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / "build" / "bytecode"))
    return env


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
        if sys.stdout:
            sys.stdout.flush()
        sys.exit(code)
    except bootstrap.SetupError as error:
        sys.exit("run.py: %s" % error)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python speaks at its end of what it could not write
        sys.exit(0 if isinstance(error, BrokenPipeError) else "run.py: %s" % error)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the next start goes on from here\n")
        sys.exit(130)
