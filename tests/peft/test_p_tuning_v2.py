"""P-tuning v2: a class head over a frozen model behind a prefix. That it beats a soft prompt needs more than a test."""

import pytest
import torch
import torch.nn.functional as F
from checkpoints import in_a_folder
from mutants import Mutant
from test_lora_file import peft_twin
from tuned_models import close, disturb, small_model, tokens, trained

from minillama.peft.adapter_file import load_classifier, save_adapter
from minillama.peft.p_tuning_v2 import PrefixClassifier


def classifier(seed=0):
    model = small_model()
    torch.manual_seed(seed)
    return PrefixClassifier(model, 4, 3)


def test_the_head_reads_the_last_token_whatever_the_padding():
    model = classifier()
    assert sum(p.numel() for p in trained(model).values()) == 4 * 2 * 2 * 16 + 32 * 3
    padded = model(F.pad(tokens(), (6, 0)), left_pad_B=torch.tensor([6, 6]))
    wanted = model.model.hidden_states(tokens())[:, -1] @ model.head.weight.T
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


def test_prefix_and_head_load_back_to_the_same_scores_and_bytes(tmp_path):
    model = disturb(classifier())
    save_adapter(tmp_path, model)
    again = load_classifier(tmp_path, small_model())
    assert set(trained(again)) == set(trained(model)) and close(again(tokens()), model(tokens()))
    (tmp_path / "again").mkdir()
    save_adapter(tmp_path / "again", again)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_folder_without_a_head_is_refused(tmp_path):
    save_adapter(tmp_path, classifier().model)
    with pytest.raises(ValueError, match="no prefix with a head of classes over 32 numbers"):
        load_classifier(tmp_path, fresh := small_model())
    assert fresh.virtual_tokens is None


def test_peft_and_we_score_classes_alike():
    """Both ways: LlamaForSequenceClassification reads the last token, as we do."""
    ours = disturb(classifier())
    for write in ("ours", "theirs"):
        with peft_twin(small_model()) as (peft, causal, folder):
            from transformers import LlamaForSequenceClassification

            causal.config.num_labels, causal.config.pad_token_id = 3, 60
            theirs = LlamaForSequenceClassification(causal.config).eval()
            theirs.model.load_state_dict(causal.model.state_dict())
            texts = tokens() % 60
            if write == "ours":
                save_adapter(folder, ours)
                read = peft.PeftModel.from_pretrained(theirs, folder).eval()
                assert close(ours(texts), read(texts).logits)
                continue
            made = disturb(peft.get_peft_model(theirs, peft.PrefixTuningConfig(
                num_virtual_tokens=4, task_type="SEQ_CLS"))).eval()
            made.save_pretrained(folder)
            assert close(load_classifier(folder, small_model())(texts), made(texts).logits)


def test_prefix_and_head_alone_learn_and_no_encoder_stands_between():
    model = classifier()
    assert set(trained(model)) == {"model.virtual_tokens.embedding", "head.weight"}
    F.cross_entropy(model(tokens()), torch.tensor([0, 2])).backward()
    assert all(p.grad is not None and p.grad.any() for p in trained(model).values())


MUTANTS = [
    Mutant("minillama.peft.p_tuning_v2", "left_pad_B=left_pad_B)", "left_pad_B=None)",
           test_the_head_reads_the_last_token_whatever_the_padding),
    Mutant("minillama.peft.p_tuning_v2", "if n:", "if False:",
           test_prefix_and_head_alone_learn_and_no_encoder_stands_between),
    Mutant("minillama.peft.p_tuning_v2", "hidden_BD.float()", "hidden_BD.detach().float()",
           test_prefix_and_head_alone_learn_and_no_encoder_stands_between),
    Mutant("minillama.peft.prefix_tuning", "    model.requires_grad_(False)\n", "",
           test_prefix_and_head_alone_learn_and_no_encoder_stands_between),
    Mutant("minillama.peft.p_tuning_v2", "[:, -1]", "[:, 0]", test_the_head_reads_the_last_token_whatever_the_padding),
    Mutant("minillama.peft.adapter_file", "classifier.head.weight.copy_(W)", "pass",
           lambda: in_a_folder(test_prefix_and_head_load_back_to_the_same_scores_and_bytes)),
]
