"""A form of pass 1 of one's own: the expert whose words a prompt has most of.

lm_eval --model t2 --model_args dispatch=keywords.py --tasks math,humaneval
"""

from t2.adapters.dispatch_forms import Decision, register

WORDS = {"code": ("function", "def ", "return", "python"), "math": ("solve", "how many", "sum", "frac"), "reasoning": ("why", "which")}


@register("keywords")
class Keywords:
    def __init__(self, setup):  # model, tokenizer, experts, max_length, …: see t2.adapters.dispatch_forms.Setup
        self.words = {name: WORDS.get(name, (name,)) for name in setup.experts}

    def decide(self, contexts, batch_size=None, progress=False):
        return [self.label(context.lower()) for context in contexts]

    def label(self, text):
        counts = {name: sum(text.count(word) for word in words) for name, words in self.words.items()}
        total = sum(counts.values())
        if total == 0:
            return Decision("others", tokens_in=0, scores={"others": 1.0})
        scores = {name: count / total for name, count in counts.items()}
        return Decision(max(scores, key=scores.get), tokens_in=0, scores=scores)
