"""P-tuning v2: a class head over a frozen model behind a prefix. That it beats a soft prompt needs more than a test."""

import torch
import torch.nn.functional as F
from mutants import Mutant
from tuned_models import close, small_model, tokens, trained

from minillama.peft.p_tuning_v2 import PrefixClassifier


def classifier(seed=0):
    model = small_model()
    torch.manual_seed(seed)
    return PrefixClassifier(model, 4, 3)


def test_the_head_reads_the_last_token_whatever_the_padding():
    model = classifier()
    assert sum(p.numel() for p in trained(model).values()) == 4 * 2 * 2 * 16 + 32 * 3 + 3
    padded = model(F.pad(tokens(), (6, 0)), left_pad_B=torch.tensor([6, 6]))
    wanted = model.model.hidden_states(tokens())[:, -1] @ model.head.weight.T + model.head.bias
    assert close(model(tokens()), wanted) and close(padded, wanted)


def test_it_learns_which_of_three_words_came_first():
    """Over three seeds: 60 steps on 256 texts whose first token is the class, then 100 others; a third is chance."""
    for seed in range(3):
        model = classifier(seed)
        optimizer = torch.optim.Adam(trained(model).values(), 3e-2)
        texts = torch.randint(61, (356, 5), generator=torch.Generator().manual_seed(seed))
        texts[:, 0] %= 3
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(model(texts[:256]), texts[:256, 0]).backward()
            optimizer.step()
        right = (model(texts[256:]).argmax(-1) == texts[256:, 0]).float().mean()
        assert right > 0.6, seed


MUTANTS = [
    Mutant("minillama.peft.p_tuning_v2", "[:, -1]", "[:, 0]", test_the_head_reads_the_last_token_whatever_the_padding),
]
