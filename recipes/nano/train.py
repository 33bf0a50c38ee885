"""Runs a stage of training; called again, it goes on where it stood.

    python -m recipes.nano.train recipes/nano/configs/stage1-cpu.toml --data DIR --out DIR

Metrics go to metrics.jsonl; checkpoint.pt holds what a later run needs to go on; the adapter is
written whenever dev is measured, the best of them to best/.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from recipes.nano.config import Config, read_config
from recipes.nano.learner import Learner
from recipes.nano.model import new_student
from recipes.nano.stages import loss_of
from recipes.nano.stream import Stream


class Run:
    """A learner, its optimizer, and the files of a run.

    Args:
        config: The run.
        data: The stream's folder.
        out: Where metrics, checkpoint and adapters go.
        init: Adapter to start from; without one, the student has learnt nothing.
    """

    def __init__(self, config: Config, data: Path, out: Path, init: Path | None) -> None:
        torch.manual_seed(config.seed)
        self.config, self.out = config, out
        self.step, self.best = 0, 0.0
        student, codec = new_student(
            config.base,
            rank=config.rank,
            alpha=config.alpha,
            first_layer=config.first_layer,
            cached_tokens=config.cached_tokens,
        )
        if config.compiled:
            student.compile_blocks()
        stream = Stream(
            data,
            codec,
            query_tokens=config.query_tokens,
            document_tokens=config.document_tokens,
            judged=config.stage == "reinforce",
            together=config.together,
            helped=config.helped,
            weights=config.weights,
        )
        self.learner = Learner(student, codec, stream, config)
        if init:
            student.load(init)
        self._loss = loss_of(self.learner)
        trained = student.trained()
        # Decay would move rows that do not learn.
        groups = [{"params": [trained.pop("rows")], "weight_decay": 0.0}]
        groups.append({"params": [*trained.values()], "weight_decay": 0.01})
        self.optimizer = torch.optim.AdamW(groups, config.rate, betas=(0.9, 0.98))

    def resume(self) -> None:
        """Go on where checkpoint.pt of an earlier run stands, if there is one."""
        path = self.out / "checkpoint.pt"
        if path.exists():
            stored = torch.load(path, map_location=self.learner.device, weights_only=True)
            self.learner.student.load_state_dict(stored["trained"], strict=False)
            self.optimizer.load_state_dict(stored["optimizer"])
            self.step, self.best = stored["step"], stored["best"]
        self._forget_later_metrics()

    def _forget_later_metrics(self) -> None:
        """Lines of steps behind the checkpoint: they will be run again."""
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        path.write_text("".join(x for x in lines if json.loads(x)["step"] <= self.step))

    def keep(self) -> None:
        """Write checkpoint.pt; a killed run leaves the one before."""
        new = self.out / "checkpoint.pt.new"
        trained = {name: p.detach() for name, p in self.learner.student.trained().items()}
        state = {"trained": trained, "optimizer": self.optimizer.state_dict()}
        torch.save(state | {"step": self.step, "best": self.best}, new)
        new.replace(self.out / "checkpoint.pt")

    def learn(self) -> Mapping[str, float]:
        """One step of the optimizer; what it measured on the way."""
        config, began = self.config, time.perf_counter()
        rate = learning_rate(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.learner.stream.batch(self.step, config.batch, config.negatives, config.seed)
        loss, parts = self._loss(batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        trained = self.learner.student.trained().values()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.step += 1
        seconds = round(time.perf_counter() - began, 2)
        return {**parts, "norm": norm.item(), "rate": rate, "seconds": seconds}

    def measure(self) -> Mapping[str, Mapping[str, float]]:
        """Mean reciprocal ranks on dev, by set, and behind own thoughts; write the adapter."""
        learner, config = self.learner, self.config
        pool = learner.stream.dev(config.dev_questions, config.dev_distractors)
        found = {}
        with torch.no_grad():
            documents = learner.documents(pool.documents)
            found["dev"] = pool.reciprocal_ranks(_scores(learner.direct(pool.examples), documents))
            if config.stage != "representation" and config.thoughts:
                thoughts, _ = learner.think(pool.examples, temperature=0)
                queries = learner.behind(pool.examples, thoughts)
                found["thought_dev"] = pool.reciprocal_ranks(_scores(queries, documents))
        learner.student.save(self.out / "last", config.base)
        best = max(ranks["all"] for ranks in found.values())
        if best > self.best:
            self.best = best
            learner.student.save(self.out / "best", config.base)
        return found

    def log(self, **values: Any) -> None:
        """A line of metrics.jsonl."""
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, **values}) + "\n")


def _scores(queries: torch.Tensor, documents: torch.Tensor) -> NDArray[np.float32]:
    return (queries @ documents.T).cpu().numpy()


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
    settings = read_config(config)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(settings, data, out, init)
    run.resume()
    while run.step < settings.steps:
        run.log(**run.learn())
        if run.step % settings.dev_every == 0 or run.step == settings.steps:
            found = run.measure()
            run.log(**found)
            said = ", ".join(f"{name} {ranks['all']:.4f}" for name, ranks in found.items())
            click.echo(f"step {run.step}: {said}")
        if run.step % settings.keep_every == 0 or run.step == settings.steps:
            run.keep()


if __name__ == "__main__":
    main()
