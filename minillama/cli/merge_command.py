"""The command that makes one model of a base and an adapter that can go into its weights."""

import sys
from pathlib import Path

import torch

from minillama.checkpoint.convert import save_with_tokenizer
from minillama.cli.flags import add_device, command, typed
from minillama.cli.model_arguments import in_words, load_from_args
from minillama.generate import generate_tokens
from minillama.peft.adapter_file import load_adapter, method_of
from minillama.peft.lora_file import CONFIG_FILE, learned_over
from minillama.peft.methods import merge_method, require_mergeable
from minillama.quant.quantize_linears import dequantize_linears, quantization_of
from minillama.sampling import Sampling
from minillama.system.claim import claims
from minillama.system.files import atomic_folder
from minillama.tokenizer.token_settings import read_chat_template


def add_merge(commands):
    """merge --model PATH --adapter DIR --out DST [--into dequantized|original]"""
    merge = command(commands, "merge", run_merge, "add an adapter into the weights, and write the whole model")
    merge.add_argument("--model", required=True, metavar="PATH", help="the model that the adapter was made for")
    merge.add_argument("--adapter", required=True, metavar="DIR", help="LoRA, rsLoRA, DoRA or IA3, as sft, ppo or peft "
                       "writes it")
    merge.add_argument("--out", required=True, metavar="DST", help="a folder to be made")
    merge.add_argument("--into", choices=("dequantized", "original"), help="of an adapter that was learned over NF4 or "
                       "int8: the weights it was learned over (the default), or those they were made from")
    add_device(merge)


@claims("merge", "model", "adapter")
def run_merge(arguments):
    """W + (alpha / R) B A for every adapted layer, or what other methods make of W, saved in Meta's form. W is what the
    adapter was learned over; where the original of a quantized W is asked for, what that changes is told."""
    if (Path(arguments.adapter) / CONFIG_FILE).is_file():
        require_mergeable(method_of(arguments.adapter)[0])
    base = (learned_over(arguments.adapter) or (None, None))[1]
    whole, measured = arguments.into != "dequantized" and (base is None or arguments.into == "original"), None
    if whole and base:
        measured = predict_over_own_base(arguments)
    model, tokenizer = load_from_args(arguments, whole)
    if not whole and not quantization_of(model):
        raise ValueError(f"neither {arguments.model} nor what {arguments.adapter} says of its base is quantized: "
                         "leave --into out")
    dequantize_linears(model, model.tok_embeddings.weight.dtype)
    load_adapter(arguments.adapter, model)
    tokenizer.chat_template = read_chat_template(arguments.adapter) or tokenizer.chat_template
    merge_method(model)
    if measured:
        texts_BT, wanted_BTV = measured
        with torch.no_grad():  # KL divergence, the mean over tokens
            kl = (wanted_BTV.exp() * (wanted_BTV - model.eval()(texts_BT).log_softmax(-1))).sum(-1).mean().item()
        print(f"{arguments.adapter} was learned over {in_words(base)}, and is merged into other weights: predictions "
              f"move by {kl:.4f} nats a token; --into dequantized keeps them", file=sys.stderr)
    with atomic_folder(arguments.out) as folder:
        save_with_tokenizer(folder, model, tokenizer)
    print(f"{arguments.out}: merged; try {typed('generate', '--model', arguments.out)}", file=sys.stderr)


def predict_over_own_base(arguments):
    """(texts of the adapter on the base that it was learned over, its log-probabilities there): 8 texts that it writes
    itself, of up to 32 tokens."""
    model, tokenizer = load_from_args(arguments)
    load_adapter(arguments.adapter, model.eval())
    begin = [[tokenizer.bos_id or 0]] * 8
    steps = list(generate_tokens(model, begin, min(32, model.config.max_seq_len - 1), Sampling()))
    texts_BT = torch.tensor([[*start, *row] for start, row in zip(begin, zip(*steps, strict=True), strict=True)],
                            device=arguments.device)
    with torch.no_grad():
        return texts_BT, model(texts_BT).log_softmax(-1)
