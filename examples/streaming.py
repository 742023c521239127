"""An answer as it is written. Leaving the loop early cancels the rest."""

from mlc import Engine

with Engine() as engine:
    for delta in engine.stream_chat("Tell me a story about a dog.", temperature=0, max_tokens=100):
        print(delta.text, end="", flush=True)
    print()
