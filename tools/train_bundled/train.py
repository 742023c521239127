"""Trains the bundled model from scratch: `python -m mlc.tools.train_bundled.train --out mlc/bundled`.

Two CPU cores, about half an hour. Everything follows from the seed except the last bits of the float sums. The folder
is a complete checkpoint after every `--save-every` steps, so that it can be used while the training goes on. The rate
is constant for three fifths of the steps and falls to zero in the rest; SIGUSR1 starts that fall early, where the
machine turns out to be slower than hoped, and prints the `--steps` that would have given the same run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, LlamaForCausalLM

from .corpus import conversations
from .tokenizer import END, PAD, VOCABULARY, Encoded, encode, save_tokenizer, train_tokenizer

CONTEXT = 1024  # tokens
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": END,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 192,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "max_position_embeddings": CONTEXT,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 6,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "pad_token_id": PAD,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
GENERATION = {"do_sample": False, "eos_token_id": END, "pad_token_id": PAD}  # facts and sums want no dice


@dataclass(frozen=True)
class Batch:
    """Conversations padded to one length. `ids` int64 [rows, tokens]; `targets` the next ids, -100 if not learned."""

    ids: Tensor
    targets: Tensor


def pad(rows: list[Encoded]) -> Batch:
    """One batch of encoded conversations; what lies beyond the context is cut."""
    longest = min(max(len(ids) for ids, _ in rows), CONTEXT + 1)
    table = torch.full((len(rows), longest), PAD)
    learned = torch.zeros((len(rows), longest), dtype=torch.bool)
    for row, (ids, learn) in enumerate(rows):
        length = min(len(ids), longest)
        table[row, :length] = torch.tensor(ids[:length])
        learned[row, :length] = torch.tensor(learn[:length])
    return Batch(table[:, :-1], table[:, 1:].where(learned[:, 1:], -100))


def in_batches(encoded: list[Encoded], tokens: int) -> list[Batch]:
    """Batches of at most `tokens` tokens each, made of conversations of similar length so that little is padding."""
    out: list[Batch] = []
    rows: list[Encoded] = []
    for item in sorted(encoded, key=lambda item: len(item[0])):
        if rows and (len(rows) + 1) * min(len(item[0]), CONTEXT) > tokens:
            out.append(pad(rows))
            rows = []
        rows.append(item)
    return [*out, pad(rows)] if rows else out


def training_batches(tokenizer: Tokenizer, *, seed: int, tokens: int) -> Iterator[Batch]:
    """Endless batches of fresh conversations."""
    stream, rng = conversations(seed), random.Random(seed)
    while True:
        batches = in_batches(encode(tokenizer, list(itertools.islice(stream, 4096))), tokens)
        rng.shuffle(batches)
        yield from batches


def loss_of(model: LlamaForCausalLM, batch: Batch, *, reduction: str = "mean") -> Tensor:
    """Cross entropy in nats over the learned tokens only; the head never sees the others."""
    keep = batch.targets != -100
    hidden = model.model(batch.ids, use_cache=False).last_hidden_state[keep]
    logits = F.linear(hidden, model.model.embed_tokens.weight).float()
    return F.cross_entropy(logits, batch.targets[keep], reduction=reduction)


def held_out_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, *, seed: int, count: int = 1000) -> float:
    """Mean nats per answer token over `count` conversations of the held-out split, in float32."""
    held_out = list(itertools.islice(conversations(seed, held_out=True), count))
    total, tokens = 0.0, 0
    with torch.no_grad():
        for batch in in_batches(encode(tokenizer, held_out), 8192):
            total += loss_of(model, batch, reduction="sum").item()
            tokens += int((batch.targets != -100).sum())
    return total / tokens


def save(weights: dict[str, Tensor], folder: Path) -> None:
    """Write the weights as one float16 safetensors file; the head is tied, so it is not written."""
    tensors = {name: value.half().contiguous() for name, value in weights.items() if name != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def train(out: Path, *, seed: int, steps: int, batch_tokens: int, rate: float, save_every: int) -> None:
    """Train for `steps` steps of `batch_tokens` tokens at the peak learning rate `rate`, into the folder `out`."""
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(seed=seed)
    save_tokenizer(tokenizer, out, context=CONTEXT)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")

    model = LlamaForCausalLM(AutoConfig.from_pretrained(out)).float()
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    warmup = 50
    ending = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: ending.set())
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    start, running = time.time(), 0.0
    for step, batch in enumerate(training_batches(tokenizer, seed=seed, tokens=batch_tokens)):
        if ending.is_set() and step < steps * 3 // 5:
            steps = step * 5 // 3
            print(f"cooling down from here, as with --steps {steps}", flush=True)
        if step == steps:
            break
        cooldown = steps - steps * 3 // 5
        scale = min(1.0, (step + 1) / warmup, (steps - step) / cooldown)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        # the mean over the last steps is a usable model long before the rate has come down
        decay = min(0.98, step / (step + 10))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - decay)
        running = decay * running + (1 - decay) * loss.item()
        if (step + 1) % 25 == 0:
            print(f"step {step + 1:5} loss {running:.4f} {time.time() - start:6.0f} s", flush=True)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save(average, out)
    model.load_state_dict({name: value.half().float() for name, value in average.items()})
    print(f"held-out loss {held_out_loss(model, tokenizer, seed=seed):.4f} nats per answer token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1411)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--save-every", type=int, default=200, help="steps")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(
        args.out,
        seed=args.seed,
        steps=args.steps,
        batch_tokens=args.batch_tokens,
        rate=args.rate,
        save_every=args.save_every,
    )


if __name__ == "__main__":
    main()
