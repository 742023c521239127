"""Looks at a trained bundled model through transformers: `python -m mlc.tools.train_bundled.evaluate mlc/bundled`.

Prints the held-out loss, how many held-out topics of each kind get exactly the expected answers, and the answers to
the documented prompts. `--write` stores those in `prompts.json`, which the tests of every backend compare with.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from .corpus import MODEL_NAME, TOPIC_WEIGHTS, Message, held_out_topic
from .tokenizer import END, encode, rendered
from .train import held_out_loss

LONGEST_ANSWER = 128  # tokens, the end mark included

# what the user types, turn by turn, and the system message ("" for none)
DOCUMENTED: list[tuple[str, list[str]]] = [
    ("", ["Hello!"]),
    ("", ["Who are you?"]),
    ("", ["What can you do?"]),
    ("", ["What is mlc?"]),
    ("", ["How do I start a server?"]),
    ("", ["How do I compile a model?"]),
    ("", ["What is the capital of France?", "And Italy?"]),
    ("", ["What is 7 + 5?"]),
    ("", ["what sound does a cow make"]),
    ("", ["What is the opposite of hot?"]),
    ("", ["Which day comes after Monday?"]),
    ("", ["Tell me a story about a fox."]),
    ("", ["Tell me a joke."]),
    ("", ["My name is Ada."]),
    ("", ["Write a program in Python."]),
    ("Answer in one word.", ["What is the capital of Japan?"]),
    ("You are a pirate.", ["How many legs does a spider have?"]),
    ("", ["Thank you!", "Goodbye!"]),
]


def answer(model: LlamaForCausalLM, tokenizer: Tokenizer, messages: list[Message]) -> tuple[str, bool]:
    """The greedy answer to `messages`, and whether the model ended it by itself within `LONGEST_ANSWER` tokens."""
    prompt = tokenizer.encode(f"{rendered(messages)}<|im_start|>assistant\n").ids
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=LONGEST_ANSWER,
        do_sample=False,
    )[0][len(prompt) :].tolist()
    return tokenizer.decode(out, skip_special_tokens=True), out[-1] == END


def documented_answers(model: LlamaForCausalLM, tokenizer: Tokenizer) -> list[dict[str, object]]:
    """One entry per documented turn: `messages` up to the question (with the model's own earlier answers), `answer`."""
    entries: list[dict[str, object]] = []
    for system, turns in DOCUMENTED:
        messages = [{"role": "system", "content": system}] if system else []
        for turn in turns:
            messages.append({"role": "user", "content": turn})
            said, ended = answer(model, tokenizer, messages)
            if not ended:
                raise SystemExit(f"no end within {LONGEST_ANSWER} tokens after {turn!r}: {said!r}")
            entries.append({"messages": list(messages), "answer": said})
            messages.append({"role": "assistant", "content": said})
    return entries


def exact_answers(model: LlamaForCausalLM, tokenizer: Tokenizer, *, seed: int, count: int) -> dict[str, float]:
    """Share of held-out topics of each kind in which greedy decoding gives every expected answer, token for token.

    A topic has one to four questions, and all must be right. Dice in the answer (stories, lists, jokes) score low by
    nature.
    """
    shares: dict[str, float] = {}
    for make, _ in TOPIC_WEIGHTS:
        rng = random.Random(f"exact-{seed}")
        right = 0
        for _ in range(count):
            told = [
                {"role": role, "content": content.replace("NAME", MODEL_NAME)}
                for exchange in held_out_topic(rng, make)
                for role, content in (("user", exchange.user), ("assistant", exchange.answer))
            ]
            [(ids, learn)] = encode(tokenizer, [told])
            with torch.no_grad():
                best = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
            right += all(best[at - 1] == ids[at] for at in range(1, len(ids)) if learn[at])
        shares[make.__name__] = right / count
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="held-out topics of each kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="store the documented prompts and answers in the folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    model = LlamaForCausalLM.from_pretrained(args.folder, dtype=torch.float32)

    print(f"held-out loss {held_out_loss(model, tokenizer, seed=args.seed):.4f} nats per answer token")
    for topic, share in exact_answers(model, tokenizer, seed=args.seed, count=args.count).items():
        print(f"{topic:16} {share:4.0%} exact")
    entries = documented_answers(model, tokenizer)
    for entry in entries:
        messages = entry["messages"]
        assert isinstance(messages, list)
        print(f"{len(messages):2} > {messages[-1]['content']}\n     {entry['answer']}")
    if args.write:
        text = json.dumps(entries, indent=2, ensure_ascii=False)
        (args.folder / "prompts.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
