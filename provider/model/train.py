"""Train the tiny Penstock model from nothing and write it as a GGUF file.

    python -m provider.model.train --out provider/model/penstock-tiny.gguf --steps 3000

What is reproducible: with one seed the corpus, the tokenizer, the first weights and the order
of the batches are always the same. With ``--steps`` alone, one thread, the same torch version
and the same kind of CPU, so are the trained weights. ``--minutes`` ties the learning-rate
schedule to the clock, so two such runs differ slightly. Other CPUs round differently: expect a
model of the same quality there, not the same bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gguf
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from .corpus import Conversation, conversations, held_out

BOS, END, SYSTEM, USER, ASSISTANT = SPECIAL = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
IGNORE = -100  # target of a position without loss
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}<|system|>"
    "{% elif m['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; every matrix dimension is a multiple of 32, the block size of Q8_0."""

    vocab: int = 2048
    width: int = 256
    layers: int = 6
    heads: int = 4
    hidden: int = 704
    context: int = 1024  # tokens
    rope_base: float = 10000.0
    norm_eps: float = 1e-5


class Norm(nn.RMSNorm):
    """RMSNorm whose weight follows the input's type, which keeps the fused CPU kernel in use."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    """One Llama layer: attention with rotary positions, then a SwiGLU feed-forward."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.heads = s.heads
        self.attn_norm = Norm(s.width, eps=s.norm_eps)
        self.ffn_norm = Norm(s.width, eps=s.norm_eps)
        self.q, self.k, self.v, self.o = (nn.Linear(s.width, s.width, bias=False) for _ in range(4))
        self.gate = nn.Linear(s.width, s.hidden, bias=False)
        self.up = nn.Linear(s.width, s.hidden, bias=False)
        self.down = nn.Linear(s.hidden, s.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map (batch, time, width) to the same shape."""
        h = self.attn_norm(x)
        q, k, v = (p(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(-2))
        h = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on (batch, heads, time, head width), first half paired with second half."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Model(nn.Module):
    """A Llama decoder whose output matrix is its embedding matrix."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.shape = s
        self.embed = nn.Embedding(s.vocab, s.width)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = Norm(s.width, eps=s.norm_eps)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                # The last matrix of each branch starts smaller, so that depth does not add up at first.
                last = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * s.layers) if last else 1))
        half = s.width // s.heads // 2
        angle = torch.outer(torch.arange(s.context), s.rope_base ** (-torch.arange(half) / half))
        self.register_buffer("cos", angle.cos().bfloat16(), persistent=False)
        self.register_buffer("sin", angle.sin().bfloat16(), persistent=False)

    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean loss, in nats per token, over the targets that are not IGNORE; both (batch, time)."""
        x = self.embed(tokens).bfloat16()
        for block in self.blocks:
            x = block(x, self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]])
        kept = targets != IGNORE
        logits = F.linear(self.norm(x[kept]), self.embed.weight)
        return F.cross_entropy(logits.float(), targets[kept])


def train_tokenizer(seed: int, vocab: int, count: int = 20000) -> Tokenizer:
    """Byte-level BPE, split like GPT-2, trained on ``count`` conversations."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    texts = (text for turns in itertools.islice(conversations(seed), count) for _, text in turns)
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab:
        raise RuntimeError(f"the corpus gave {tokenizer.get_vocab_size()} tokens instead of {vocab}")
    return tokenizer


def encode(tokenizer: Tokenizer, turns: Conversation) -> tuple[list[int], list[int]]:
    """Token ids and, for each, the id itself where it is learned or IGNORE where it is only read."""
    bos, end, system, user, assistant = (tokenizer.token_to_id(t) for t in SPECIAL)
    marks = {"system": [system], "user": [user], "assistant": [assistant], "text": []}
    ids, learned = [bos], [IGNORE]
    for role, text in turns:
        body = [*tokenizer.encode(text).ids, end]
        ids += marks[role] + body
        # Questions are half noise by design; only what the model should say is worth its few weights.
        learned += [IGNORE] * len(marks[role]) + (body if role in ("assistant", "text") else [IGNORE] * len(body))
    return ids, learned


