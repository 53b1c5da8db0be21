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
from minillama.system.snapshot import open_snapshot

# How often a state is saved, and where the optimizer's part of it lies, change no bit; the objective is the run's kind.
MAY_CHANGE = ("checkpoint_every", "paged_optimizer", "objective")
LONGEST_ROW = 1 << 20  # bytes of a line of metrics
# What to give again where a name is not that of a flag.
GIVEN = {**{field.name: "--model or --preset" for field in fields(ModelConfig)},
         **dict.fromkeys(("frozen_weights", "model"), "--model"), "prompts": "--prompts", "pairs": "--pairs",
         "reward_model": "--reward", "pretraining_text": "--pretraining-text", "stages": "--data and --steps",
         **dict.fromkeys(("train_tokens", "held_out_tokens"), "--text or --shares and tokenizer"),
         **dict.fromkeys(("sequences", "held_out"), "--data and tokenizer"),
         **dict.fromkeys(("prompt_tokens", "pair_tokens"), "--template and tokenizer")}


def crc_of(tensors):
    """CRC-32 of the bytes of all tensors in turn, 0 for none: tells that they are the same."""
    crc = 0
    for tensor in tensors:  # of one in shards the whole
        tensor = getattr(tensor, "full_tensor", lambda tensor=tensor: tensor)()
        crc = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), crc)
    return crc


def crc_of_texts(values):
    """CRC-32 of what JSON can say."""
    return zlib.crc32(json.dumps(values).encode())


def settings_of(config):
    """{name: value} of the fields of a config that decide a run's result."""
    return {name: value for name, value in asdict(config).items() if name not in MAY_CHANGE}


def frozen_fingerprint(model):
    """CRC-32 of all that training does not change, 0 if that is nothing: of the base, whatever its dtype or form."""
    return crc_of(tensor for tensor in [*model.parameters(), *model.buffers()] if not tensor.requires_grad)


def model_facts(model):
    """What a run depends on in the model that it is given: where and in which form it computes, and all its weights."""
    first = next(model.parameters())
    return {"device": first.device.type, "dtype": str(first.dtype).removeprefix("torch."),
            "kernels": backend_of(model), "frozen_weights": frozen_fingerprint(model),
            "model": crc_of(p for p in model.parameters() if p.requires_grad)}


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
    if not _is_signature(theirs, total):
        raise damaged(path, f"'signature' is no table of settings with {total}")
    for name in ours:
        if name != total and (name not in theirs or theirs[name] != ours[name]):
            raise _another_run(name, ours[name], theirs.get(name), Path(path).parent)
    for wrong in _differences({**like, "signature": None}, {**state, "signature": None}):
        raise damaged(path, wrong)
    return state


def _another_run(name, ours, theirs, folder):
    """The error that names a thing in which a run differs from the one in `folder`, and the flag to give."""
    way = f"give the same {GIVEN.get(name, '--' + name.replace('_', '-'))}"
    if name not in GIVEN and type(theirs) in (int, float, str):
        way = f"use --{name.replace('_', '-')} " + ascii(theirs).strip("'")[:100]
    return ValueError(f"cannot resume: {name} is {ours!r:.200}, but the run in {folder} has {theirs!r:.200}: {way}, "
                      "or begin anew in another --out")


def _is_signature(value, total):
    """Whether it is a table of what JSON can say, in which `total` is a count."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and type(value.get(total)) is int and 0 <= value[total] < 2**62


def _differences(wanted, given, place="it"):
    """Yield where `given` is not of the form of `wanted`: types, keys, lengths, shapes, numbers that are none."""
    if type(given) is not type(wanted) and not isinstance(given, torch.Tensor) & isinstance(wanted, torch.Tensor):
        yield f"{place} is a {type(given).__name__}, not a {type(wanted).__name__}"
    elif isinstance(wanted, dict) and given.keys() != wanted.keys():
        yield f"{place} has {min(map(repr, given.keys() ^ wanted.keys())):.80} more or less, as another version has"
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
    """The rows of a metrics file up to what is `done`; what was recorded later, or is half written, is left out.
    ValueError unless there is one row with the numbers `needs` for each of what is done, in order, and where the run
    was `evaluated` at this point a last one with "held_out_loss"."""
    rows, count = [], 0
    with contextlib.suppress(FileNotFoundError), open_snapshot(path) as (file, _):
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
    if count != done or evaluated and not (rows and "held_out_loss" in rows[-1]):
        raise ValueError(f"{path} is damaged: it does not hold the {done} {unit}s that the checkpoint beside it has "
                         "done: put the file back, or begin anew in another --out")
    return rows


def _row(line):
    """A line of metrics as a dict of numbers; None for anything else, such as half a line."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and all(isinstance(x, (int, float)) for x in row.values()) else None


def write_metrics(path, rows):
    """The file anew, a line of JSON for each row; whole or not at all."""
    with atomic_write(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@contextlib.contextmanager
def own_random_state(seed, device):
    """Inside, torch's random numbers follow `seed`; the caller's own are as before afterwards."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def random_state(device):
    """The states of torch's generators, CPU and device, as byte tensors."""
    states, kind = {"cpu": torch.get_rng_state()}, torch.device(device).type
    if kind == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif kind == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_state(saved, device):
    """Put back what `random_state` gave."""
    torch.set_rng_state(saved["cpu"])
    if "cuda" in saved:
        torch.cuda.set_rng_state(saved["cuda"], device)
    if "mps" in saved:
        torch.mps.set_rng_state(saved["mps"])
