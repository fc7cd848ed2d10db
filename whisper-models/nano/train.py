"""Train the nano model on a pool made by generate.py, and export it in OpenAI's .pt format.

    python train.py pool.npz --steps 3000 --mix 6,3,1 --checkpoint run.pt --export nano.pt

A checkpoint holds the full state for `--resume`. `--decay` lowers the learning rate to 1 % over the run.
Runs on the CPU and, with `--device cuda`, on an accelerator.
"""

import argparse
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import grammar
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.model import ModelDimensions, MultiHeadAttention, Whisper, sinusoids
from whisper.tokenizer import get_tokenizer
from windows import Composer, Pool, Style, Window, mels

DIMS = ModelDimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=192,
    n_audio_head=3,
    n_audio_layer=3,
    n_vocab=51865,
    n_text_ctx=448,
    n_text_state=192,
    n_text_head=3,
    n_text_layer=2,
)
SHAPES = ((500, 32), (1000, 16), (3000, 6))
"""(frames of 10 ms, windows) of a short, a medium and a full batch."""

PLAIN_ATTENTION_LIMIT = 600
"""Positions up to which plain attention beats the fused kernel on a CPU in bfloat16."""

IGNORE = -100
ALIGNMENT_HEADS = [[0, 0]]
"""The cross-attention head (layer, head) that follows the audio best, by the true word times of tests/data/words."""
fused_attention = MultiHeadAttention.qkv_attention


class Vocabulary:
    """The rows of Whisper's multilingual vocabulary that are trained. All others share a row of zeros."""

    def __init__(self) -> None:
        t = get_tokenizer(True, language="en", task="transcribe")
        words = {token for text in grammar.vocabulary() for token in t.encode(" " + text)} | set(t.encode("."))
        special = {t.eot, t.sot, t.sot_prev, t.no_speech, t.transcribe, t.no_timestamps, t.to_language_token("en")}
        self.rows = sorted(words) + sorted(special) + list(range(t.timestamp_begin, DIMS.n_vocab))
        self.words = len(words)
        self.unused = len(self.rows)
        self.timestamps = self.unused - (DIMS.n_vocab - t.timestamp_begin)
        self.eot, self.transcribe, self.translate = t.eot, t.transcribe, t.translate
        self.index = np.full(DIMS.n_vocab, self.unused)
        self.index[self.rows] = np.arange(len(self.rows))

    @property
    def unused_logit(self) -> float:
        """The logit of a single token with the weight of all unused tokens together."""
        return math.log(DIMS.n_vocab - len(self.rows))


def build(vocabulary: Vocabulary) -> Whisper:
    """A Whisper whose embedding has the trained rows and, last, a row that stays zero."""
    model = Whisper(DIMS)
    embedding = nn.Embedding(vocabulary.unused + 1, DIMS.n_text_state)
    nn.init.normal_(embedding.weight, std=0.05)
    model.decoder.positional_embedding.requires_grad_(False)
    with torch.no_grad():
        model.decoder.positional_embedding.copy_(position_rows())
        embedding.weight[vocabulary.unused] = 0
        embedding.weight[vocabulary.timestamps : vocabulary.unused] = timestamp_rows()
    model.decoder.token_embedding = embedding
    return model


def timestamp_rows() -> Tensor:
    """Initial timestamp embeddings (1501, width): the encoder's positions at their times, so that the decoder can copy
    them."""
    rows: Tensor = 0.1 * sinusoids(DIMS.n_audio_ctx + 1, DIMS.n_text_state)
    return rows


def position_rows() -> Tensor:
    """The decoder's positions (448, width): untrained sinusoids, so that a sentence is decoded equally at any position.

    A random rotation distinguishes them from timestamps.
    """
    rotation = torch.linalg.qr(torch.randn(DIMS.n_text_state, DIMS.n_text_state, generator=torch.Generator().manual_seed(0)))[0]
    rows: Tensor = 0.12 * sinusoids(DIMS.n_text_ctx, DIMS.n_text_state, max_timescale=DIMS.n_text_ctx) @ rotation
    return rows


def freeze_unused(model: Whisper) -> None:
    """Keep the last embedding row zero."""
    keep = torch.ones_like(model.decoder.token_embedding.weight)
    keep[-1] = 0
    model.decoder.token_embedding.weight.register_hook(lambda gradient: gradient * keep)


