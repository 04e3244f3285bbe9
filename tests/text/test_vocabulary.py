from __future__ import annotations

import pytest

from unveil.text.vocabulary import Vocabulary


def test_specials_are_distinct_ids_inside_the_vocabulary() -> None:
    assert Vocabulary(10, 4, 5, 6, 7, 8, 9).specials == (4, 5, 6, 7, 8, 9)
    with pytest.raises(ValueError, match="distinct"):
        Vocabulary(10, 4, 4, 6, 7, 8, 9)
    with pytest.raises(ValueError, match=r"0\.\.9"):
        Vocabulary(10, 4, 5, 6, 7, 8, 10)
