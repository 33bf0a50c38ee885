"""The stages of training; called again, a run goes on where it stood.

    python -m recipes.nano.train recipes/nano/configs/stage1-cpu.toml --data DIR --out DIR

Metrics go to metrics.jsonl; checkpoint.pt holds what a later run needs to go on; the adapter is
written whenever dev is measured, the best of them to best/.
"""

import json
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipes.nano.model import Student
from recipes.nano.stream import Batch, Stream
from t1_edge.contract import Codec, Contract
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.checkpoint import find_checkpoint, open_checkpoint
from t1_edge_export.vocabulary import with_tokens

CONTRACT: Final = Path(__file__).with_name("contract.json")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run.

    Attributes:
        base: Checkpoint that is adapted, as `t1-edge export` takes it.
        seed: Of the weights and the batches.
        rank: Of the adapter.
        alpha: Of the adapter.
        first_layer: Blocks below it stay as they are.
        steps: How many.
        batch: Examples of a step.
        negatives: Hard negatives of an example.
        rate: Highest learning rate; warmed up over 5 % of the steps, then a cosine to a tenth.
        temperature: Of the student's similarities (InfoNCE, arXiv 1807.03748).
        teacher_temperature: Of the teacher's.
        distillation: Weight of the divergence from the teacher's ranking.
        query_tokens: Longest query.
        document_tokens: Longest document.
        dev_every: Steps between two measurements on dev.
        dev_questions: Of a set.
        dev_distractors: Documents beside those that answer.
    """

    base: str = "smollm2-135m"
    seed: int = 0
    rank: int = 32
    alpha: int = 64
    first_layer: int = 15
    steps: int
    batch: int = 64
    negatives: int = 1
    rate: float = 5e-4
    temperature: float = 0.05
    teacher_temperature: float = 0.05
    distillation: float = 1.0
    query_tokens: int = 48
    document_tokens: int = 96
    dev_every: int = 100
    dev_questions: int = 40
    dev_distractors: int = 2000


def representation_loss(
    queries: Tensor, documents: Tensor, batch: Batch, teacher: NDArray[np.float32], config: Config
) -> tuple[Tensor, Mapping[str, float]]:
    """InfoNCE with in-batch and hard negatives, and the divergence from the teacher's ranking.

    Args:
        queries: float32 [b, d], unit rows.
        documents: float32 [n, d], unit rows, the positives first.
        batch: Which they are; another answer to a question is no negative of it.
        teacher: float32 [b, n], the teacher's cosines.
        config: Temperatures and weights.

    Returns:
        The loss, and its parts for the log.
    """
    scores = queries @ documents.T / config.temperature
    own = torch.eye(len(queries), len(documents), dtype=torch.bool, device=scores.device)
    others = torch.from_numpy(batch.answers).to(scores.device) & ~own
    target = torch.arange(len(queries), device=scores.device)
    contrast = torch.nn.functional.cross_entropy(scores.masked_fill(others, -torch.inf), target)
    goal = torch.from_numpy(teacher).to(scores.device) / config.teacher_temperature
    divergence = torch.nn.functional.kl_div(
        scores.log_softmax(-1), goal.log_softmax(-1), reduction="batchmean", log_target=True
    )
    loss = contrast + config.distillation * divergence
    return loss, {"contrast": contrast.item(), "divergence": divergence.item()}


class Run:
    """A student, its optimizer and its stream, on the device that there is.

    Args:
        config: The run.
        data: The stream's folder.
        out: Where metrics, checkpoint and adapters go.
    """

    def __init__(self, config: Config, data: Path, out: Path) -> None:
        torch.manual_seed(config.seed)
        self.config, self.out, self.step = config, out, 0
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        contract = msgspec.json.decode(CONTRACT.read_bytes(), type=Contract)
        base = open_checkpoint(find_checkpoint(config.base))
        checkpoint = with_tokens(base, contract.added_tokens)
        self.codec = Codec(contract, TextTokenizer(checkpoint.tokenizer))
        self.stream = Stream(
            data,
            self.codec,
            query_tokens=config.query_tokens,
            document_tokens=config.document_tokens,
        )
        new = (self.codec.open, self.codec.close, self.codec.emb)
        self.student = Student(
            checkpoint,
            sorted(new),
            rank=config.rank,
            alpha=config.alpha,
            first_layer=config.first_layer,
        ).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.student.trained().values(), config.rate, betas=(0.9, 0.98), weight_decay=0.01
        )

    def resume(self) -> None:
        """Go on where checkpoint.pt of an earlier run stands, if there is one."""
        path = self.out / "checkpoint.pt"
        if path.exists():
            stored = torch.load(path, map_location=self.device, weights_only=True)
            self.student.load_state_dict(stored["trained"], strict=False)
            self.optimizer.load_state_dict(stored["optimizer"])
            self.step = stored["step"]

    def keep(self) -> None:
        """Write checkpoint.pt; a killed run leaves the one before."""
        new = self.out / "checkpoint.pt.new"
        trained = {name: p.detach() for name, p in self.student.trained().items()}
        state = {"trained": trained, "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save(state, new)
        new.replace(self.out / "checkpoint.pt")

    def direct(self, examples: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Vectors of queries with an empty thought, float32 [b, d]."""
        end = (self.codec.close, self.codec.emb)
        return self.student.vectors([(*self.stream.queries[at], *end) for at in examples])

    def documents(self, chosen: NDArray[np.int64]) -> Tensor:
        """Vectors of documents, float32 [n, d]."""
        return self.student.vectors([self.stream.documents[at] for at in chosen])

    def learn(self) -> Mapping[str, float]:
        """One step of the optimizer."""
        config, began = self.config, time.perf_counter()
        rate = learning_rate(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.stream.batch(self.step, config.batch, config.negatives, config.seed)
        loss, parts = representation_loss(
            self.direct(batch.examples),
            self.documents(batch.documents),
            batch,
            self._teacher(batch),
            config,
        )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.student.trained().values(), 1.0)
        self.optimizer.step()
        self.step += 1
        seconds = time.perf_counter() - began
        return {**parts, "norm": norm.item(), "rate": rate, "seconds": round(seconds, 2)}

    def _teacher(self, batch: Batch) -> NDArray[np.float32]:
        queries = self.stream.query_vectors[batch.examples].astype(np.float32)
        documents = self.stream.document_vectors[batch.documents].astype(np.float32)
        cosines: NDArray[np.float32] = queries @ documents.T
        return cosines

    def measure(self) -> Mapping[str, float]:
        """Mean reciprocal ranks on dev, by set."""
        pool = self.stream.dev(self.config.dev_questions, self.config.dev_distractors)
        with torch.no_grad():
            queries, documents = self.direct(pool.examples), self.documents(pool.documents)
            return pool.reciprocal_ranks((queries @ documents.T).cpu().numpy())

    def log(self, **values: Any) -> None:
        """A line of metrics.jsonl."""
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, **values}) + "\n")


