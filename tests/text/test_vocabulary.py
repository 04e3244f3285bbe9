from __future__ import annotations

import pytest

from unveil.text.vocabulary import Vocabulary


def test_specials_are_distinct_ids_inside_the_vocabulary() -> None:
    assert Vocabulary(10, 4, 5, 6, 7, 8, 9).specials == (4, 5, 6, 7, 8, 9)
    with pytest.raises(ValueError, match="distinct"):
        Vocabulary(10, 4, 5, 5, 7, 8, 9)
    with pytest.raises(ValueError, match=r"0\.\.9"):
        Vocabulary(10, 4, 5, 6, 7, 8, 10)


def test_a_foreign_tokenizer_may_have_fewer() -> None:
    """GPT-2 begins and ends a document with one token and has no sentinels."""
    vocabulary = Vocabulary(10, 8, 8, 9, -1, -1, -1)
    assert vocabulary.specials == (8, 9)
    with pytest.raises(ValueError, match="distinct"):
        Vocabulary(10, 9, 8, 9, -1, -1, -1)
    with pytest.raises(ValueError, match=r"0\.\.9"):
        Vocabulary(10, -2, 8, 9, -1, -1, -1)
