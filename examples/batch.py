"""Many prompts in one call: they share the engine's steps, so together they take far less time than one by one."""

import time

from mlc import Engine

COUNTRIES = ("France", "Italy", "Spain", "Japan", "Egypt", "Peru")

with Engine() as engine:
    conversations = [[{"role": "user", "content": f"What is the capital of {name}?"}] for name in COUNTRIES]
    start = time.perf_counter()
    answers = engine.batch(conversations, temperature=0, max_tokens=32)
    seconds = time.perf_counter() - start
    for answer in answers:
        print(answer.text)
    tokens = sum(answer.usage.completion_tokens for answer in answers)
    print(f"{tokens} tokens in {seconds:.2f} s")
