"""The commands that train a model: from nothing (pretrain), and on instructions or conversations (sft)."""

import argparse
import sys
from pathlib import Path

import torch

from minillama.backends import use_kernels
from minillama.checkpoint import open_weights
from minillama.checkpoint.convert import save_with_tokenizer, write_chat_template
from minillama.checkpoint.weights import planned_model
from minillama.cli import flags
from minillama.cli.model_arguments import add_template, choose_kernels, load_from_args, open_model, take_template
from minillama.config import preset
from minillama.config_checks import MOST, Range
from minillama.generate import prompt_ids
from minillama.peft.adapter_file import save_adapter
from minillama.peft.dora import DoRALinear
from minillama.peft.lora import LoRAConfig, LoRALinear, add_lora
from minillama.peft.lora_file import TABLES
from minillama.peft.methods import METHODS, add_method
from minillama.system.claim import claims
from minillama.system.memory import require_memory, require_step_memory
from minillama.tokenizer import load_tokenizer
from minillama.train import sharded
from minillama.train.blank_infilling import OBJECTIVES, choose_run, prepare_tokenizer
from minillama.train.data import question_held_out
from minillama.train.data_parallel import is_main_process, process_group
from minillama.train.mixture import find_sources, tell_epochs, write_sources
from minillama.train.pretrain import PretrainConfig, PretrainRun, check_shape, pretrain
from minillama.train.records import encode_records, read_records
from minillama.train.resume import own_random_state
from minillama.train.sft import FineTuning, SftConfig, fine_tune, stage_ends, with_steps
from minillama.train.subword_sampling import require_unigram, sample_subwords
from minillama.train.vocabulary import train_vocabulary
from minillama.transformer import Transformer

WHOLE = ("full", "embeddings")  # the methods of sft that change the model's own weights, and write all of them
LORAS = ("lora", "rslora", "dora", "qlora")  # those that --rank, --alpha, --dropout and --targets are for
BOTTLENECKS = ("adapter", "parallel-adapter", "ladder")
READ_BY = {  # flag of sft: (its default, the methods that read it)
    "virtual_tokens": (8, ("prefix", "prompt", "p-tuning", "p-tuning-v2")),
    "encoder_width": (0, ("prefix", "p-tuning")), "lstm": (False, ("p-tuning",)),
    "start_text": ("", ("prefix", "prompt")), "bottleneck": (8, BOTTLENECKS),
    "rank": (8, LORAS), "alpha": (16.0, LORAS), "dropout": (0.0, LORAS), "modules_to_save": ([], LORAS)}


