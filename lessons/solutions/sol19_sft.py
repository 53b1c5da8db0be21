"""Exercise 19, solved: which tokens of a chat are learned, and their loss."""
import torch


def chat_labels(turns, bos_id, eos_id, encode):
    """Tokens and labels of a chat: two lists of int of equal length."""
    tokens, labels = [bos_id], [-100]
    for question, answer in turns:
        prompt = encode(question)
        reply = [*encode(answer), eos_id]
        tokens += prompt + reply
        labels += [-100] * len(prompt) + reply
    return tokens, labels


def next_token_loss(logits_BTV, labels_BT):
    """Mean cross entropy over learned tokens."""
    targets_BT = labels_BT[:, 1:]
    learned_BT = targets_BT != -100
    if not learned_BT.any():
        raise ValueError("no token of this batch is learned")
    logits_NV = logits_BTV[:, :-1][learned_BT]
    return torch.nn.functional.cross_entropy(logits_NV, targets_BT[learned_BT])


def exact_matches(logits_BTV, labels_BT):
    """For each row, whether every learned token has the highest logit at the place before it."""
    targets_BT = labels_BT[:, 1:]
    said_BT = logits_BTV[:, :-1].argmax(-1)
    return ((said_BT == targets_BT) | (targets_BT == -100)).all(1)
