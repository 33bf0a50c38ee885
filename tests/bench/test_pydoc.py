"""The project's own judgements hold on whatever Python this is."""

from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

from t1_edge_bench.pydoc import dataset, passages, questions

_COMMON = Path(__file__).with_name("pydoc_topics_common.txt")


def test_there_are_enough_questions_and_none_twice() -> None:
    assert len(questions()) >= 80
    assert len({question.id for question in questions()}) == len(questions())
    assert len({question.text for question in questions()}) == len(questions())


def test_questions_are_asked_as_people_ask() -> None:
    for question in questions():
        assert question.text == question.text.lower()
        assert 6 <= len(question.text.split()) <= 25, question


def test_the_demo_begins_with_the_lists_argument() -> None:
    assert questions()[0].text == "why does my list argument remember old values"


def test_every_topic_exists_and_has_passages() -> None:
    searched = {passage.topic for passage in passages()}
    for question in questions():
        assert question.topics
        assert len(set(question.topics)) == len(question.topics)
        assert set(question.topics) <= topics.keys()
        assert set(question.topics) <= searched


def test_the_topics_are_those_of_every_supported_python() -> None:
    common = frozenset(_COMMON.read_text().split())
    judged = {topic for question in questions() for topic in question.topics}
    assert common <= topics.keys()
    assert judged <= common
    assert len(judged) >= 55


def test_questions_do_not_name_their_topic() -> None:
    ordinary = {"for", "in", "if", "while", "with", "class", "import", "return", "lists", "else"}
    for question in questions():
        words = set(question.text.replace(",", " ").split())
        assert not (words & set(question.topics)) - ordinary, question


def test_every_judged_topic_has_a_passage_that_answers() -> None:
    for question in questions():
        for topic in question.topics:
            texts = [passage.text for passage in passages() if passage.topic == topic]
            assert any(words in text for words in question.answers for text in texts), question


def test_no_answer_is_left_without_a_passage() -> None:
    for question in questions():
        texts = [passage.text for passage in passages() if passage.topic in question.topics]
        for words in question.answers:
            assert any(words in text for text in texts), (question.id, words)


def test_passages_are_a_few_hundred_short_and_distinct() -> None:
    assert 200 <= len(passages()) <= 400
    assert len({passage.id for passage in passages()}) == len(passages())
    assert max(len(passage.text.split()) for passage in passages()) <= 60
    assert all(passage.text.strip() for passage in passages())


def test_passages_come_in_the_order_of_their_topics() -> None:
    places = [(passage.topic, int(passage.id.partition("#")[2])) for passage in passages()]
    assert all(one < next_one for one, next_one in pairwise(places))


def test_passages_are_the_same_every_time() -> None:
    found = passages()
    passages.cache_clear()
    assert passages() == found


def test_passages_hold_prose_alone() -> None:
    for passage in passages():
        assert not {"::=", "***", "===", "---", ">>>"} & set(passage.text.split()), passage.id
        assert "  " not in passage.text


def test_operators_survive_the_removal_of_lines() -> None:
    power = " ".join(passage.text for passage in passages() if passage.topic == "power")
    assert '"10**-2" returns "0.01"' in power


def test_longer_and_more_passages_can_be_had() -> None:
    assert len(passages(per_topic=8)) > len(passages())
    longer = passages(max_words=120)
    assert 60 < max(len(passage.text.split()) for passage in longer) <= 120


def test_a_passage_stands_under_its_title() -> None:
    texts = [passage.text for passage in passages() if passage.topic == "assert"]
    assert all(text.startswith('The "assert" statement: ') for text in texts)


def test_the_data_set_holds_all_of_it() -> None:
    found = dataset()
    assert [document.id for document in found.documents] == [p.id for p in passages()]
    assert [query.text for query in found.queries] == [question.text for question in questions()]
    assert found.qrels == {q.id: dict.fromkeys(q.topics, 1) for q in questions()}
    assert found.topics == {passage.id: passage.topic for passage in passages()}


def test_fewer_questions_are_judged_alone() -> None:
    found = dataset(limit_queries=3)
    assert [query.id for query in found.queries] == list(found.qrels) == ["q001", "q002", "q003"]
    assert found.documents == dataset().documents
