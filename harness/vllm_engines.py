"""vLLM engines as `t2-vllm` sees them: one in this process's care, or several in Ray actors that share the requests."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..adapters.errors import AdapterError
from .errors import T2Error


class EngineError(T2Error):
    """An engine failed while it answered, or changed its weights."""


class Engines(ABC):
    """One or more engines that always hold the same weights."""

    failed = False
    """Whether one of them has failed; it may hold any weights, or be gone."""

    @abstractmethod
    def call(self, method: str, args: Sequence[Any]) -> list[str]:
        """Call a method of `ExpertWorker` in every worker."""

    @abstractmethod
    def config(self, name: str) -> Any:
        """Return an attribute of the engine's model configuration."""

    @abstractmethod
    def drop_prefixes(self) -> bool:
        """See `forget_prefixes`; return False if an engine refuses."""

    @abstractmethod
    def close(self) -> None:
        """End the engines: vLLM has one in a process, and the end of an older one would take the process groups of a newer one away."""

    @abstractmethod
    def answer(self, rows: Sequence[Sequence[int]], params: Sequence[Any], progress: bool) -> list[Any]:
        """See `generate`."""

    def ask_each(self, method: str, *args: Any) -> list[Any]:
        """Call a method of `ExpertWorker` in every worker and return what each says.

        Raises:
            AdapterError: what the first worker with an error says.
            EngineError: an engine failed.
        """
        with self._watched():
            answers = self.call(method, args)
        found = [json.loads(answer) for answer in answers]
        if wrong := next((answer["error"] for answer in found if "error" in answer), None):
            raise AdapterError(wrong)
        return [answer["value"] for answer in found]

    def ask(self, method: str, *args: Any) -> Any:
        """As `ask_each`; return the first worker's answer."""
        return self.ask_each(method, *args)[0]

    def forget_prefixes(self) -> None:
        """Drop the keys and values that were kept of earlier prompts: they are of other weights.

        Raises:
            EngineError: an engine refuses, or failed.
        """
        with self._watched():
            if not self.drop_prefixes():
                raise RuntimeError("it did not drop its prefix cache, so answers would mix two sets of weights; no request may be running")

    def generate(self, rows: Sequence[Sequence[int]], params: Sequence[Any], progress: bool = False) -> list[Any]:
        """Return vLLM's outputs for prompts given as token ids, in order.

        Raises:
            EngineError: an engine failed, now or in an earlier call.
        """
        if self.failed:
            raise EngineError(
                "vLLM's engine failed, or was interrupted, in an earlier call, and may hold any weights: load the model again."
            )
        with self._watched():
            return self.answer(rows, params, progress)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            self.failed = True  # it may still answer requests, whose weights cannot be changed under them, or hold any weights
            raise
        except Exception as error:
            self.failed = True
            raise EngineError(
                f"vLLM's engine failed ({type(error).__name__}: {str(error)[:500]}). The same command goes on behind the answers that are "
                "kept: those of a few-shot search, and lm_eval's with --use_cache. T2_TRACEBACK=1 shows where it failed."
            ) from error


class LocalEngine(Engines):
    """The engine of a `vllm.LLM`."""

    def __init__(self, llm: Any, lora: Any = None) -> None:
        self.llm, self._lora = llm, lora

    def call(self, method: str, args: Sequence[Any]) -> list[str]:
        """See `Engines`."""
        return self.llm.collective_rpc(method, args=tuple(args))

    def config(self, name: str) -> Any:
        """See `Engines`."""
        return getattr(self.llm.llm_engine.model_config, name)

    def drop_prefixes(self) -> bool:
        """See `Engines`."""
        return bool(self.llm.reset_prefix_cache(reset_connector=True))  # also what kv_offloading_size moved to host memory

    def close(self) -> None:
        """See `Engines`."""
        self.llm.llm_engine.engine_core.shutdown()

    def answer(self, rows: Sequence[Sequence[int]], params: Sequence[Any], progress: bool) -> list[Any]:
        """See `Engines`."""
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        return self.llm.generate(prompts, sampling_params=list(params), use_tqdm=progress, lora_request=self._lora)


class RayEngines(Engines):
    """Engines in Ray actors, each with every n-th request; they live as long as this object, so that their weights can be changed.

    Args:
        arguments: of `vllm.LLM`.
        count: of engines.
        lora: request of vLLM's LoRA, or None.

    Raises:
        T2Error: the machine has too few GPUs, or cores, for so many.
    """

    def __init__(self, arguments: dict[str, Any], count: int, lora: Any = None) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        self._ray = ray
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False)
        gpus, cores = (int(ray.cluster_resources().get(name, 0)) for name in ("GPU", "CPU"))
        share = int(arguments.get("tensor_parallel_size", 1)) * int(arguments.get("pipeline_parallel_size", 1))
        there, each = (gpus, share) if gpus else (cores, 1)
        if count * each > there:  # Ray would wait for more, without a word
            what = f"{each} GPU{'s' * (each > 1)}" if gpus else "a CPU core"
            raise T2Error(f"data_parallel_size={count} engines need {what} each, and there are {there}: lower it.")
        # Ray lets an engine have as many threads as it has cores
        actor = ray.remote(num_gpus=share, num_cpus=1)(_Actor) if gpus else ray.remote(num_cpus=cores // count)(_Actor)
        # an engine in an actor must not go to Ray again for its own workers: placement groups inside one another wait for ever
        own = {key: value for key, value in arguments.items() if key != "distributed_executor_backend"}
        self._actors = [actor.remote(own, lora) for _ in range(count)]
        ray.get([a.ready.remote() for a in self._actors])

    def call(self, method: str, args: Sequence[Any]) -> list[str]:
        """See `Engines`."""
        parts = self._ray.get([a.call.remote(method, tuple(args)) for a in self._actors])
        return [answer for part in parts for answer in part]

    def config(self, name: str) -> Any:
        """See `Engines`."""
        return self._ray.get(self._actors[0].config.remote(name))

    def drop_prefixes(self) -> bool:
        """See `Engines`."""
        return all(self._ray.get([a.drop_prefixes.remote() for a in self._actors]))

    def close(self) -> None:
        """See `Engines`."""
        for actor in self._actors:
            self._ray.kill(actor)

    def answer(self, rows: Sequence[Sequence[int]], params: Sequence[Any], progress: bool) -> list[Any]:
        """See `Engines`."""
        n = len(self._actors)
        parts = self._ray.get([a.generate.remote(rows[i::n], params[i::n]) for i, a in enumerate(self._actors)])
        found: list[Any] = [None] * len(rows)
        for i, part in enumerate(parts):
            found[i::n] = part
        return found


class _Actor:
    """One engine in a process of Ray's."""

    def __init__(self, arguments: dict[str, Any], lora: Any) -> None:
        import os

        from . import vllm_import

        for name in [n for n in os.environ if n.startswith("VLLM_DP_")]:
            del os.environ[name]  # the driver's, which would make this engine one of a group
        vllm_import.prepare()
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        self._engine = LocalEngine(LLM(**arguments), lora)

    def ready(self) -> bool:
        return True

    def call(self, method: str, args: tuple[Any, ...]) -> list[str]:
        return self._engine.call(method, args)

    def config(self, name: str) -> Any:
        return self._engine.config(name)

    def drop_prefixes(self) -> bool:
        return self._engine.drop_prefixes()

    def generate(self, rows: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        return self._engine.answer(rows, params, False) if rows else []