def add_sft(commands):
    """sft --model PATH --data FILE ... --out DIR [--method NAME] and the fields of SftConfig."""
    sft = flags.command(commands, "sft", run_sft, "fine-tune a model on instructions or conversations")
    sft.add_argument("--model", required=True, metavar="PATH", help="a model folder or file")
    sft.add_argument("--data", required=True, nargs="+", metavar="FILE",
                     help="JSON or JSONL, Alpaca or conversations; several are learned one after another, as stages")
    sft.add_argument("--out", required=True, metavar="DIR", help="for the model (full, embeddings) or the adapter")
    sft.add_argument("--method", choices=(*WHOLE, *LORAS, *METHODS, "p-tuning-v2"), default="lora",
                     help="embeddings: only the tables at both ends, for new pieces; qlora: lora with --load-4bit; "
                          "p-tuning-v2: prefix, which it is where answers are written (default: %(default)s)")
    flags.add_number(sft, "--virtual-tokens", Range(1, 2**12), 8, help="of prefix, prompt and p-tuning")
    flags.add_number(sft, "--encoder-width", Range(1, 2**16, or_zero=True), 0, help="of the MLP of prefix (0: none) or "
                     "p-tuning (0: the model's width)")
    sft.add_argument("--lstm", action="store_true", help="p-tuning's encoder begins with an LSTM")
    sft.add_argument("--start-text", default="", metavar="TEXT", help="what prefix or prompt begin as; else random")
    flags.add_number(sft, "--bottleneck", Range(1, 2**16), 8, help="inner width of adapter, parallel-adapter, ladder")
    flags.add_bits(sft)
    add_template(sft, "alpaca")
    flags.add_fields(sft, LoRAConfig, rank="of the adapter", alpha="the product's weight is alpha / R",
                     dropout="of the adapter's input")
    sft.add_argument("--targets", nargs="+", metavar="NAME", default=["attention.*", "feed_forward.*"],
                     help="layers with an adapter (default: all but the head; alpaca-lora: attention.wq attention.wv)")
    sft.add_argument("--modules-to-save", nargs="+", default=[], choices=("embed_tokens", "lm_head"),
                     help="tables that learn beside the adapter, and are saved whole with it (lora, qlora): both, for "
                          "new pieces, after --method embeddings")
    flags.add_number(sft, "--max-length", Range(2, MOST), 512, help="tokens of an example")
    flags.add_number(sft, "--held-out-fraction", Range(1e-6, below=1), 0.1, float, "of the questions")
    sft.add_argument("--skip-bad", action=argparse.BooleanOptionalAction, default=False,
                     help="list bad records on stderr and go on without them")
    flags.add_resume(sft)
    sft.add_argument("--shard", action="store_true", help=sharded.HELP)
    flags.add_fields(sft, SftConfig)
    flags.add_kernels_flag(sft)
    flags.add_device(sft)


def add_pretrain(commands):
    """pretrain --text FILE ...|--shares FILE --tokenizer T|--model PATH --out DIR, and the fields of PretrainConfig."""
    parser = flags.command(commands, "pretrain", run_pretrain, "train a LLaMA on text, from nothing or from a model",
                           objectives=OBJECTIVES)
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--text", nargs="+", metavar="FILE", help="text files or folders")
    text.add_argument("--shares", metavar="FILE", help='JSON {"folder or file": per cent, ...}: draw each row from one')
    parser.add_argument("--tokenizer", metavar="T.model", help="needed unless --model brings one")
    parser.add_argument("--model", metavar="PATH", help="begin with its weights (default: random ones)")
    parser.add_argument("--out", required=True, metavar="DIR")
    flags.add_resume(parser)
    parser.add_argument("--shard", action="store_true", help=sharded.HELP)
    flags.add_number(parser, "--tensor-parallel", Range(1, 64), 1, help=sharded.CUT_HELP)
    parser.add_argument("--preset", help="shape of a model with random weights (default: tiny)")
    flags.add_number(parser, "--subword-sampling", Range(0, 100), kind=float, help="each epoch cuts the text in "
                     "another way, drawn by probability to this power, say 0.1; of a unigram tokenizer (default: no)")
    parser.add_argument("--objective", choices=OBJECTIVES, default="causal", help="causal (default), or GLM's")
    flags.add_kernels_flag(parser)
    flags.add_fields(parser, PretrainConfig)