def learning_rate(step: int, config: Config) -> float:
    """Warm-up over 5 % of the steps, then a cosine down to a tenth."""
    warm = max(1, config.steps // 20)
    if step < warm:
        return config.rate * (step + 1) / warm
    share = (step - warm) / max(1, config.steps - warm)
    return float(config.rate * (0.55 + 0.45 * np.cos(np.pi * share)))


@click.command()
@click.argument("config", type=click.Path(path_type=Path, exists=True))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--init", type=click.Path(path_type=Path, exists=True), help="Adapter to start from.")
def main(config: Path, data: Path, out: Path, init: Path | None) -> None:
    """Train one stage; called again, it goes on."""
    settings = msgspec.convert(tomllib.loads(config.read_text()), Config)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(settings, data, out)
    if init:
        run.student.load(init)
    run.resume()
    best = 0.0
    while run.step < settings.steps:
        parts = run.learn()
        run.log(**parts)
        if run.step % settings.dev_every == 0 or run.step == settings.steps:
            run.keep()
            dev = run.measure()
            run.log(dev=dev)
            click.echo(f"step {run.step}: dev {dev['all']:.4f}")
            run.student.save(out / "last", settings.base)
            if dev["all"] > best:
                best = dev["all"]
                run.student.save(out / "best", settings.base)


if __name__ == "__main__":
    main()
