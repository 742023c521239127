"""Text to token ids and back."""

from mlc import Engine

with Engine() as engine:
    tokens = engine.tokenize("The quick brown fox.")
    print(tokens)
    for token in tokens:
        print(f"{token:>6} {engine.detokenize([token])!r}")
    assert engine.detokenize(tokens) == "The quick brown fox."