def batches(
    tokenizer: Tokenizer, source: Iterator[Conversation], rows: int, length: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (tokens, targets) pairs of shape (rows, length): conversations laid end to end."""
    ids: list[int] = []
    learned: list[int] = []
    for turns in source:
        more = encode(tokenizer, turns)
        ids += more[0]
        learned += more[1]
        need = rows * length + 1
        if len(ids) >= need:
            yield torch.tensor(ids[: need - 1]).view(rows, length), torch.tensor(learned[1:need]).view(rows, length)
            ids, learned = ids[need - 1 :], learned[need - 1 :]


@torch.no_grad()
def held_out_loss(model: Model, tokenizer: Tokenizer, seed: int, count: int = 24) -> float:
    """Mean loss in nats per answer token on ``count`` rows of conversations that are never trained on."""
    source = (turns for turns in conversations(seed) if held_out(turns))
    pairs = itertools.islice(batches(tokenizer, source, 1, model.shape.context), count)
    losses = [model(*pair).item() for pair in pairs]
    return sum(losses) / len(losses)


def export(model: Model, tokenizer: Tokenizer, path: Path) -> None:
    """Write the model as GGUF: matrices in Q8_0, norms in F32, with tokenizer and chat template."""
    s = model.shape
    out = gguf.GGUFWriter(path, "llama")
    out.add_name("Penstock tiny")
    out.add_license("MIT")
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    out.add_vocab_size(s.vocab)
    out.add_context_length(s.context)
    out.add_embedding_length(s.width)
    out.add_block_count(s.layers)
    out.add_feed_forward_length(s.hidden)
    out.add_head_count(s.heads)
    out.add_head_count_kv(s.heads)
    out.add_layer_norm_rms_eps(s.norm_eps)
    out.add_rope_dimension_count(s.width // s.heads)
    out.add_rope_freq_base(s.rope_base)

    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    names = [tokenizer.id_to_token(i) for i in range(s.vocab)]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(names)
    out.add_token_types([gguf.TokenType.CONTROL if n in SPECIAL else gguf.TokenType.NORMAL for n in names])
    out.add_token_merges(merges)
    out.add_bos_token_id(tokenizer.token_to_id(BOS))
    out.add_eos_token_id(tokenizer.token_to_id(END))
    out.add_add_bos_token(True)
    out.add_chat_template(CHAT_TEMPLATE)

    def add(name: str, weight: Tensor) -> None:
        data = weight.detach().float().numpy()
        if data.ndim == 1:
            out.add_tensor(name, data)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            out.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)

    def interleave(weight: Tensor) -> Tensor:
        """llama.cpp rotates neighbouring pairs, this model rotates halves: reorder each head's rows."""
        return weight.unflatten(0, (s.heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    add("token_embd.weight", model.embed.weight)
    add("output_norm.weight", model.norm.weight)
    for i, b in enumerate(model.blocks):
        for name, weight in {
            "attn_norm": b.attn_norm.weight,
            "attn_q": interleave(b.q.weight),
            "attn_k": interleave(b.k.weight),
            "attn_v": b.v.weight,
            "attn_output": b.o.weight,
            "ffn_norm": b.ffn_norm.weight,
            "ffn_gate": b.gate.weight,
            "ffn_up": b.up.weight,
            "ffn_down": b.down.weight,
        }.items():
            add(f"blk.{i}.{name}.weight", weight)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def train(args: argparse.Namespace) -> None:
    """Train until ``--steps`` or ``--minutes`` is reached, whichever comes first, and export."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    shape = Shape()
    tokenizer = train_tokenizer(args.seed, shape.vocab)
    model = Model(shape)
    parameters = sum(p.numel() for p in model.parameters())
    per_step = args.rows * shape.context
    print(f"parameters {parameters / 1e6:.2f} M, steps {args.steps}, {per_step} tokens a step", flush=True)

    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    # Muon learns the matrices in about half the steps of AdamW, which matters on one CPU core.
    optimizers = [
        torch.optim.Muon(matrices, lr=args.rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    source = (turns for turns in conversations(args.seed + 1) if not held_out(turns))
    start, recent = time.monotonic(), 0.0
    for step, (tokens, targets) in enumerate(batches(tokenizer, source, args.rows, shape.context)):
        seconds = time.monotonic() - start
        done = max(step / args.steps, seconds / (60 * args.minutes) if args.minutes else 0.0)
        if done >= 1:
            break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.rate * min(1.0, (step + 1) / 50, (1 - done) / 0.6)
        # Attention is the slow part on a CPU: short rows first, the full context at the end.
        length = shape.context if done > 0.8 else shape.context // 2
        loss = model(tokens.view(-1, length), targets.view(-1, length))
        loss.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
        if step % 50 == 0:
            pace = step * per_step / max(seconds, 1)
            print(f"step {step} loss {recent:.3f} nats/token, {seconds:.0f} s, {pace:.0f} tokens/s", flush=True)
    loss_after = held_out_loss(model, tokenizer, args.seed + 2)
    print(f"held-out loss {loss_after:.4f} nats per answer token after {step} steps, {time.monotonic() - start:.0f} s")
    export(model, tokenizer, args.out)
    print(f"wrote {args.out.name}, {args.out.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="provider.model.train", description="Train the tiny Penstock model and write it as GGUF."
    )
    parser.add_argument("--out", type=Path, required=True, help="GGUF file to write")
    parser.add_argument("--steps", type=int, default=3000, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="stop after this many minutes if the steps are not done by then")
    parser.add_argument("--rows", type=int, default=4, help="rows of 1024 tokens in a step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