def warm_start(model: Whisper, vocabulary: Vocabulary, path: Path) -> None:
    """Load the weights of an exported model, or of the English-only trial, whose rows are matched by their bytes."""
    saved = torch.load(path, map_location="cpu", weights_only=False)
    if isinstance(saved, dict):
        state = {name: value.float() for name, value in saved["model_state_dict"].items()}
        table = state["decoder.token_embedding.weight"][vocabulary.rows]
    else:
        state, tokens, _ = saved
        rows = {token_bytes(False, token): state["decoder.token_embedding.weight"][i] for i, token in enumerate(tokens)}
        fresh = model.decoder.token_embedding.weight[:-1].detach()
        taken = [rows.get(token_bytes(True, token)) for token in vocabulary.rows[: vocabulary.timestamps]]
        table = torch.stack([f if row is None else row for row, f in zip(taken, fresh, strict=False)])
        table = torch.cat([table, fresh[vocabulary.timestamps :]])
    state["decoder.token_embedding.weight"] = torch.cat([table, torch.zeros(1, table.shape[1])])
    model.load_state_dict(state)


def token_bytes(multilingual: bool, token: int) -> bytes:
    """The bytes that a token stands for."""
    token_bytes: bytes = get_tokenizer(multilingual).encoding.decode_single_token_bytes(token)
    return token_bytes


