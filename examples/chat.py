"""A conversation: each answer sees what was said before."""

from mlc import Engine

with Engine() as engine:  # the bundled tiny model; Engine("Qwen/Qwen3-0.6B", quant="q4") is another
    messages = [{"role": "system", "content": "You answer in short."}]
    for question in ("What is the capital of France?", "And of Italy?"):
        messages.append({"role": "user", "content": question})
        answer = engine.chat(messages, temperature=0, max_tokens=64)
        messages.append({"role": "assistant", "content": answer.text})
        print(f"> {question}\n{answer.text}")
    print(answer.usage)
