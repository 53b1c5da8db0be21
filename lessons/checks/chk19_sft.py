"""Checks of exercise 19: labels by hand for a chat of three turns, the loss against the library's."""
import torch

from minillama.course.exercise import Wrong, close
from minillama.train.sequence_loss import sequence_loss

HINTS = {
    "chat_labels": ("One bos opens the whole chat. Then go turn by turn: a question that is not learned, a reply that "
                    "is.",
                    "The eos belongs to the reply: it is how the model learns to stop. The bos is not learned.",
                    "Every answer is learned, not only the last one."),
    "next_token_loss": ("Logits at place t are held against the label at place t + 1: drop the last logits and the "
                        "first label.",
                        "Places with -100 count neither in the sum nor in the number it is divided by.",
                        "Nothing learned at all is 0 / 0: raise a ValueError instead."),
    "exact_matches": ("Compare the most likely token at place t with the label at place t + 1.",
                      "Places with -100 are always right."),
}


def spell(text):
    return [ord(letter) for letter in text]


def check_chat_labels(learner):
    close("one turn", learner.chat_labels([("ab", "c")], 1, 2, spell), ([1, 97, 98, 99, 2], [-100] * 3 + [99, 2]), 0, 1)
    turns = [("hi", "yo"), ("x", ""), ("?", "end")]
    tokens = [1, *spell("hiyo"), 2, *spell("x"), 2, *spell("?end"), 2]
    wanted = [-100] * 3 + [*spell("yo"), 2] + [-100] + [2] + [-100] + [*spell("end"), 2]
    got = learner.chat_labels(turns, 1, 2, spell)
    close("tokens of three turns", list(got[0]), tokens, 0, 0)
    close("labels of three turns", list(got[1]), wanted, 0, 2)


def case(seed, B=3, T=7, V=11):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, T, V, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, V, (B, T), generator=generator)
    return logits, labels.masked_fill(torch.rand(B, T, generator=generator) < 0.5, -100)


def check_next_token_loss(learner):
    logits, labels = case(0)
    whole = labels.clamp(min=0)
    close("the loss with every token learned", learner.next_token_loss(logits, whole), sequence_loss(logits, whole),
          1e-12, 0)
    for seed, shape in ((1, (1, 2, 3)), (2, (3, 7, 11)), (3, (5, 13, 4))):
        logits, labels = case(seed, *shape)
        labels[0, -1] = 1  # at least one is learned
        close(f"the loss of a batch {shape}", learner.next_token_loss(logits, labels), sequence_loss(logits, labels),
              1e-12, 1)
    try:
        got = learner.next_token_loss(logits, torch.full_like(labels, -100))
    except ValueError:
        return
    raise Wrong(f"a batch in which nothing is learned gave {got}, wanted a ValueError", 2)


def check_exact_matches(learner):
    logits = torch.zeros(3, 4, 5)
    labels = torch.tensor([[0, 1, 2, 3], [-100, -100, 2, 3], [-100, -100, 4, -100]])
    for place in range(3):
        logits[:, place, place + 1] = 1.0  # says 1, 2, 3
    close("exact_matches", learner.exact_matches(logits, labels), torch.tensor([True, True, False]), 0, 1)
    close("exact_matches of what the first row says", learner.exact_matches(logits[:1], labels[:1]),
          torch.tensor([True]), 0, 0)


WRONG = [
    ("prompt = encode(question)", "prompt = [bos_id] * bool(tokens[1:]) + encode(question)", "chat_labels", 0),
    ("[*encode(answer), eos_id]", "[*encode(answer)]", "chat_labels", 1),
    ("[-100] * len(prompt) + reply", "[-100] * len(prompt) + reply[:-1] + [-100]", "chat_labels", 1),
    ("labels += [-100] * len(prompt) + reply", "labels = [-100] * (len(tokens) - len(reply)) + reply",
     "chat_labels", 2),
    ("logits_NV = logits_BTV[:, :-1][learned_BT]", "logits_NV = logits_BTV[:, 1:][learned_BT]", "next_token_loss", 0),
    ("cross_entropy(logits_NV, targets_BT[learned_BT])",
     "cross_entropy(logits_NV, targets_BT[learned_BT], reduction='sum') / targets_BT.numel()", "next_token_loss", 1),
    ("    if not learned_BT.any():\n        raise ValueError(\"no token of this batch is learned\")\n", "",
     "next_token_loss", 2),
    (" | (targets_BT == -100)", "", "exact_matches", 1),
    ("tokens, labels = [bos_id], [-100]", "tokens, labels = [], []", "chat_labels", 1),
    ("tokens += prompt + reply", "tokens += reply + prompt", "chat_labels", 1),
    ("learned_BT = targets_BT != -100", "learned_BT = targets_BT > 0", "next_token_loss", 0),
    ("labels_BT[:, 1:]\n    learned_BT", "labels_BT[:, :-1]\n    learned_BT", "next_token_loss", 0),
    ("logits_BTV[:, :-1].argmax(-1)", "logits_BTV[:, 1:].argmax(-1)", "exact_matches", 1),
    (".all(1)", ".any(1)", "exact_matches", 1),
]
