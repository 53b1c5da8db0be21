"""Prompt tuning: peft's numbers both ways; that a prompt of words is those words is held in test_prefix_tuning."""

import math

import torch
from mutants import Mutant
from test_prefix_tuning import test_virtual_tokens_made_of_a_text_are_that_text as of_a_text
from tuned_models import same_in_peft, small_model, trained, tuned


def test_peft_and_we_compute_the_same():
    same_in_peft("prompt", lambda peft: peft.PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"))


def test_n_tokens_are_n_times_D_numbers_with_the_spread_of_the_embeddings():
    prompt = trained(tuned("prompt", 400, change=False))["virtual_tokens.embedding"]
    assert prompt.shape == (400, 32)
    spread = small_model().tok_embeddings.weight.std()
    assert torch.allclose(prompt.std(), spread, rtol=5 / math.sqrt(2 * 12800))  # five standard errors


MUTANTS = [
    Mutant("minillama.peft.prompt_tuning", "torch.arange(-len(prompt_nD), 0,", "torch.arange(0, len(prompt_nD),",
           lambda: of_a_text("prompt")),
    Mutant("minillama.peft.prompt_tuning", "x_1nD = block(x_1nD, rotations, cache)", "block(x_1nD, rotations, cache)",
           test_peft_and_we_compute_the_same),
    Mutant("minillama.peft.prompt_tuning", " * table.float().std()", "",
           test_n_tokens_are_n_times_D_numbers_with_the_spread_of_the_embeddings),
]