@claims("pretrain", "text", "shares", "tokenizer", "model", run=True)
def run_pretrain(arguments):
    """Tokenise the text, build the shape or load the model, train (`train.pretrain.pretrain`)."""
    settings, given = flags.from_flags(PretrainConfig, arguments), arguments.model
    if not (given or arguments.tokenizer):
        raise ValueError("no tokenizer: give --tokenizer T.model, as `tokenizer train` makes it, or --model PATH")
    if given and arguments.preset:
        raise ValueError(f"--preset {arguments.preset} does not go with --model: {given} has a shape of its own")
    sources = find_sources(arguments.text, arguments.shares)
    tokenizer = None if given else prepare_tokenizer(arguments.objective, load_tokenizer(arguments.tokenizer))
    shape = open_weights(given).config if given else preset(arguments.preset or "tiny", objective=arguments.objective,
                                                            vocab_size=tokenizer.vocab_size)
    kind, needed = sharded.kind_of_run(PretrainRun, arguments, shape), sharded.bytes_to_train(shape, arguments)
    print(require_memory(needed, "training, activations apart,", settings.device), file=sys.stderr)
    choose_kernels(arguments)
    check_shape(shape, settings)
    require_step_memory(shape, settings.batch_size, settings.grad_accumulation, settings.seq_len, settings.device,
                        size=4 if settings.dtype == "float32" else 2)
    model, tokenizer = load_from_args(arguments, whole=True) if given else (None, tokenizer)
    require_unigram(tokenizer, arguments.subword_sampling)
    kind = choose_run(kind, arguments.objective, tokenizer, shape, settings)
    with process_group(settings.device):  # of torchrun, if that started us
        train, held_out = write_sources(arguments.out, sources, tokenizer)
        tell_epochs(train, settings)
        train = sample_subwords(train, tokenizer, arguments.subword_sampling)
        torch.manual_seed(settings.seed)
        model = use_kernels(model or Transformer(shape), arguments.kernels)
        pretrain(model, train, held_out, settings, arguments.out, arguments.resume, tokenizer_path=arguments.tokenizer,
                 tokenizer=tokenizer if given or arguments.objective == "blank" else None, kind=kind)
        if is_main_process():
            print(f"{arguments.out}: trained; try {flags.typed('generate', '--model', arguments.out)}", file=sys.stderr)


@claims("sft", "model", "data", run=True)
def run_sft(arguments):
    """Read the records, load, attach the adapter, tune (`train.sft.fine_tune`), save."""
    settings, out = flags.from_flags(SftConfig, arguments), Path(arguments.out)
    for name, (default, methods) in READ_BY.items():
        if getattr(arguments, name) != default and arguments.method not in methods:
            raise ValueError(f"--{name.replace('_', '-')} goes with --method {' or '.join(methods)}, not with "
                             f"{arguments.method}")
    if arguments.method == "p-tuning-v2":
        arguments.method = "prefix"
    kind = sharded.kind_of_run(FineTuning, arguments)
    stages, rest = read_and_split(arguments)
    if arguments.method in WHOLE or arguments.modules_to_save:
        arguments.dtype = arguments.dtype or "float32"  # float16 gradients underflow; a frozen base may stay as it is
    if arguments.method == "qlora":
        arguments.load_4bit = True
    found = weights, tokenizer, *_ = open_model(arguments, whole=arguments.method in WHOLE)
    template = take_template(arguments, tokenizer, "alpaca")
    *train, held_out = (encode_all(part, template, tokenizer, min(arguments.max_length, weights.config.max_seq_len))
                        for part in (*stages, rest))
    sizes = [len(stage) for stage in train]
    settings = with_steps(settings, sum(sizes))
    for path, end in zip(arguments.data, stage_ends(sizes, settings.steps), strict=True):
        print(f"{path}: learned up to step {end}", file=sys.stderr)
    prepare(planned_model(weights.config), arguments, tokenizer)  # --targets that match nothing are told first
    mean = sum(len(row.tokens) for stage in train for row in stage) / sum(sizes)
    require_step_memory(weights.config, settings.batch_size, settings.grad_accumulation, settings.pack_length or mean,
                        arguments.device, size=2, vocabulary=False, recompute=settings.gradient_checkpointing)
    model, _ = load_from_args(arguments, found=found)
    use_kernels(model, arguments.kernels)
    prepare(model, arguments, tokenizer)
    with process_group(arguments.device):  # of torchrun, if that started us
        given = flags.facts(arguments, "method", "held_out_fraction", "max_length", "load_4bit", "load_8bit")
        if arguments.method in LORAS:
            given |= flags.facts(arguments, "rank", "alpha", "dropout", "targets", "modules_to_save")
        elif arguments.method in METHODS:
            given |= flags.facts(arguments, "virtual_tokens", "encoder_width", "lstm", "start_text", "bottleneck")
        history = fine_tune(model, sum(train, []), held_out, settings, out, arguments.resume, stages=sizes,
                            facts={"template": template, **given}, kind=kind)
        if not is_main_process():
            return sharded.take_part_in_saving(model)
        save(model, tokenizer, arguments)
    losses = [row["held_out_loss"] for row in history if "held_out_loss" in row]
    words = ["--model", out] if arguments.method in WHOLE else ["--model", arguments.model, "--adapter", out]
    words += ["--load-4bit"] if arguments.load_4bit else ["--load-8bit"] if arguments.load_8bit else []
    print(f"{out}: held-out loss {losses[0]:.3f} -> {losses[-1]:.3f} nats a token; try "
          f"{flags.typed('chat', *words, '--template', template)}", file=sys.stderr)


