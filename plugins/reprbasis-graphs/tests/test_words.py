"""What people are shown of tokens."""

from reprbasis_graphs.words import distinct


def test_words_that_cannot_be_read_are_left_out():
    assert distinct(["are", "\ufffd\ufffd", "are", "", "\x07", "were", "hips"], 2) == ["are", "were"]
