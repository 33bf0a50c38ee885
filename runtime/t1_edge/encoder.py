"""The encoder: text in, vectors out. What an app embeds."""

import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import msgspec
import numpy as np

from t1_edge import __version__
from t1_edge.build import TOKENIZER, Build, Format
from t1_edge.cache import QUERIES, cache_dir, find_build
from t1_edge.contract import Codec, Row
from t1_edge.cores import process_cores
from t1_edge.engines import select
from t1_edge.engines.base import Engine, EngineInfo, Float32Array
from t1_edge.engines.select import Device, DocumentGraph, EngineChoice
from t1_edge.errors import BuildError, InputError
from t1_edge.golden import check_once
from t1_edge.machine import available_threads
from t1_edge.passes import Passes, refuse_cut, slices
from t1_edge.query_cache import CachedQuery, QueryCache, key_of
from t1_edge.results import DocumentEmbeddings, QueryEmbedding, Timings
from t1_edge.thinking import Settle, Thought, time_of
from t1_edge.tokenization import TextTokenizer, check_texts


class Encoder:
    """A build, opened by an engine. Calls from several threads take turns.

    Ctrl-C waits for the pass that runs (a query's reading, a batch of documents, a token); then the
    engine is free, and usable.

    Most callers use `Encoder.load`. What it gave can be pickled: who unpickles it opens the same
    build by itself, weights and all, on the same engine. So hand it to a process as it starts
    (`Pool(initializer=...)`), and not with each task. A forked process cannot use one; `spawn` it.

    Args:
        codec: Text to token rows.
        engine: Token rows to hidden states; closed with the encoder.
        fingerprint: Of the build; vectors of different fingerprints do not compare.
        hidden: Dimensions of a vector.
        cache: Of queries that were asked before; none if None.
        reader: Called before documents are first read: opens what reads them in the engine's place;
            closed with the encoder. The engine reads them itself if None.
    """

    def __init__(
        self,
        codec: Codec,
        engine: Engine,
        *,
        fingerprint: str,
        hidden: int,
        cache: QueryCache | None = None,
        reader: Callable[[], Engine] | None = None,
    ) -> None:
        self.codec = codec
        self.fingerprint = fingerprint
        self.hidden = hidden
        self._passes = Passes(codec, engine, reader)
        self._cache = cache
        self._again: Callable[[], Encoder] | None = None

    @classmethod
    def load(
        cls,
        build: str | Path,
        *,
        engine: EngineChoice = "auto",
        device: Device = "auto",
        threads: int | None = None,
        documents: DocumentGraph = "auto",
        budget: int | None = None,
        cache: bool = True,
    ) -> "Encoder":
        """Open a build.

        Args:
            build: A path, or the name of a build in the cache.
            engine: Which of the build's formats to run.
            device: Where to run it; one that cannot run is an error.
            threads: CPU threads; those of `t1_edge.machine.available_threads` if None.
            documents: Which graph reads documents: the one for "documents", where the build has it,
                or the engine's for "everything". "auto" takes the former wherever it runs, in ONNX
                Runtime on the CPU, unless `engine` is "gguf".
            budget: Most tokens of a thought when a call does not say, and those at which "auto"
                takes the faster engine; the contract's if None.
            cache: Keep vectors and thoughts of queries on disk, and give them again to who asks
                the same. Texts are not kept.

        Raises:
            BuildError: If the build is damaged, or lacks the format or graph that is asked for.
            CacheError: If there is no such build.
            ContractError: If its contract does not fit its tokenizer.
            DeviceError: If the device cannot run here, or not the graph for documents.
            EngineError: If the library cannot be loaded or refuses the files, or the build's
                golden vectors do not come out.
            InputError: If there are no threads or more than processors, the budget is negative, or
                no graph has that name.
            MissingExtraError: If a library that is asked for is not installed, or none is.
        """
        opened = Build(find_build(build))
        manifest = opened.manifest
        thought = manifest.contract.budget_for(budget)
        contract = msgspec.structs.replace(manifest.contract, budget=thought)
        codec = Codec(contract, TextTokenizer.from_file(opened.file(TOKENIZER)))
        with process_cores().hold(available_threads() if threads is None else threads):
            running = select.open_engine(
                opened,
                engine=engine,
                device=device,
                threads=threads,
                documents=documents,
                budget=thought,
            )
            try:
                check_once(opened, running)
                format, where = cast(Format, running.info.engine), running.info.device
                graph = select.reading_graph(opened, format, where, engine=engine, asked=documents)
            except BaseException:
                running.close()
                raise
        hidden = manifest.decoder.hidden
        kept = QueryCache(cache_dir() / QUERIES) if cache else None
        loaded = cls(
            codec,
            running,
            fingerprint=manifest.fingerprint,
            hidden=hidden,
            cache=kept,
            reader=partial(select.open_reader, opened, threads=running.info.threads)
            if graph == "documents"
            else None,
        )
        loaded._again = partial(
            cls.load,
            opened.path.resolve(),
            engine=format,
            device=cast(Device, running.info.device),
            threads=threads,
            documents=graph,
            budget=budget,
            cache=cache,
        )
        return loaded

    @property
    def info(self) -> EngineInfo:
        """What runs, and on which device."""
        return self._passes.info

    def read_by(self) -> EngineInfo:
        """What reads documents, opened if it has to be.

        Raises:
            EngineError: If it cannot be opened, or its golden vectors do not come out.
        """
        return self._passes.read_by()

    def encode_query(
        self,
        text: str,
        *,
        budget: int | None = None,
        thought: str | None = None,
        deadline: float | None = None,
        settle: Settle | None = None,
    ) -> QueryEmbedding:
        """Think about a query, then embed it.

        Args:
            text: The query. Special tokens in it are plain text; empty text is allowed.
            budget: Most tokens of the thought; what was loaded with if None, no thought if 0.
            thought: One that the caller wrote or edited, to be read instead.
            deadline: Seconds from the call by which the vector shall be done: no token is begun if
                it and the thought's end, as long as the last ones took, would end later. In any
                case other calls have their turn, and the query is read: past it, in one pass.
            settle: When the thought ends since its vector has come to rest; never if None.

        Raises:
            InputError: If a text holds a lone surrogate, the budget or the deadline is negative, or
                a thought comes with a budget, a deadline or `settle`.
            EngineError: If the engine fails, or the vector is not one.
        """
        given = None if thought is None else [thought]
        [found] = self.encode_queries(
            [text], budget=budget, thoughts=given, deadline=deadline, settle=settle
        )
        return found

    def encode_query_stream(
        self,
        text: str,
        *,
        budget: int | None = None,
        deadline: float | None = None,
        every: int = 4,
    ) -> Generator[QueryEmbedding, None, None]:
        """Embed a query at once, and again as its thought grows: for a search that answers anytime.

        Other threads' calls wait, and this thread's are refused, until the last vector is taken
        (the one that is not "open"), the generator is closed or forgotten, or the deadline passes
        while its reader has a vector. The query cache is not asked, and keeps nothing of it.

        Args:
            text: The query.
            budget: Most tokens of the thought; what was loaded with if None, no thought if 0.
            deadline: Seconds from the call, as for `encode_query`.
            every: Tokens between two vectors, each about a token's time.

        Yields:
            What `encode_query` gives with budget 0, then what it would give for the thought as it
            stands, "open" in `stopped_by`; the last says what ended it. Timings are of all passes
            so far, as `embedding`.

        Raises:
            InputError: As `encode_query`, and if `every` is below 1.
            EngineError: As `encode_query`, and if the encoder was closed meanwhile.
        """
        if every < 1:
            raise InputError(f"between two vectors stand 1 token or more, not {every}")
        until = time_of(deadline)
        budget = self.codec.contract.budget_for(budget)
        return self._passes.stream(self.codec.query(text), budget, until, every)

    def encode_queries(
        self,
        texts: Sequence[str],
        *,
        budget: int | None = None,
        thoughts: Sequence[str] | None = None,
        deadline: float | None = None,
        settle: Settle | None = None,
        batch_size: int = 8,
    ) -> list[QueryEmbedding]:
        """Think about several queries at once; see `encode_query`.

        What the query cache knows is not asked again, unless a thought is given.

        Args:
            texts: The queries.
            budget: Most tokens of each thought.
            thoughts: One for each query, to be read instead of thinking.
            deadline: Seconds from the call, for all queries together; past it each batch is still
                read, in one pass.
            settle: When a thought ends since its vector has come to rest; never if None.
            batch_size: Queries that share each pass over the weights, as far as the engine takes
                so many.

        Raises:
            InputError: As `encode_query`, and if the thoughts are not as many as the queries, the
                batch size is below 1, or `texts` is one string.
            EngineError: As `encode_query`.
        """
        if thoughts is not None:
            if any(given is not None for given in (budget, deadline, settle)):
                raise InputError(
                    "a given thought is read, not written: no budget, no deadline, no settling"
                )
            if len(thoughts) != len(texts):
                raise InputError(
                    f"{len(thoughts)} thoughts for {len(texts)} queries: give one for each"
                )
        check_texts(texts, batch_size)
        batch_size = min(batch_size, self._passes.most_rows)
        budget = self.codec.contract.budget_for(budget)
        until = time_of(deadline)
        rows = [self.codec.query(text) for text in texts]
        if thoughts is not None:
            return [
                found
                for batch in slices(len(rows), batch_size)
                for found in self._passes.read_with(rows[batch], thoughts[batch])
            ]
        keys = [self._key(row, budget, settle) for row in rows]
        known = {at: one for at, row in enumerate(rows) if (one := self._recall(row, keys[at]))}
        asked = [at for at in range(len(rows)) if at not in known]
        for part in slices(len(asked), batch_size):
            batch = asked[part]
            fresh = self._passes.think([rows[at] for at in batch], budget, until, settle)
            for at, one in zip(batch, fresh, strict=True):
                self._keep(keys[at], one)
                known[at] = one
        return [known[at] for at in range(len(rows))]

    def encode_documents(
        self, texts: Sequence[str], *, batch_size: int | None = None
    ) -> Float32Array:
        """Embed documents, none of which may be longer than the contract allows.

        Args:
            texts: The documents.
            batch_size: See `embed_documents`.

        Returns:
            float32 [n, d], L2-normalised rows in the order of the texts.

        Raises:
            InputError: If a text is over the limit (`embed_documents` can cut it and say so) or
                holds a lone surrogate, the batch size is below 1, or `texts` is one string.
            EngineError: If the engine fails, or a vector is not one.
        """
        return self.embed_documents(texts, batch_size=batch_size).vectors

    def embed_documents(
        self,
        texts: Sequence[str],
        *,
        truncate: bool = False,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> DocumentEmbeddings:
        """Embed documents, and say what was cut.

        A vector does not depend on what else is in `texts`, nor on its order.

        Args:
            texts: The documents. Special tokens in them are plain text; empty text is allowed.
            truncate: Cut texts over the limit instead of raising.
            batch_size: Most documents that run together, where memory is scarce; as many as run
                well if None.
            progress: Called with the number of documents that a finished batch held.

        Returns:
            Vectors in the order of the texts, and which texts were cut.

        Raises:
            InputError: If a text is over the limit and `truncate` is off, or holds a lone
                surrogate, the batch size is below 1, or `texts` is one string.
            EngineError: If the engine fails, or a vector is not one.
        """
        check_texts(texts, batch_size)
        began = time.monotonic()
        rows = [self.codec.document(text) for text in texts]
        if not truncate:
            refuse_cut(rows, self.codec.contract.max_document_tokens)
        vectors = np.empty((len(rows), self.hidden), np.float32)
        tell = progress or (lambda documents: None)
        read_by = self._passes.documents(rows, vectors, tell, batch_size)
        return DocumentEmbeddings(
            vectors=vectors,
            truncated=np.array([row.truncated for row in rows], np.bool_),
            tokens=np.array([len(row.tokens) + 1 for row in rows], np.int32),
            seconds=time.monotonic() - began,
            engine=read_by,
        )

    def close(self) -> None:
        """Free the engine once a pass that runs has ended; then open streams raise EngineError."""
        self._passes.close()
        if self._cache is not None:
            self._cache.close()

    def __reduce__(self) -> tuple[object, ...]:
        if self._again is None:
            raise InputError("only an encoder that `Encoder.load` gave can be pickled")
        return _load_again, (self._again, self.fingerprint)

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _recall(self, row: Row, key: bytes) -> QueryEmbedding | None:
        """What the cache has of a query."""
        if self._cache is None:
            return None
        found = self._cache.get(key)
        vector = None if found is None else found.array(self.hidden)
        if found is None or vector is None:
            return None
        thought = Thought(tokens=found.thought_tokens, stopped_by=found.stopped_by)
        nothing = Timings(prefill=0.0, thinking=0.0, embedding=0.0, total=0.0)
        [known] = self._passes.results([row], [thought], vector[None], nothing, cached=True)
        return known

    def _keep(self, key: bytes, found: QueryEmbedding) -> None:
        """Have the cache know a query, unless it would have thought on had there been time."""
        if self._cache is not None and found.stopped_by != "deadline":
            kept = CachedQuery.of(found.vector, found.thought_tokens, found.stopped_by)
            self._cache.put(key, kept)

    def _key(self, row: Row, budget: int, settle: Settle | None) -> bytes:
        """Of all that a query's vector comes from; the row has the template, and the text."""
        codec = self.codec
        thinking = (codec.ending, sorted(codec.stop_ids), codec.contract.distinct, budget, settle)
        return key_of(__version__, self.fingerprint, self.info, row.tokens, thinking)


def _load_again(load: Callable[[], Encoder], fingerprint: str) -> Encoder:
    """An encoder that was pickled; its vectors compare with those of the one it was."""
    loaded = load()
    if loaded.fingerprint != fingerprint:
        loaded.close()
        raise BuildError("a pickled encoder's build was exported again: its vectors are others now")
    return loaded