def plain_attention(self: MultiHeadAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
    """`MultiHeadAttention.qkv_attention` as matrix products: on a CPU much faster than SDPA for short windows."""
    if k.shape[1] > PLAIN_ATTENTION_LIMIT:
        fused: tuple[Tensor, None] = fused_attention(self, q, k, v, mask)
        return fused
    q, k, v = (x.view(*x.shape[:-1], self.n_head, -1).transpose(1, 2).contiguous() for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask[: q.shape[2], : q.shape[2]].to(scores.dtype)
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2), None


def encode(model: Whisper, mel: Tensor, offset: int) -> Tensor:
    """(batch, 80, frames) → (batch, frames / 2, width). `offset`: the position of the window's first step."""
    encoder = model.encoder
    x = F.gelu(encoder.conv1(mel))
    x = F.gelu(encoder.conv2(x)).permute(0, 2, 1)
    x = x + encoder.positional_embedding[offset : offset + x.shape[1]]
    for block in encoder.blocks:
        x = block(x)
    hidden: Tensor = encoder.ln_post(x)
    return hidden


@dataclass
class Batch:
    """Windows as log-mel (windows, 80, frames), their CTC labels, and pairs of the decoder's inputs and targets
    (windows, length).

    The first pair is without earlier text; each kind of earlier text has another.
    """

    mel: Tensor
    labels: list[Tensor]
    texts: list[tuple[Tensor, Tensor]]
    offset: int
    name: str


def collate(windows: list[Window], vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """→ the decoder's inputs and targets (batch, length)."""
    length = max(len(window.tokens) for window in windows) - 1
    inputs = np.full((len(windows), length), vocabulary.eot)
    targets = np.full((len(windows), length), IGNORE)
    for i, w in enumerate(windows):
        inputs[i, : len(w.tokens) - 1] = w.tokens[:-1]
        target = vocabulary.index[w.tokens[1:]]
        # <|en|> or <|nospeech|> after <|startoftranscript|>. The task and the prompt are inputs and have no target.
        target[: w.fixed] = IGNORE
        target[w.loss_from] = vocabulary.index[w.first_target]
        targets[i, : len(target)] = target
    return torch.from_numpy(vocabulary.index[inputs]), torch.from_numpy(targets)


def losses(model: Whisper, ctc: nn.Linear, batch: Batch, unused_logit: float) -> tuple[Tensor, Tensor]:
    """The decoder's cross entropy, averaged over the kinds of earlier text, and the encoder's CTC loss per label."""
    device, labels = ctc.weight.device, batch.labels
    with torch.autocast(device.type, torch.bfloat16):
        hidden = encode(model, batch.mel.to(device), batch.offset)
        outputs = [model.decoder(inputs.to(device), hidden) for inputs, _ in batch.texts]
        frames = ctc(hidden)
    decoder = torch.stack([cross_entropy(*pair, unused_logit) for pair in zip(outputs, (t for _, t in batch.texts), strict=True)])
    counts = torch.tensor([len(label) for label in labels])
    alignment = F.ctc_loss(
        frames.float().log_softmax(-1).transpose(0, 1),
        torch.cat(labels).to(device),
        torch.full((len(labels),), frames.shape[1]),
        counts,
        zero_infinity=True,
    )
    return decoder.mean(), alignment


def cross_entropy(logits: Tensor, targets: Tensor, unused_logit: float) -> Tensor:
    """The cross entropy of logits (batch, length, rows + 1) at the positions with a target (batch, length)."""
    targets = targets.to(logits.device)
    logits = logits[targets != IGNORE].float()
    logits = torch.cat([logits[:, :-1], torch.full_like(logits[:, -1:], unused_logit)], dim=-1)
    return F.cross_entropy(logits, targets[targets != IGNORE])


def optimizers(model: Whisper, ctc: nn.Linear, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices and AdamW for the rest, or AdamW for all."""
    hidden = [p for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2]
    taken = {id(p) for p in hidden} if args.optimizer == "muon" else set()
    rest = [p for p in [*model.parameters(), *ctc.parameters()] if id(p) not in taken]
    adamw = torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    if args.optimizer == "adamw":
        return [adamw]
    muon = torch.optim.Muon(hidden, lr=args.muon_lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw]


def rate(step: int, part_done: float, args: argparse.Namespace) -> float:
    """The factor of the learning rate: warm-up, then constant, or falling to 1 % with --decay."""
    warm = min(1.0, (step + 1) / args.warmup)
    factor: float = warm * max(0.01, 1 - part_done) if args.decay else warm
    return factor


def draw_batch(composer: Composer, rng: random.Random, vocabulary: Vocabulary, mix: list[float], prompts: float) -> Batch:
    """Windows of a random shape at a random offset.

    A share `prompts` of the batches is also decoded after earlier text, of random and of full length. That costs
    little, because most of the work is in the encoder.
    """
    shape = rng.choices(range(len(SHAPES)), mix)[0]
    frames, count = SHAPES[shape]
    offset = rng.randrange(0, (3000 - frames) // 2 + 1) if rng.random() < 0.8 else 0
    windows = [composer.window(frames, 2 * offset) for _ in range(count)]
    lengths = (False, True) if rng.random() < prompts else ()
    texts = [windows, *([composer.prompted(window, full) for window in windows] for full in lengths)]
    return Batch(
        mel=mels(windows),
        labels=[torch.from_numpy(vocabulary.index[w.text_tokens] + 1) for w in windows],
        texts=[collate(text, vocabulary) for text in texts],
        offset=offset,
        name=f"{frames // 100}s",
    )


def export(model: Whisper, vocabulary: Vocabulary, path: Path) -> None:
    """Write OpenAI's format: float16, with the trained rows in their places of the full vocabulary."""
    state = {name: value.detach().cpu().half() for name, value in model.state_dict().items()}
    table = torch.zeros(DIMS.n_vocab, DIMS.n_text_state, dtype=torch.float16)
    table[vocabulary.rows] = state["decoder.token_embedding.weight"][:-1]
    table[vocabulary.translate] = table[vocabulary.transcribe]  # English to English
    state["decoder.token_embedding.weight"] = table
    temporary = path.with_suffix(".tmp")
    torch.save({"dims": asdict(DIMS), "model_state_dict": state, "alignment_heads": ALIGNMENT_HEADS}, temporary)
    temporary.replace(path)


def save(training: "Training", args: argparse.Namespace, step: int) -> None:
    """Write the checkpoint for --resume, complete or not at all, and the export."""
    state = {"model": training.model.state_dict(), "ctc": training.ctc.state_dict(), "step": step}
    state["optims"] = [optim.state_dict() for optim in training.optims]
    temporary = args.checkpoint.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(args.checkpoint)
    if args.export:
        export(training.model, training.vocabulary, args.export)


def report(step: int, means: dict[str, list[float]], elapsed: float, composing: float) -> None:
    """One line of the log: the running losses and seconds a step of each shape."""
    parts = [f"{name} dec {d:.3f} ctc {c:.3f} {t:.2f}s" for name, (d, c, t) in sorted(means.items())]
    print(step, " | ".join(parts), f"{elapsed:.0f}s, composing {composing / elapsed:.0%}", flush=True)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--minutes", type=float, default=math.inf, help="the longest training time")
    parser.add_argument("--mix", default="6,3,1", help="relative shares of short, medium and full batches")
    parser.add_argument("--init", type=Path, help="an exported model to start from")
    parser.add_argument("--resume", type=Path, help="a checkpoint to continue from")
    parser.add_argument("--reset-timestamps", action="store_true", help="with --resume: reset the timestamp embeddings")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--export", type=Path, help="where the model goes in OpenAI's format")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--muon-lr", type=float, default=2e-3)
    parser.add_argument("--ctc", type=float, default=1.0, help="weight of the CTC loss")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--decay", action="store_true")
    parser.add_argument("--human", type=float, default=Style.human, help="share of human digit strings")
    parser.add_argument("--digits", type=float, default=Style.synthetic_digits, help="share of synthetic digit strings")
    parser.add_argument("--prompts", type=float, default=0.2, help="share of batches with earlier text as a prompt")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


@dataclass
class Training:
    """A run's state: the model with its CTC head, their optimizers, and the number of steps before this run."""

    vocabulary: Vocabulary
    model: Whisper
    ctc: nn.Linear
    optims: list[torch.optim.Optimizer]
    first: int = 0


def start(args: argparse.Namespace) -> Training:
    """A run from random weights, an exported model (--init) or a checkpoint (--resume)."""
    vocabulary = Vocabulary()
    model, ctc = build(vocabulary), nn.Linear(DIMS.n_audio_state, vocabulary.words + 1)
    if args.init:
        warm_start(model, vocabulary, args.init)
    model, ctc = model.to(args.device), ctc.to(args.device)
    training = Training(vocabulary, model, ctc, optimizers(model, ctc, args))
    if args.resume:
        resume(training, args)
    freeze_unused(model)
    return training


def resume(training: Training, args: argparse.Namespace) -> None:
    """Load a checkpoint's weights, optimizer states and step. The learning rates stay those of the arguments."""
    saved = torch.load(args.resume, map_location=args.device)
    training.model.load_state_dict(saved["model"])
    training.ctc.load_state_dict(saved["ctc"])
    for optim, state in zip(training.optims, saved["optims"], strict=True):
        rates = [group["lr"] for group in optim.param_groups]
        optim.load_state_dict(state)
        for group, lr in zip(optim.param_groups, rates, strict=True):
            group["lr"] = lr
    training.first = saved["step"]
    if args.reset_timestamps:
        vocabulary = training.vocabulary
        with torch.no_grad():
            training.model.decoder.token_embedding.weight[vocabulary.timestamps : vocabulary.unused] = timestamp_rows()


def update(training: Training, batch: Batch, ctc_weight: float) -> tuple[float, float]:
    """One optimizer step on a batch. Returns the decoder's loss and the CTC loss."""
    decoder, alignment = losses(training.model, training.ctc, batch, training.vocabulary.unused_logit)
    for optim in training.optims:
        optim.zero_grad()
    torch.autograd.backward(decoder + ctc_weight * alignment)
    nn.utils.clip_grad_norm_([*training.model.parameters(), *training.ctc.parameters()], 1.0)
    for optim in training.optims:
        optim.step()
    return decoder.item(), alignment.item()


def train(training: Training, args: argparse.Namespace) -> None:
    """Train for --steps or --minutes, logging every 20 steps and saving every --save-every."""
    vocabulary, first = training.vocabulary, training.first
    base_rates = [[group["lr"] for group in optim.param_groups] for optim in training.optims]
    rng = random.Random(args.seed * 1000 + first)
    composer = Composer(Pool(args.pool), args.seed * 1000 + first, Style(human=args.human, synthetic_digits=args.digits))
    mix = [float(part) for part in args.mix.split(",")]
    started, composing = time.time(), 0.0
    means: dict[str, list[float]] = {}
    for step in range(args.steps):
        began = time.time()
        part_done = max(step / args.steps, (began - started) / (60 * args.minutes))
        if part_done >= 1:
            break
        batch = draw_batch(composer, rng, vocabulary, mix, args.prompts)
        composing += time.time() - began
        set_rates(training.optims, base_rates, rate(step, part_done, args))
        current = [*update(training, batch, args.ctc), time.time() - began]
        previous = means.setdefault(batch.name, current)
        means[batch.name] = [0.9 * old + 0.1 * new for old, new in zip(previous, current, strict=True)]
        if step % 20 == 19:
            report(first + step + 1, means, time.time() - started, composing)
        if step % args.save_every == args.save_every - 1:
            save(training, args, first + step + 1)
    save(training, args, first + step + 1)


def set_rates(optims: list[torch.optim.Optimizer], base_rates: list[list[float]], factor: float) -> None:
    """Set the learning rate of each parameter group to its base rate times `factor`."""
    for optim, rates in zip(optims, base_rates, strict=True):
        for group, lr in zip(optim.param_groups, rates, strict=True):
            group["lr"] = lr * factor


def main() -> None:
    """Train, saving and exporting at intervals."""
    args = parse()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if args.device == "cpu":
        MultiHeadAttention.qkv_attention = plain_attention
    training = start(args)
    if args.export:
        export(training.model, training.vocabulary, args.export)
    train(training, args)


if __name__ == "__main__":
    main()
