"""Laws of the pictures of fine-tuning: what they show is what was measured."""

import torch
from mutants import Mutant

from minillama.config import preset
from minillama.quant.nf4 import NF4_LEVELS
from minillama.tour_sft_pages import before_after_page, scaled_weights, tuning_page
from minillama.transformer import Transformer


class Lessons:
    """Two bits a nat, entropy 10."""

    bits = 10.0

    @staticmethod
    def bits_of(loss):
        return 2 * loss


def test_weights_are_scaled_by_their_block_and_stored_at_the_nearest_level():
    torch.manual_seed(0)
    model = Transformer(preset("tiny", n_layers=1))
    scaled, stored = scaled_weights(model)
    assert len(scaled) == 4 * 96 * 96 + 3 * 96 * 256  # no table, no norm
    assert scaled.view(-1, 64).abs().amax(1).eq(1).all()
    levels = torch.tensor(NF4_LEVELS)
    nearest = levels[(scaled[:, None] - levels).abs().argmin(1)]
    # double quantization moves a block's scale a little: 0.013 is the largest change a weight can see
    assert (stored - nearest).abs().max() < 0.02


def test_the_curves_are_in_bits_an_answer_and_the_words_say_their_ends():
    history = [{"step": 0, "held_out_loss": 20.0}, {"step": 1, "loss": 1.0}, {"step": 2, "held_out_loss": 5.25}]
    page = tuning_page({"full": history, "LoRA": history, "QLoRA": history}, Lessons, 41.5)
    for words in ("needs 40.0 bits for an answer", "full 10.50, LoRA 10.50, QLoRA 10.50", "hold 10.00", "41.5 bits"):
        assert words in page
    assert page.count("<svg ") == 1


def test_answers_stand_before_and_after_and_are_escaped():
    page = before_after_page([("Why <b>?", ("Once upon", False), ("Just so.", True))])
    assert page.index("before: Why &lt;b&gt;?") < page.index("Once upon ...") < page.index("after: ")
    assert "Just so.<" in page and "<b>" not in page


MUTANTS = [
    Mutant("minillama.tour_sft_pages", "scaled.append(flat / absmax)", "scaled.append(flat)",
           test_weights_are_scaled_by_their_block_and_stored_at_the_nearest_level),
    Mutant("minillama.tour_sft_pages", 'lessons.bits_of(row["held_out_loss"])', 'row["held_out_loss"]',
           test_the_curves_are_in_bits_an_answer_and_the_words_say_their_ends),
]
