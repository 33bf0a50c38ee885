"""What a run is asked to do: one TOML file each, under configs/."""

import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from recipes.nano.wording import TOKENS, WORDS


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run.

    Attributes:
        stage: Which loss, see stages.py.
        thoughts: Whether the joint stage has thoughts; the direct control has none.
        base: Checkpoint that is adapted, as `t1-edge export` takes it.
        seed: Of the weights and the batches.
        rank: Of the adapter.
        alpha: Of the adapter.
        first_layer: Blocks below it stay as they are.
        cached_tokens: Most tokens whose states below `first_layer` are kept; 1,152 bytes each.
        compiled: Compile the trained blocks, which takes a minute and a C++ compiler.
        steps: How many.
        batch: Examples of a step.
        together: Of them, how many of one set stand together.
        helped: Share of a batch that is drawn from questions that a thought was found to help.
        weights: How many times its share of a batch a set has, by name.
        negatives: Hard negatives of an example.
        rate: Highest learning rate; warmed up over 5 % of the steps, then a cosine to a tenth.
        temperature: Of the student's similarities (InfoNCE, arXiv 1807.03748).
        teacher_temperature: Of the teacher's.
        distillation: Weight of the divergence from the teacher's ranking.
        words: Of a document, how many the representation stage goes on predicting.
        keywords: Words that a thought to learn from has at most.
        writing: Weight of the cross-entropy on those words of documents, or on those keywords.
        own: Share of the joint stage's batch that is read behind thoughts of the student's own.
        query_tokens: Longest query.
        document_tokens: Longest document.
        budget: Longest thought, sampled or learnt from, in tokens.
        group: Thoughts that are sampled for a question.
        least: Tokens that a thought has at least while thoughts are reinforced: as long as they
            hurt more than they help, a student that may write nothing soon does (docs/LOG.md).
        reading: Weight of finding documents, directly and behind a sampled thought, in stage 3.
        pool: Documents that rewards rank among.
        keep_every: Steps between two checkpoints.
        dev_every: Steps between two measurements on dev.
        dev_questions: Of a set.
        dev_distractors: Documents beside those that answer.
    """

    stage: Literal["representation", "joint", "reinforce"]
    thoughts: bool = True
    base: str = "smollm2-135m"
    seed: int = 0
    rank: int = 32
    alpha: int = 64
    first_layer: int = 15
    cached_tokens: int = 0
    compiled: bool = False
    steps: int
    batch: int = 64
    together: int = 16
    helped: float = 0.0
    weights: dict[str, float] = {}
    negatives: int = 1
    rate: float = 5e-4
    temperature: float = 0.05
    teacher_temperature: float = 0.05
    distillation: float = 1.0
    words: int = 0
    keywords: int = WORDS
    writing: float = 1.0
    own: float = 0.75
    query_tokens: int = 48
    document_tokens: int = 96
    budget: int = TOKENS
    group: int = 8
    least: int = 4
    reading: float = 0.1
    pool: int = 4000
    keep_every: int = 20
    dev_every: int = 100
    dev_questions: int = 40
    dev_distractors: int = 2000


def read_config(path: Path) -> Config:
    """The run that a TOML file describes."""
    return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Config)
