"""What lets a run be killed and resumed: its saved state, its metrics file, random numbers.

A state is a dict with `kind` (what kind of run), `signature` ({name: plain value}: all that the run depends on), the
count of what is done, and tensors. It is read against the state that the resumed run would save at once: other things
it was made with are named, and anything of another form is damage.
"""

import contextlib
import json
import zlib
from dataclasses import asdict, fields
from pathlib import Path

import torch

from minillama.backends import backend_of
from minillama.checkpoint.pth import read_plain
from minillama.config import ModelConfig
from minillama.system.files import atomic_write
from minillama.system.snapshot import opened

# How often a state is saved, and where the optimizer's part of it lies, change no bit of what a run computes.
MAY_CHANGE = ("checkpoint_every", "paged_optimizer")
QUOTE = "'"
LONGEST_ROW = 1 << 20  # bytes of a line of metrics
# What to give again where a name is not that of a flag.
GIVEN = {**{field.name: "--model or --preset" for field in fields(ModelConfig)},
         **dict.fromkeys(("frozen_weights", "model"), "--model"), "prompts": "--prompts", "pairs": "--pairs",
         "reward_model": "--reward", "pretraining_text": "--pretraining-text", "stages": "--data and --steps",
         **dict.fromkeys(("train_tokens", "held_out_tokens"), "--text and tokenizer"),
         **dict.fromkeys(("sequences", "held_out"), "--data and tokenizer"),
         **dict.fromkeys(("prompt_tokens", "pair_tokens"), "--template and tokenizer")}


def crc_of(tensors):
    """CRC-32 of the bytes of all tensors in turn, 0 for none: tells that they are the same."""
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), crc)
    return crc


def crc_of_texts(values):
    """CRC-32 of what JSON can say."""
    return zlib.crc32(json.dumps(values).encode())


def settings_of(config):
    """{name: value} of the fields of a config that decide a run's result."""
    return {name: value for name, value in asdict(config).items() if name not in MAY_CHANGE}


def model_facts(model, device):
    """What a run depends on in the model that it is given: where and in which form it computes, and all its weights."""
    parameters = list(model.parameters())
    rest = [tensor for tensor in [*parameters, *model.buffers()] if not tensor.requires_grad]
    return {"device": torch.device(device).type, "dtype": str(parameters[0].dtype).removeprefix("torch."),
            "kernels": backend_of(model), "frozen_weights": crc_of(rest),
            "model": crc_of(p for p in parameters if p.requires_grad)}


def load_training_state(path):
    """A checkpoint of a run as a dict of plain values and tensors, which stay in the file until they are read;
    nothing in the file is executed."""
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no {path}: nothing to resume, start with resume=False (without --resume)")
    try:
        state = read_plain(path)
    except ValueError as error:
        raise damaged(path, str(error).removeprefix(f"{path}: ")) from None
    if not isinstance(state, dict):
        raise damaged(path, f"it holds a {type(state).__name__}")
    return state


def damaged(path, why):
    """The error for a file of a run that cannot be gone on with."""
    return ValueError(f"{path} is damaged or no checkpoint: {why}: begin anew in another --out")


def read_state(path, like, total):
    """The state at `path`, held against `like`, what this run would save now: of the same kind, made with the same, and
    of the same form. `total` names the length of the run in `signature`, which may be another."""
    state = load_training_state(path)
    if not isinstance(state.get("kind"), str):
        raise damaged(path, "'kind' is missing")
    if state["kind"] != like["kind"]:
        raise ValueError(f"{path} belongs to a run of {state['kind']!r:.40}, not of {like['kind']!r}: choose another "
                         "--out")
    theirs, ours = state.get("signature"), like["signature"]
    if not isinstance(theirs, dict) or not _is_plain(theirs) or type(theirs.get(total)) is not int or any(
            _differences(1, theirs[total])):
        raise damaged(path, f"'signature' is no table of settings with {total}")
    check_same(ours, theirs, Path(path).parent, total)
    check_form(path, {**like, "signature": None}, {**state, "signature": None})
    return state


def check_form(path, wanted, given):
    """ValueError unless `given`, read from `path`, has the keys, types, shapes and dtypes of `wanted`, all finite."""
    for wrong in _differences(wanted, given):
        raise damaged(path, wrong)


def check_same(ours, theirs, folder, total=None):
    """ValueError that names the first thing in which a run differs from the one in `folder`, and the flag to give."""
    for name in (name for name in ours if name != total):
        if name not in theirs or theirs[name] != ours[name]:
            value, flag = theirs.get(name), GIVEN.get(name, "--" + name.replace("_", "-"))
            plain = name not in GIVEN and isinstance(value, (int, float, str)) and not isinstance(value, bool)
            way = f"use {flag} {ascii(value).strip(QUOTE):.100}" if plain else f"give the same {flag}"
            raise ValueError(f"cannot resume: {name} is {ours[name]!r:.200}, but the run in {folder} has "
                             f"{value!r:.200}: {way}, or begin anew in another --out")


