"""SmolLM2 with a LoRA adapter and rows of its own for the new tokens, as torch trains it."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DynamicCache

from recipes.nano.layers import LoRALinear, load_decoder
from t1_edge.contract import Codec
from t1_edge.tokenization import TextTokenizer
from t1_edge_export.checkpoint import Checkpoint, find_checkpoint, open_checkpoint
from t1_edge_export.presets import PRESETS
from t1_edge_export.vocabulary import with_tokens

ADAPTER: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"

_ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP: Final = ("gate_proj", "up_proj", "down_proj")
_PREFIX: Final = "base_model.model."
_ROWS: Final = f"{_PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
"""PEFT's names, so that its tools and `t1-edge export --adapter` read the file."""

Block = Callable[..., Tensor]
"""One layer of the decoder: states to states, [rows, tokens, hidden]."""


class Student(nn.Module):
    """A Llama decoder of frozen bfloat16 weights, with what is trained in float32.

    Args:
        checkpoint: The float weights, new tokens included as the last rows of the embedding.
        new: The new tokens' ids.
        closing: Of them, the one that a thought is closed with.
        rank: Of the adapter.
        alpha: Of the adapter.
        first_layer: Blocks below it stay as they are. Above 0, what stands below it is not
            differentiated, and of the new tokens' rows only the closing one learns, as a row of
            the head: what the others begin as is what documents are read with for good.
        cached_tokens: Most tokens whose states below the first trained block are kept, for rows
            that are read again and hold no token that learns.

    Raises:
        ValueError: If states are to be kept that every step changes.
    """

    _learning: Tensor

    def __init__(
        self,
        checkpoint: Checkpoint,
        new: Sequence[int],
        *,
        closing: int,
        rank: int,
        alpha: int,
        first_layer: int,
        cached_tokens: int = 0,
    ) -> None:
        super().__init__()
        if cached_tokens and not first_layer:
            raise ValueError("with first_layer = 0 there are no states to keep: cached_tokens is 0")
        self.decoder: Final = checkpoint.decoder
        self.rank, self.alpha, self.first_layer = rank, alpha, first_layer
        self.model = load_decoder(checkpoint)
        self.first_new = min(new)
        rows = self.model.embed_tokens.weight[self.first_new : self.first_new + len(new)]
        self.rows = nn.Parameter(rows.detach().float().clone())
        self._closing = closing
        learning = torch.tensor([not first_layer or token == closing for token in sorted(new)])
        self.register_buffer("_learning", learning[:, None], persistent=False)
        for layer in list(self.model.layers)[first_layer:]:
            for owner, names in ((layer.self_attn, _ATTENTION), (layer.mlp, _MLP)):
                for name in names:
                    setattr(owner, name, LoRALinear(getattr(owner, name), rank, alpha / rank))
        layers = list(self.model.layers)
        self._lower_blocks: Sequence[Block] = layers[:first_layer]
        self._upper_blocks: Sequence[Block] = layers[first_layer:]
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self._room = self._most_kept = cached_tokens

    def compile_blocks(self) -> None:
        """Fuse what stands between the matrix products of the trained blocks; a minute, once."""
        compiled = [torch.compile(block, dynamic=True) for block in self._upper_blocks]
        self._upper_blocks = compiled

    def _lower(self, ids: Tensor) -> Tensor:
        """States below the first trained block, bfloat16 [rows, tokens, hidden].

        A causal row does not see its padding, which stands on the right.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.first_layer == 0):
            return self._run(self._embed(ids), self._lower_blocks)

    def _upper(self, states: Tensor) -> Tensor:
        """Final states behind the norm, of what `_lower` gave."""
        normed: Tensor = self.model.norm(self._run(states, self._upper_blocks))
        return normed

    def _run(self, states: Tensor, blocks: Sequence[Block]) -> Tensor:
        places = torch.arange(states.shape[1], device=states.device)[None]
        rotary = self.model.rotary_emb(states, places)
        for block in blocks:
            states = block(states, position_embeddings=rotary, position_ids=places)
        return states

    def _lower_rows(self, rows: Sequence[tuple[int, ...]], keep: bool) -> Tensor:
        """`_lower` of rows, padded; what is kept is not computed again."""
        new = [row for row in dict.fromkeys(rows) if row not in self._kept]
        fresh: dict[tuple[int, ...], Tensor] = {}
        if new:
            states = self._lower(pad(new).to(self.rows.device))
            if len(new) == len(rows) and not keep:
                return states
            fresh = {row: s[: len(row)] for row, s in zip(new, states, strict=True)}
        if keep:
            self._keep(fresh)
        found = [self._kept[row] if row in self._kept else fresh[row] for row in rows]
        return nn.utils.rnn.pad_sequence(found, batch_first=True)

    def _keep(self, fresh: Mapping[tuple[int, ...], Tensor]) -> None:
        for row, states in fresh.items():
            if self._room >= len(row) and self._closing not in row:
                self._room -= len(row)
                self._kept[row] = states.clone()

    def _forget(self) -> None:
        self._kept.clear()
        self._room = self._most_kept

    def _embed(self, ids: Tensor) -> Tensor:
        rows = self.rows if self.first_layer == 0 else self.rows.detach()
        embedded = nn.functional.embedding(ids, self.model.embed_tokens.weight)
        new = (ids >= self.first_new) & (ids < self.first_new + len(rows))
        own = rows[(ids - self.first_new).clamp(0, len(rows) - 1)].to(embedded.dtype)
        return torch.where(new.unsqueeze(-1), own, embedded)

    @torch.no_grad()
    def think(
        self,
        rows: Sequence[Sequence[int]],
        *,
        budget: int,
        ends: Sequence[int],
        distinct: bool,
        least: int = 0,
        temperature: float,
        generator: torch.Generator,
    ) -> list[list[int]]:
        """Thoughts behind rows, sampled; 0 degrees is greedy.

        Args:
            rows: Token ids, each ending where the thought begins.
            budget: Most tokens of a thought.
            ends: Tokens that end a thought; the one that did is the thought's last.
            distinct: No token stands twice in a thought.
            least: Tokens of a thought that nothing ends before.
            temperature: Of the softmax.
            generator: On the device of the weights.
        """
        device = self.rows.device
        ids = pad([row[::-1] for row in rows]).flip(1).to(device)  # padded on the left
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(ids.shape[1], device=device) >= (ids.shape[1] - lengths)[:, None]
        stops = torch.tensor(list(ends), device=device)
        done = torch.zeros(len(rows), dtype=torch.bool, device=device)
        cache, found = DynamicCache(), []
        drawn = ids[:, :0]
        for step in range(budget):
            states = self.model(
                inputs_embeds=self._embed(ids),
                attention_mask=mask.long(),
                position_ids=(mask.long().cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            )[0]
            scores = self.logits(states[:, -1])
            if distinct:
                scores.scatter_(1, drawn, -torch.inf)
            if step < least:
                scores[:, stops] = -torch.inf
            ids = _draw(scores, temperature, generator)
            drawn = torch.cat([drawn, ids], 1)
            found.append(torch.where(done, -1, ids[:, 0]))
            done |= torch.isin(ids[:, 0], stops)
            if bool(done.all()):
                break
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        return [[token for token in row if token >= 0] for row in torch.stack(found, 1).tolist()]

    def states(
        self,
        rows: Sequence[tuple[int, ...]],
        places: Sequence[Sequence[int]],
        *,
        keep: bool = False,
        most: int | None = None,
    ) -> Tensor:
        """Final hidden states at places of rows, [sum of places, hidden], row after row.

        Args:
            rows: Token ids.
            places: Which tokens of each row.
            keep: Remember the rows' states below the first trained block, if there is room.
            most: Tokens, padding included, that are read together.
        """
        most = most or (2048 if self.rows.device.type == "cpu" else 16384)
        starts = [0, *itertools.accumulate(map(len, places))]
        found: list[Tensor] = []
        origin: list[int] = []
        for chosen in _chunks(sorted(range(len(rows)), key=lambda at: len(rows[at])), rows, most):
            below = self._lower_rows([rows[at] for at in chosen], keep)
            lines = [line for line, at in enumerate(chosen) for _ in places[at]]
            found.append(self._upper(below)[lines, [p for at in chosen for p in places[at]]])
            origin += [i for at in chosen for i in range(starts[at], starts[at + 1])]
        back = torch.empty(len(origin), dtype=torch.long)
        back[torch.tensor(origin)] = torch.arange(len(origin))
        return torch.cat(found)[back.to(self.rows.device)]

    def vectors(
        self, rows: Sequence[tuple[int, ...]], *, keep: bool = False, most: int | None = None
    ) -> Tensor:
        """Unit vectors at the last token of each row, float32 [rows, hidden].

        Args:
            rows: Token ids.
            keep: See `states`.
            most: See `states`.
        """
        last = self.states(rows, [(len(row) - 1,) for row in rows], keep=keep, most=most)
        return nn.functional.normalize(last.float(), dim=-1)

    def logits(self, states: Tensor) -> Tensor:
        """Scores of the next token, float32 [..., vocabulary], by the tied head."""
        weight = self.model.embed_tokens.weight
        behind = self.first_new + len(self.rows)
        rows = torch.where(self._learning, self.rows, self.rows.detach())
        head = torch.cat([weight[: self.first_new], rows.to(weight.dtype), weight[behind:]])
        return nn.functional.linear(states, head).float()

    def trained(self) -> dict[str, nn.Parameter]:
        """What learns, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def save(self, folder: Path, base: str) -> None:
        """Write the adapter in PEFT's layout, float16, with the new tokens' rows beside it.

        Args:
            folder: Made if it is missing.
            base: Name of the checkpoint that it adapts.
        """
        folder.mkdir(parents=True, exist_ok=True)
        found = {
            self._key(name): parameter.detach().half().cpu().contiguous()
            for name, parameter in self.trained().items()
        }
        save_file(found, folder / ADAPTER)
        config = {
            "peft_type": "LORA",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": [*_ATTENTION, *_MLP],
            "layers_to_transform": list(range(self.first_layer, self.decoder.layers)),
            "trainable_token_indices": {
                "embed_tokens": [self.first_new + at for at in range(len(self.rows))]
            },
            "task_type": "CAUSAL_LM",
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")

    def load(self, folder: Path) -> None:
        """Take the adapter of a folder that `save` wrote.

        Raises:
            ValueError: If it adapts other layers than this student.
        """
        stored = load_file(folder / ADAPTER)
        wanted = {self._key(name): parameter for name, parameter in self.trained().items()}
        if apart := stored.keys() ^ wanted.keys():
            raise ValueError(
                f"{folder} adapts other layers than those from {self.first_layer} on: only one "
                f"has {min(apart)}"
            )
        with torch.no_grad():
            for key, parameter in wanted.items():
                parameter.copy_(stored[key])
        self._forget()

    @staticmethod
    def _key(name: str) -> str:
        return _ROWS if name == "rows" else f"{_PREFIX}{name}.weight"


class Frozen:
    """What a student has learnt so far, to be put back for a while.

    Args:
        student: Whose.
    """

    def __init__(self, student: Student) -> None:
        self._student = student
        self._kept = {name: p.detach().clone() for name, p in student.trained().items()}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within, the student is what it was then."""
        current = {name: p.detach().clone() for name, p in self._student.trained().items()}
        self._set(self._kept)
        try:
            yield
        finally:
            self._set(current)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._student.trained().items():
            parameter.copy_(values[name])


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token a row, int64 [rows, 1]."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)


def new_student(
    base: str, *, rank: int, alpha: int, first_layer: int, cached_tokens: int = 0
) -> tuple[Student, Codec]:
    """A student that has learnt nothing, on the device that there is, and its codec.

    Args:
        base: Checkpoint that is adapted, as `t1-edge export` takes it.
        rank: See `Student`.
        alpha: See `Student`.
        first_layer: See `Student`.
        cached_tokens: See `Student`.
    """
    contract = PRESETS["nano"]
    checkpoint = with_tokens(open_checkpoint(find_checkpoint(base)), contract)
    codec = Codec(contract, TextTokenizer(checkpoint.tokenizer))
    new = sorted((codec.open_id, codec.close_id, codec.emb_id))
    student = Student(
        checkpoint,
        new,
        closing=codec.close_id,
        rank=rank,
        alpha=alpha,
        first_layer=first_layer,
        cached_tokens=cached_tokens,
    )
    return student.to("cuda" if torch.cuda.is_available() else "cpu"), codec


def load_student(folder: Path) -> tuple[Student, Codec]:
    """The student of an adapter's folder, and its codec."""
    config = json.loads((folder / CONFIG).read_text())
    student, codec = new_student(
        config["base_model_name_or_path"],
        rank=config["r"],
        alpha=config["lora_alpha"],
        first_layer=min(config["layers_to_transform"]),
    )
    student.load(folder)
    return student, codec


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows padded on the right with id 0, int64 [rows, longest]."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *([0] * (longest - len(row)))] for row in rows])


def _chunks(
    order: Sequence[int], rows: Sequence[Sequence[int]], most: int
) -> Iterator[Sequence[int]]:
    """Stretches of an order by length, each of at most `most` tokens with its padding."""
    start = 0
    for at in range(1, len(order) + 1):
        if at == len(order) or len(rows[order[at]]) * (at + 1 - start) > most:
            yield order[start:at]
            start = at
