"""The words that nano's thoughts are made of, and who judges them."""

import numpy as np
import pytest

from recipes.nano.data import Pair, split
from recipes.nano.keywords import Keywords
from recipes.nano.ranks import best_ranks
from recipes.nano.thoughts import BM25Judge, choose
from recipes.nano.wording import draw_wording


def test_a_thought_is_kept_where_two_judges_gain() -> None:
    documents = ["anthocyanins redden leaves", "iron rusts in rain", "leaves fall", "rain falls"]
    keywords = Keywords(documents)
    found = keywords.weighed("anthocyanins redden leaves", "why do leaves", 2)
    assert list(found) == ["anthocyanins", "redden"]
    _, examples = split([Pair(set="s", query="why leaves", documents=documents[:1])])
    options, answers = [["anthocyanins, redden", "rain"]], np.array([[True, False, False, False]])
    judge = BM25Judge(documents)
    assert choose(examples, options, answers, [judge, judge, judge]) == ["anthocyanins, redden"]

    class Contrary:
        def scores(self, queries: object) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
            assert isinstance(queries, list)
            return np.array([[1, 0, 0, 0]] * len(queries), np.float32)

    assert choose(examples, options, answers, [judge, Contrary(), Contrary()]) == [""]


def test_a_word_that_few_documents_have_is_left_out() -> None:
    documents = ["iron rusts in rain", "rain falls on iron", "rain is water", "leaves fall"]
    seen = [list(Keywords(documents, seen=n).weighed(documents[0], "", 9)) for n in (1, 2)]
    assert seen == [["rusts", "iron", "rain"], ["iron", "rain"]]


def test_a_wording_has_every_word_that_is_left_as_a_goal() -> None:
    words = {(7,): 3.0, (8, 9): 1.0, (9,): 1.0, (8, 3): 1.0, (4, 4): 9.0}
    firsts, repeated, rng = [], 0, np.random.default_rng(0)
    for _ in range(60):
        drawn = draw_wording(words, rng, most=3, budget=4, close=1)
        assert drawn.goals[0] == pytest.approx({7: 9 / 12, 8: 2 / 12, 9: 1 / 12})
        assert len(set(drawn.tokens)) == len(drawn.tokens) <= 4
        assert len(drawn.goals) == len(drawn.tokens) + 1
        assert drawn.goals[-1] == {1: 1.0}
        for token, goal in zip(drawn.tokens, drawn.goals[:-1], strict=True):
            assert goal[token] > 0
            assert sum(goal.values()) == pytest.approx(1)
        firsts.append(drawn.tokens[0])
        if drawn.tokens[:2] == (8, 9):
            repeated += 1
            assert drawn.goals[1:3] == [{9: 1.0}, {7: 1.0}]  # (9,) and (8, 3) would repeat
    assert repeated
    assert 38 < firsts.count(7) < 53  # of 60; the square of the weights makes it 45, they 30
    (short,) = draw_wording({(5,): 1.0, (6,): 1.0}, rng, most=1, budget=9, close=1).tokens
    assert short in (5, 6)
    none = draw_wording({}, rng, most=3, budget=4, close=1)
    assert (none.tokens, none.goals) == ((), [{1: 1.0}])


def test_a_question_of_stop_words_alone_finds_nothing() -> None:
    scores = BM25Judge(["leaves turn red", "iron rusts"]).scores(["what is it", "red leaves"])
    assert scores[0].tolist() == [0, 0]
    assert scores[1].argmax() == 0


def test_ranks_count_what_stands_before_the_best_answer() -> None:
    scores = np.array([[0.9, 0.5, 0.7, 0.1]], np.float32)
    for answers, rank in (
        ([1, 0, 0, 0], 1),
        ([0, 1, 0, 0], 3),
        ([0, 1, 1, 0], 2),
        ([0, 0, 0, 1], 4),
    ):
        assert best_ranks(scores, np.array([answers], np.bool_)).tolist() == [rank]