def read_and_split(arguments):
    """([training records of each file of --data], held-out records of all); a hash of its question decides a
    record's side."""
    stages, held_out = [], []
    for path in arguments.data:
        read = read_records(path, arguments.skip_bad)
        for line in read.skipped:
            print(line, file=sys.stderr)
        print(f"{path}: {read.summary()}", file=sys.stderr)
        parts = [], held_out
        questions = [f"{record.question} {record.input}" for record in read.records]
        if len(set(questions)) == 1:
            print(f"{path}: one question alone: a hash of each whole record decides its side", file=sys.stderr)
            questions = map(repr, read.records)
        for question, record in zip(questions, read.records, strict=True):
            parts[question_held_out(question, arguments.held_out_fraction)].append(record)
        stages.append(parts[0])
    if not all([*stages, held_out]):
        side = "training" if held_out else "held-out"
        raise ValueError(f"{sum(map(len, stages)) + len(held_out)} records leave the {side} side of a file empty at "
                         f"--held-out-fraction {arguments.held_out_fraction}: give more questions, or another fraction")
    return stages, held_out


def encode_all(records, template, tokenizer, max_length):
    """The records as sequences; what was cut or left out is told."""
    made = encode_records(records, template, tokenizer, max_length)
    print(f"{template}: {len(made.sequences)} sequences, {made.cut} cut at {max_length} tokens, {made.left_out} left "
          "out because their answer lies behind that", file=sys.stderr)
    return made.sequences


def prepare(model, arguments, tokenizer=None):
    """Add what the method trains (`peft`); let the tables of --modules-to-save learn beside a LoRA."""
    method = arguments.method
    if method in WHOLE:
        return train_vocabulary(model) if method == "embeddings" else None
    with own_random_state(arguments.seed, arguments.device):
        if method in METHODS:
            size = arguments.bottleneck if method in BOTTLENECKS else arguments.virtual_tokens
            ids = prompt_ids(tokenizer, arguments.start_text) if arguments.start_text else ()
            return add_method(model, method, size, arguments.encoder_width, arguments.lstm, ids)
        adapter = LoRAConfig(arguments.rank, arguments.alpha, arguments.dropout, tuple(arguments.targets),
                             rank_stabilized=method == "rslora")
        layers = add_lora(model, adapter, DoRALinear if method == "dora" else LoRALinear)
    for table in [TABLES[word] for word in arguments.modules_to_save]:
        if table in layers:
            raise ValueError(f"{table} cannot learn whole and by an adapter: leave it out of --targets or "
                             "--modules-to-save")
        model.get_submodule(table).weight.requires_grad_()


def save(model, tokenizer, arguments):
    """The whole model in Meta's form with its tokenizer, or the adapter in peft's."""
    if arguments.method in WHOLE:
        return save_with_tokenizer(arguments.out, model, tokenizer)
    write_chat_template(arguments.out, tokenizer.chat_template)
    save_adapter(arguments.out, model, str(arguments.model), empty=True)
