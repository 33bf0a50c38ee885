"""A tiny build that ships, by llama.cpp with packed weights: its golden vectors must come out.

    python -m t1_edge.engines.llama_trial

Where a kernel does not run here, it is this process that ends; see `t1_edge.engines.llama_amx`.
"""

from contextlib import closing
from typing import Final

from t1_edge.build import GGUF_MODEL, Build
from t1_edge.engines.llama import LlamaEngine
from t1_edge.engines.probe import PROBE_BUILD
from t1_edge.golden import check

_THREADS: Final = 2
"""Each sets up tiles of its own."""


def main() -> None:
    """Try it.

    Raises:
        EngineError: If llama.cpp refuses the build, or other vectors come out.
    """
    build = Build(PROBE_BUILD)
    decoder, model = build.manifest.decoder, build.path / GGUF_MODEL
    with closing(LlamaEngine(model, decoder, threads=_THREADS, pack=True)) as engine:
        check(build, engine)


if __name__ == "__main__":
    main()
