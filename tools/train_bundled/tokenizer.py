"""The bundled model's tokenizer: byte-level BPE over the generated text, one token per digit, ChatML marks."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus import Conversation, conversations

VOCABULARY = 1536  # tokens; the table is a sixth of the model
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2
PAD, START, END = range(3)

# the split that Qwen2 made common: words with their leading blank, single digits, runs of signs
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Encoded = tuple[list[int], list[bool]]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(*, seed: int, conversations_read: int = 40_000) -> Tokenizer:
    """A tokenizer of `VOCABULARY` tokens, trained on the first conversations of the training stream `seed`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stream = itertools.islice(conversations(seed), conversations_read)
    tokenizer.train_from_iterator(
        (f"{message['role']}\n{message['content']}" for conversation in stream for message in conversation), trainer
    )
    return tokenizer


def rendered(conversation: Conversation) -> str:
    """What `CHAT_TEMPLATE` makes of a conversation."""
    return "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in conversation)


def encode(tokenizer: Tokenizer, batch: list[Conversation]) -> list[Encoded]:
    """Token ids of rendered conversations, and which of them the model has to learn: answers and their end."""
    head = [START, *tokenizer.encode("assistant\n").ids]
    out: list[Encoded] = []
    for encoding in tokenizer.encode_batch_fast([rendered(conversation) for conversation in batch]):
        ids: list[int] = encoding.ids
        learn = [False] * len(ids)
        at = 0
        while at < len(ids):
            stop = ids.index(END, at) + 1 if ids[at] == START else at + 1
            if ids[at : at + len(head)] == head:
                learn[at + len(head) : stop] = [True] * (stop - at - len(head))
            at = stop
        out.append((ids, learn))
    return out


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, context: int) -> None:
    """Write tokenizer.json and tokenizer_config.json as checkpoints on the hub have them. `context` is in tokens."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "add_bos_token": False,
        "added_tokens_decoder": {
            str(i): {
                "content": content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i, content in enumerate(SPECIAL)
        },
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL[END],
        "model_max_length": context,
        "pad_token": SPECIAL[PAD],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
