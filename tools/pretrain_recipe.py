"""A published pretraining recipe, printed before anybody runs it: `run.py pretrain --recipe llama_7b --dry-run`.

Recipes, machines and shares of data are named settings of tools/recipes.json. Time is 6 N D FLOPs (lesson 16) over
what the machine does: its peak by its maker, times the part of it that is reached (`--utilization`).
"""

import argparse
import json
import math
from pathlib import Path

from minillama.config import PRESETS

RECORD = json.loads(Path(__file__).with_name("recipes.json").read_text(encoding="utf-8"))
FLAGS = "max_lr warmup_steps min_lr_ratio weight_decay clip_norm beta1 beta2 seq_len".split()  # those of `pretrain`


def device_hours(recipe, flops_per_second, utilization):
    """Hours of one device: 6 N D / (peak utilization)."""
    flops = 6 * PRESETS[recipe["model"]].n_parameters() * recipe["tokens"]
    return flops / (flops_per_second * utilization) / 3600


def steps(recipe):
    """How many batches the tokens are."""
    return math.ceil(recipe["tokens"] / recipe["batch_tokens"])


def flags(recipe, rows):
    """The recipe as flags of `pretrain`, on a machine that holds `rows` texts at once; what is not published is left
    out."""
    given = {name: recipe[name] for name in FLAGS if name in recipe}
    words = [f"--{name.replace('_', '-')} {value:g}" for name, value in given.items()]
    words.append(f"--steps {steps(recipe)}")
    if "seq_len" in recipe:
        words.append(f"--batch-size {rows} --grad-accumulation "
                     f"{max(1, round(recipe['batch_tokens'] / recipe['seq_len'] / rows))}")
    return " ".join(words)


def epochs(shares, tokens):
    """[(source, share in %, tokens drawn, times that each of its tokens is read)] for a number of tokens: the published
    epochs are over 1.4 T tokens, and fewer tokens read each source less often."""
    return [(name, row[0], row[0] / 100 * tokens, row[1] * tokens / 1.4e12)
            for name, row in shares.items() if name != "source"]


def describe(name, machine, devices, utilization, dollars, rows):
    """What the recipe is, how long it takes on the named machine and what that costs, as lines."""
    recipe, peak = RECORD["recipes"][name], RECORD["machines"][machine]
    config = PRESETS[recipe["model"]]
    lines = [f"recipe {name}: {recipe['source']}",
             f"model {recipe['model']}, {config.n_parameters():,} parameters"
             + (f", begun from {recipe['begins_with']}" if "begins_with" in recipe else ""),
             f"tokens {recipe['tokens'] / 1e9:,.0f} G in {steps(recipe):,} steps of {recipe['batch_tokens'] / 1e6:g} M"
             + (f", {recipe['precision']}" if "precision" in recipe else ""),
             f"flags of pretrain: {flags(recipe, rows)}"]
    if missing := [flag for flag in FLAGS if flag not in recipe]:
        lines.append(f"not published: {', '.join(missing)}")
    if "shares" in recipe:
        shares = RECORD["shares"][recipe["shares"]]
        lines.append(f"data ({shares['source']}):")
        lines += [f"  {source:14} {share:5.1f} %, {drawn / 1e9:6.0f} G tokens, {times:4.2f} epochs"
                  for source, share, drawn, times in epochs(shares, recipe["tokens"])]
    hours = device_hours(recipe, peak["flops"], utilization)
    speed = f"{peak['flops'] / 1e12:g} TFLOP/s in {peak['dtype']}, {utilization:.0%} of it reached"
    lines.append(f"on {devices} {machine} ({speed}): {hours / devices / 24:,.1f} days, {hours:,.0f} device hours, "
                 f"{hours * dollars:,.0f} dollars at {dollars:g} an hour")
    reached = device_hours(recipe, RECORD["machines"]["a100"]["flops"], 1) / recipe["device_hours"]
    lines.append(f"published: {recipe['device_hours']:,} hours of an A100, which is {reached:.0%} of its peak")
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(prog="run.py pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", required=True, choices=list(RECORD["recipes"]))
    parser.add_argument("--dry-run", action="store_true", help="print, run nothing")
    parser.add_argument("--machine", choices=list(RECORD["machines"]), default="a100")
    parser.add_argument("--devices", type=int, default=2048)
    parser.add_argument("--utilization", type=float, default=0.45, help="part of the peak that is reached")
    parser.add_argument("--dollars", type=float, default=2.0, help="for an hour of one device: an example, not a price")
    parser.add_argument("--rows", type=int, default=8, help="texts that are in memory at once, over all devices")
    chosen = parser.parse_args(argv)
    if not chosen.dry_run:
        parser.error(f"a recipe is printed, not run: add --dry-run, and give pretrain the flags that "
                     f"--recipe {chosen.recipe} prints, with --text and --out")
    if chosen.devices < 1 or chosen.rows < 1 or not 0 < chosen.utilization <= 1 or not chosen.dollars >= 0:
        parser.error(f"--devices {chosen.devices} --rows {chosen.rows} --utilization {chosen.utilization} --dollars "
                     f"{chosen.dollars}: at least 1, at least 1, above 0 and up to 1, at least 0")
    print("\n".join(describe(chosen.recipe, chosen.machine, chosen.devices, chosen.utilization, chosen.dollars,
                             chosen.rows)))


if __name__ == "__main__":
    main()
