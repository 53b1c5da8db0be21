"""Exercise 04: two vocabularies merged, and a table grown for them (lesson 04).

A vocabulary is a list of texts; the place of a text is its number. No piece may stand in it twice.
"""


def holds_joined_digits(text):
    """Whether one of the digits 0 to 9 stands in the text beside any other character (a digit alone is fine)."""
    raise NotImplementedError("your code here")


def merge(old, other, split_digits):
    """A new list: `old` as it is, then what `other` has and `old` has not, in the order of `other`, each text once.

    split_digits: leave out what holds joined digits. Pieces of `old` always stay. Both arguments stay unchanged.
    """
    raise NotImplementedError("your code here")


def grow(table, vocab_size):
    """A new tensor (vocab_size, D) of the table's dtype: the rows of `table` (V, D), then for each new piece the mean
    of these V rows. The mean of a 16-bit table is taken in float32 and rounded once."""
    raise NotImplementedError("your code here")


def largest_loss(n_old, n_new):
    """By how many nats the log-probability of an old token can fall at most, when mean rows are added to the head."""
    raise NotImplementedError("your code here")
