"""The project's own judgements hold on whatever Python this is."""

from pydoc_data.topics import topics

from t1_edge_bench.pydoc import by_topic, dataset, passages, questions


def test_there_are_enough_questions_and_none_twice() -> None:
    assert len(questions()) >= 80
    assert len({question.id for question in questions()}) == len(questions())
    assert len({question.text for question in questions()}) == len(questions())


def test_the_demo_begins_with_the_lists_argument() -> None:
    assert questions()[0].text == "why does my list argument remember old values"


def test_every_topic_exists_and_has_passages() -> None:
    searched = {passage.topic for passage in passages()}
    for question in questions():
        assert question.topics
        assert set(question.topics) <= topics.keys()
        assert set(question.topics) <= searched


def test_questions_do_not_name_their_topic() -> None:
    ordinary = {"for", "in", "if", "while", "with", "class", "import", "return", "lists", "else"}
    for question in questions():
        words = set(question.text.replace(",", " ").split())
        assert not (words & set(question.topics)) - ordinary, question


def test_passages_are_a_few_hundred_short_and_distinct() -> None:
    assert 200 <= len(passages()) <= 450
    assert len({passage.id for passage in passages()}) == len(passages())
    assert max(len(passage.text.split()) for passage in passages()) <= 60
    assert all(passage.text.strip() for passage in passages())


def test_the_first_question_can_be_answered() -> None:
    texts = [passage.text for passage in passages() if passage.topic == "function"]
    assert any("Default parameter values are evaluated" in text for text in texts)


def test_a_topic_is_as_good_as_its_best_passage() -> None:
    run = {"q": {"a#0": 0.1, "b#3": 0.5, "a#7": 0.9}}
    assert by_topic(run) == {"q": {"a": 0.9, "b": 0.5}}


def test_the_data_set_holds_all_of_it() -> None:
    found = dataset()
    assert [document.id for document in found.documents] == [p.id for p in passages()]
    assert set(found.qrels) == {question.id for question in questions()}
