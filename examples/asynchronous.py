"""Several requests at once from one event loop; the engine answers them together."""

import asyncio

from mlc import Engine

QUESTIONS = ("What is the capital of Spain?", "What is the opposite of hot?", "Who are you?")


async def main() -> None:
    with Engine() as engine:
        answers = await asyncio.gather(*(engine.achat(q, temperature=0, max_tokens=64) for q in QUESTIONS))
        for question, answer in zip(QUESTIONS, answers, strict=True):
            print(f"> {question}\n{answer.text}")
        async for delta in engine.astream_chat("Tell me a joke.", temperature=0, max_tokens=64):
            print(delta.text, end="", flush=True)
        print()


asyncio.run(main())
