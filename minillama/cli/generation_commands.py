"""The commands that let a model write: generate continues a text, chat answers line after line."""

import contextlib
import sys

import torch

from minillama.backends import backend_of, use_kernels
from minillama.chat import HELP, ChatSampling, Conversation, chat
from minillama.cli import flags
from minillama.cli.model_arguments import add_template, load_from_args, open_model, take_template
from minillama.config_checks import MOST, SEEDS, Range
from minillama.engine import refusal
from minillama.generate import generate_text
from minillama.peft.adapter_file import load_adapter
from minillama.sampling import Sampling
from minillama.system.terminal import tell
from minillama.train.blank_infilling import OBJECTIVES, fill_text, fills_blanks
from minillama.train.tensor_parallel import CUT_HELP, asks_to_cut, in_group, load_cut
from minillama.web.web_command import add_web, load_models, require_web, serve


def add_generate(commands):
    """generate --model PATH and the fields of Sampling."""
    generate = flags.command(commands, "generate", run_generate, "let a model continue a text", objectives=OBJECTIVES)
    generate.add_argument("--tokenizer", metavar="T", help="needed where the model brings none")
    generate.add_argument("--prompt", default="", metavar="TEXT", help="the text to continue; it is printed first")
    flags.add_number(generate, "--tensor-parallel", Range(1, 64), 1, help=CUT_HELP)
    add_generation(generate, Sampling)


def add_chat(commands):
    """chat --model PATH [--adapter DIR] [--template NAME] and the fields of ChatSampling."""
    chat = flags.command(commands, "chat", run_chat, "talk with a model; /help while talking")
    add_template(chat, "question_answer")
    chat.add_argument("--system", default="", metavar="TEXT", help="what the model is told first")
    add_generation(chat, ChatSampling)
    add_web(chat)


def add_generation(parser, sampling):
    """The flags that both have: which model, how it runs, and how it chooses (`sampling`, a config)."""
    parser.add_argument("--model", required=True, metavar="PATH", help="a model folder or file")
    parser.add_argument("--adapter", metavar="DIR", help="what sft or peft has learned over it")
    flags.add_number(parser, "--max-new-tokens", Range(0, MOST), 256, help="of the text, or of each answer")
    flags.add_number(parser, "--seed", Range(0, SEEDS), 0)
    flags.add_fields(parser, sampling)
    flags.add_bits(parser)
    flags.add_kernels_flag(parser)
    parser.add_argument("--activations", default="fp32", choices=("fp32", "int8"),
                        help="of products with NF4 or GGUF's blocks: int8, with --kernels cpu, rounds them: faster")
    flags.add_device(parser)
    parser.add_argument("--cache-dtype", choices=("float32", "bfloat16", "float16"),
                        help="of the KV cache, which half precision halves (default: that of the weights)")


def load_to_generate(arguments):
    """(model, tokenizer) by the chosen kernels, with its adapter; a line says why if the engine cannot decode it."""
    model, tokenizer = load_cut(arguments, open_model) or load_from_args(arguments)
    use_kernels(model, arguments.kernels, arguments.activations)
    if arguments.adapter:
        load_adapter(arguments.adapter, model)
    model.cache_dtype = getattr(torch, arguments.cache_dtype or "", None)
    if backend_of(model) == "cpu" and (reason := refusal(model)):
        tell(f"PyTorch decodes, not the compiled engine: {reason}")
    return model.eval(), tokenizer


@in_group(asks_to_cut)
def run_generate(arguments):
    """Load, check that it fits, and print the prompt and its continuation as it is made (`generate.generate_text`)."""
    sampling = flags.from_flags(Sampling, arguments)
    end = "\n" if sys.stdout.isatty() else ""  # for the eye; a pipe gets the text and not a byte more
    model, tokenizer = load_to_generate(arguments)
    words = arguments.prompt, arguments.max_new_tokens, sampling
    if fills_blanks(tokenizer):
        return print(fill_text(model, tokenizer, *words, arguments.seed), end=end)
    pieces = tell_if_cut(generate_text(model, tokenizer, *words, seed=arguments.seed), model.config.max_seq_len)
    print(arguments.prompt + next(pieces, ""), end="", flush=True)  # one too long is refused before it is printed
    for piece in pieces:
        print(piece, end="", flush=True)
    print(end=end)


def tell_if_cut(pieces, max_seq_len):
    """The pieces; where the context's end cut the text short, a line on stderr says so."""
    if (yield from pieces) == "context":
        tell(f"the text ends here because the model's context of {max_seq_len} tokens is full")


def run_chat(arguments):
    """Load, maybe quantize, and answer line after line (`chat.chat`), or on a page (`web.web_command`)."""
    sampling = flags.from_flags(ChatSampling, require_web(arguments))
    model, tokenizer = load_to_generate(arguments)
    conversation = Conversation(tokenizer, take_template(arguments, tokenizer, "question_answer"))
    conversation.set_system(arguments.system)
    if arguments.web:
        return serve(load_models(arguments, model, conversation, sampling, load_to_generate), arguments, lines())
    print(HELP, file=sys.stderr)
    chat(model, conversation, lines(), lambda text: print(text, end="", flush=True), arguments.max_new_tokens,
         sampling, arguments.seed)


def lines():
    """The user's lines until end of file; a prompt and line editing where somebody is typing."""
    if not sys.stdin.isatty():
        return (yield from sys.stdin)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() edits and recalls lines once it is loaded; Windows has none)
    with contextlib.suppress(EOFError):
        while True:
            yield input("> ")
    print()