def _is_plain(value):
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, (list, tuple)) else isinstance(
        value, (bool, int, float, str, type(None)))


def _differences(wanted, given, place="it"):
    """Yield where `given` is not of the form of `wanted`: types, keys, lengths, shapes, numbers that are none."""
    if type(given) is not type(wanted) and not isinstance(given, torch.Tensor) & isinstance(wanted, torch.Tensor):
        yield f"{place} is a {type(given).__name__}, not a {type(wanted).__name__}"
    elif isinstance(wanted, dict) and given.keys() != wanted.keys():
        yield f"{place} has {min(map(repr, given.keys() ^ wanted.keys())):.80} too much or too little"
    elif isinstance(wanted, dict):
        for key in wanted:
            yield from _differences(wanted[key], given[key], key if place == "it" else f"{place}.{key}")
    elif isinstance(wanted, list) and len(given) != len(wanted):
        yield f"{place} has {len(given)} entries, not {len(wanted)}"
    elif isinstance(wanted, list):
        for i, pair in enumerate(zip(wanted, given, strict=True)):
            yield from _differences(*pair, f"{place}[{i}]")
    elif isinstance(wanted, torch.Tensor):
        form = tuple(given.shape), given.dtype, given.layout, given.device.type
        if form != (tuple(wanted.shape), wanted.dtype, torch.strided, "cpu"):
            yield f"{place} is {form}, not {tuple(wanted.shape)} of {wanted.dtype}"
        elif not torch.isfinite(given).all():
            yield f"{place} holds a number that is not finite"
    elif isinstance(wanted, (int, float)) and not 0 <= given < 2**62:
        yield f"{place} is {given!r:.40}"


def read_metrics(path, done, needs=("loss",), unit="step", evaluated=False):
    """(rows, their lines) of a metrics file up to what is `done`; what was recorded later, or is half written, is left
    out. ValueError unless there is one row with the numbers `needs` for each of what is done, in order, and where the
    run was `evaluated` at this point a last one with "held_out_loss"."""
    rows, lines, count = [], [], 0
    with contextlib.suppress(FileNotFoundError), opened(path) as (file, _):
        for line in iter(lambda: file.readline(LONGEST_ROW), b""):
            row = _row(line)
            number = row and row.get(unit)
            if row and "held_out_loss" in row and number == count:
                pass
            elif row and set(needs) <= set(row) and number == count + (unit == "step") and count < done:
                count += 1
            else:
                break
            rows.append(row)
            lines.append(line)
    if count != done or evaluated and not (rows and "held_out_loss" in rows[-1]):
        raise ValueError(f"{path} is damaged: it does not hold the {done} {unit}s that the checkpoint beside it has "
                         "done: put the file back, or begin anew in another --out")
    return rows, lines


def _row(line):
    """A line of metrics as a dict of numbers; None for anything else, such as half a line."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and all(isinstance(x, (int, float)) for x in row.values()) else None


def truncate_metrics(path, done, **form):
    """Drop what was recorded after what is `done` (a later line may be half written) -> the rows that stay; errors and
    `form` as in `read_metrics`."""
    rows, lines = read_metrics(path, done, **form)
    with atomic_write(path) as file:
        file.writelines(lines)
    return rows


def check_total(total, ours, state, done, end, folder):
    """What is to be said where a run is made longer or shorter, "" where it is not; ValueError where more is `done`
    than it would have at its new `end`."""
    theirs = state["signature"][total]
    if done > end:
        raise ValueError(f"cannot resume: {total} is {ours}, but the run in {folder} has gone beyond that: use "
                         f"--{total} {theirs}, or begin anew in another --out")
    return f"{folder}: {total} {theirs} -> {ours}" if ours != theirs else ""


@contextlib.contextmanager
def own_random_state(seed, device):
    """Inside, torch's random numbers follow `seed`; the caller's own are as before afterwards."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def random_state(device):
    """The states of torch's generators, CPU and device, as byte tensors."""
    kind = torch.device(device).type
    own = {"cuda": lambda: torch.cuda.get_rng_state(device), "mps": torch.mps.get_rng_state}.get(kind)
    return {"cpu": torch.get_rng_state(), kind: own() if own else torch.get_rng_state()}


def set_random_state(saved, device):
    """Put back what `random_state` gave."""
    torch.set_rng_state(saved["cpu"])
    if "cuda" in saved:
        torch.cuda.set_rng_state(saved["cuda"], device)
    if "mps" in saved:
        torch.mps.set_rng_state(saved["mps"])
