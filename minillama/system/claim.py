"""One guard for --out: a command holds what it writes while it is at work, and overwrites nothing that is not its own.

Runs (sft, tour, evaluate ...) work inside a folder, together with their state. They hold it by a lock on the folder,
which the system gives back when the process ends. `run.json` in it says which command the folder belongs to. The file
that makes it a model, one of MODEL_FILES, is written last: without it the folder holds a run that is not finished.

All other commands make a file, or a folder, that appears whole at its end, and refuse what is there already. They hold
an empty file `.NAME.at_work_.partial` beside it. Windows has no such locks; there two runs are not told apart.
"""

import contextlib
import functools
import json
import os
from pathlib import Path

from minillama.system import files

RUN_FILE = "run.json"
MODEL_FILES = ("params.json", "config.json", "adapter_config.json")  # the last of a model's files to be written
STATES = {"pretrain": "training_state.pt", "sft": "training_state.pt", "reward": "reward_state.pt",
          "ppo": "ppo_state.pt", "tour": "stages", "clean-corpus": "work", "evaluate": "work", "judge": "work"}
# What a run writes, beside its state and MODEL_FILES: none of it may be the user's own.
WRITTEN = ("train.bin", "held_out.bin", "sources", "pretraining.bin", "metrics.jsonl", "consolidated.00.pth",
           "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "reward_head.pth", "adapter_model.safetensors",
           "adapter_base.json", "quantized.safetensors", "model.safetensors", "text_tokenizer.model", "report.html",
           "report.json", "report.md", "dropped.jsonl", RUN_FILE)


def claims(name, *reads, run=False):
    """Decorate the function of command `name`, which writes --out (or a positional `target`), so that it holds that
    place from its start to its end. reads: the arguments whose paths it reads. run: it works inside a folder."""
    def decorate(function):
        @functools.wraps(function)
        def held(arguments):
            out = getattr(arguments, "out", None) or arguments.target
            given = {flag: getattr(arguments, flag) for flag in reads}
            resume = getattr(arguments, "resume", name == "tour")
            with claim_run(out, name, given, resume) if run else claim_new(out, given):
                return function(arguments)

        return held

    return decorate


@contextlib.contextmanager
def claim_run(out, command, reads=None, resume=False):
    """Hold the folder `out` for a run of `command`; it is made if it is not there, and removed again if nothing came
    into it. ValueError, with nothing changed, where that would destroy something, or a run is at work there.

    Of the processes that torchrun started the first one does it for all.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0":
        yield
        return
    folder = files.follow_link(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {str(out)!r} is a file: give a folder, or a name that is not there yet")
    with _made(folder), _locked(folder, out):
        _refuse_what_is_there(folder, out, command, resume)
        _refuse_what_is_read(out, reads or {})
        files.remove_dead(folder)
        with files.atomic_write(folder / RUN_FILE, "w") as file:
            json.dump({"minillama run of": command}, file)
        try:
            yield
        finally:
            if _is_bare(folder):
                (folder / RUN_FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def claim_new(out, reads=None):
    """Hold the place `out`, where a file or folder is to appear. ValueError or FileExistsError where something is, or
    another process is making it."""
    target = files.follow_link(out)
    if target.parent.is_dir():
        files.remove_dead(target.parent, target.name)  # also of one that was killed when it was all but done
    _refuse_what_exists(out, reads or {})
    path = target.with_name(f".{files.temporary_stem(target.name)}.at_work_.partial")
    with _made(target.parent), _locked(path, out):
        _refuse_what_exists(out, reads or {})  # made by another process since
        yield


def require_finished(folder):
    """ValueError where `folder` holds a run that is not finished, saying what finishes it; anything else passes."""
    command = _owner(Path(folder))
    if command not in (None, "tour") and not any((Path(folder) / name).is_file() for name in MODEL_FILES):
        begun = " --resume" if (Path(folder) / STATES.get(command, "")).is_file() else ""
        raise ValueError(f"{folder} holds a run that is not finished: go on with `{command} ... --out {folder}{begun}`")


def _refuse_what_exists(out, reads):
    if any((Path(out) / name).exists() for name in MODEL_FILES):
        raise ValueError(f"{out} exists, it already holds a model: choose another place")
    _refuse_what_is_read(out, reads)
    files.require_absent(out)


def _refuse_what_is_read(out, reads):
    for flag, paths in reads.items():
        for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths or []:
            if os.path.exists(out) and os.path.exists(path) and os.path.samefile(out, path):
                raise ValueError(f"{out} is what --{flag} reads, and must stay as it is: choose another --out")


def _refuse_what_is_there(folder, out, command, resume):
    """ValueError unless the folder is free, or holds a run of the same command that may begin anew or go on."""
    owner, state = _owner(folder), (folder / STATES[command]).exists()
    if owner in (command, None) and state:  # runs of older versions have no run.json
        if not resume:
            raise ValueError(f"{out} already holds a run: add --resume to go on with it, or choose another --out")
        return
    if any((folder / name).exists() for name in MODEL_FILES):
        raise ValueError(f"{out} already holds a model: choose another --out")
    if owner not in (command, None) and not _is_bare(folder):
        raise ValueError(f"{out} holds a run of `{owner}`: choose another --out")
    for name in WRITTEN if owner is None else ():
        if (folder / name).exists():
            raise ValueError(f"{str(folder / name)!r} is there and no run of ours made it: choose another --out")


def _is_bare(folder):
    """Whether a run has left nothing in the folder yet, its `run.json` apart."""
    return not any((folder / name).exists() for name in (*WRITTEN, *MODEL_FILES, *STATES.values()) if name != RUN_FILE)


def _owner(folder):
    """The command that the folder belongs to; None where it is no run's."""
    if (folder / RUN_FILE).is_file():
        with contextlib.suppress(ValueError, AttributeError, TypeError), open(folder / RUN_FILE, "rb") as file:
            command = json.loads(file.read(1000)).get("minillama run of")
            return command if command in STATES else None
    return None


@contextlib.contextmanager
def _made(folder):
    """The folder, and those above it; what is empty at the end and was not there before goes again."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for place in new:
                place.rmdir()


@contextlib.contextmanager
def _locked(path, out):
    """Hold a lock on a folder, or on a file that is there just as long."""
    is_folder, handle = path.is_dir(), None
    while files.fcntl:
        with files.name_errors(out):
            handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT, 0o600)
        if files.lock(handle) is False:
            os.close(handle)
            raise ValueError(f"a run is at work in {out}: wait until it ends, or choose another --out")
        if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
            break
        os.close(handle)  # whoever held it has removed it since
    try:
        yield
    finally:
        if handle is not None:
            if not is_folder:
                path.unlink(missing_ok=True)
            os.close(handle)
