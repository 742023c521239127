"""Continuing a text, with log-probabilities: how sure the model was of each token."""

from math import exp

from mlc import Engine

with Engine() as engine:
    answer = engine.complete("Once upon a time", temperature=0, max_tokens=12, logprobs=2)
    print(answer.text)
    for token, told in zip(answer.tokens, answer.logprobs or (), strict=True):
        others = ", ".join(f"{engine.detokenize([t])!r} {exp(p):.0%}" for t, p in told.top)
        print(f"{engine.detokenize([token])!r:>12} {exp(told.logprob):>4.0%}   among {others}")
