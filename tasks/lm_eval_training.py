"""Any lm-eval task that generates, has a training split and a 0/1 metric, as a training task."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..harness.errors import T2Error


class LmEvalTask:
    """Prompt, reward and training documents of one of lm-eval's tasks; its filter and its metric decide what is right.

    Args:
        name: of the task, not of a group, or the path of its YAML file.
        manager: lm-eval's `TaskManager`.

    Raises:
        T2Error: it does not generate text, has no training split or one that is scored too, or cannot be loaded.
    """

    def __init__(self, name: str, manager: Any) -> None:
        from lm_eval.models.utils import normalize_gen_kwargs

        try:
            loaded = manager.load(name)
        except Exception as error:  # lm-eval's loaders raise whatever their libraries do
            raise T2Error(f"lm-eval's task {name!r} cannot be loaded for training ({type(error).__name__}: {error}).") from error
        if loaded["groups"] or len(loaded["tasks"]) != 1:
            raise T2Error(f"{name!r} is a group of lm-eval's: name one of its tasks.")
        ((name, task),) = loaded["tasks"].items()
        if task.OUTPUT_TYPE != "generate_until":
            raise T2Error(f"lm-eval's task {name!r} scores {task.OUTPUT_TYPE}, not generated text: there is no reply to reward.")
        if not task.has_training_docs():
            raise T2Error(f"lm-eval's task {name!r} has no training split, and t2 never trains on its test split.")
        config = task.config
        scored = config.test_split or config.validation_split  # as lm-eval's evaluator chooses
        if config.training_split and config.training_split in (scored, "test"):
            raise T2Error(
                f"lm-eval's task {name!r} names its split {config.training_split!r} as training split, and scores it too: t2 never trains "
                "on what is scored."
            )
        self.name, self._task = name, task
        self.max_new_tokens = normalize_gen_kwargs(task.config.generation_kwargs or {}).get("max_gen_toks", 256)

    def rows(self) -> list[dict[str, Any]]:
        """Return the training documents."""
        return [dict(doc) for doc in self._task.training_docs()]

    def prompt(self, doc: Mapping[str, Any]) -> str:
        """Return the task's question."""
        return str(self._task.doc_to_text(doc))

    def context(self, doc: Mapping[str, Any], template: Callable[..., str] | None) -> str:
        """Return the task's zero-shot prompt, with its `description`, and its `gen_prefix` as the beginning of the reply.

        Args:
            doc: one of its documents.
            template: renders chat messages as text; None where the model has no chat template.
        """
        return self._task.fewshot_context(
            doc,
            0,
            apply_chat_template=template is not None,
            fewshot_as_multiturn=True,
            chat_template=template,
            gen_prefix=self._task.doc_to_prefix(doc),
        )

    def solution(self, doc: Mapping[str, Any]) -> str:
        """Return the task's target text, the first one where there are several, as it goes on from the prompt."""
        target = self._task.doc_to_target(doc)
        text = str(target[0] if isinstance(target, list) else target)
        prefix = self._task.doc_to_prefix(doc)
        return f" {text}" if prefix and not prefix[-1].isspace() else text

    def correct(self, docs: Sequence[Mapping[str, Any]], replies: Sequence[str]) -> list[bool]:
        """True where the task's first metric is 1 for the reply, cut at its stop sequences and sent through its first filter.

        Raises:
            T2Error: the metric is no share of right answers.
        """
        from lm_eval.api.instance import Instance
        from lm_eval.models.utils import postprocess_generated_text

        until = (self._task.config.generation_kwargs or {}).get("until")
        instances = []
        for index, (doc, reply) in enumerate(zip(docs, replies, strict=True)):
            instance = Instance("generate_until", dict(doc), ("", {}), index, (self.name, index, 1))
            instance.resps = [postprocess_generated_text(reply, until, None)]
            instances.append(instance)
        chosen = self._task._filters[0]
        chosen.apply(instances)
        right = []
        for instance in instances:
            scores = self._task.process_results(instance.doc, [instance.filtered_resps[chosen.name]])
            metric, value = next(iter(scores.items()))
            if not isinstance(value, (bool, int, float)) or value not in (0, 1):
                raise T2Error(f"The metric {metric!r} of lm-eval's task {self.name!r} gave {value!r}: a reward needs 0 or 1.")
            right.append(bool(value))
        return right
