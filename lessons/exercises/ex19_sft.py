"""Exercise 19: which tokens of a chat are learned, and their loss (lesson 19)."""


def chat_labels(turns, bos_id, eos_id, encode):
    """Tokens and labels of a chat: two lists of int of equal length.

    turns: [(question, answer), ...], str; encode: str -> list of ids. The tokens are

        bos                                         once, before the first turn, as in Vicuna
        ids(question)  ids(answer)  eos             for each turn, one after another.

    (Llama 2's chats are otherwise: there a bos opens each turn.)
    The label of a token is the token itself where it is learned (answers and the eos behind each), else -100.
    """
    raise NotImplementedError("your code here")


def next_token_loss(logits_BTV, labels_BT):
    """Mean cross entropy over learned tokens: a scalar tensor.

    logits_BTV: float, logits at place t are for the token at place t + 1. labels_BT: int64, -100 where nothing is
    learned; a label stands at its own token's place. ValueError if no token is learned.
    """
    raise NotImplementedError("your code here")


def exact_matches(logits_BTV, labels_BT):
    """For each row, whether every learned token has the highest logit at the place before it: bool (B,)."""
    raise NotImplementedError("your code here")
