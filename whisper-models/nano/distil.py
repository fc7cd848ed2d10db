"""Teach a trained model to decode after earlier text: its own decoder, trained without any, teaches a pupil decoder.

    python distil.py pool.npz --teacher final.pt --minutes 28 --checkpoint pupil.pt --export ../nano.pt

Learned positions work only where they were trained, and earlier text shifts a sentence by up to 224 of them. The pupil
is a copy of the teacher with sinusoids as positions (`train.position_rows`). It learns the output of each of the
teacher's layers for each token (Hinton et al. 2015, Romero et al. 2015), with any text before it. The encoder is not
changed. Runs on the CPU.
"""

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train import IGNORE, Vocabulary, build, collate, encode, export, freeze_unused, plain_attention, position_rows
from whisper.model import MultiHeadAttention, TextDecoder, Whisper
from windows import Composer, Pool, Style, Window, mels

SHAPES = ((1500, 10), (3000, 6))
"""(frames of 10 ms, windows) of a half and a full batch."""

KEPT = 30
"""Encoded batches that are kept for the pupil, to be decoded again after other text."""

KINDS = ("none", "some", "some", "full")
"""How much earlier text a batch gets, in equal shares of this list."""


@dataclass
class Lesson:
    """The teacher's outputs for a batch: after each layer, and the log-probabilities; a row for each token that has a
    next one."""

    windows: list[Window]
    hidden: Tensor
    layers: list[Tensor]
    logprobs: Tensor
    targets: Tensor


def read(decoder: TextDecoder, tokens: Tensor, hidden: Tensor) -> list[Tensor]:
    """→ what each layer adds, and what the decoder makes of it all: (batch, length, width) each."""
    x = (decoder.token_embedding(tokens) + decoder.positional_embedding[: tokens.shape[1]]).to(hidden.dtype)
    added = []
    for block in decoder.blocks:
        before, x = x, block(x, hidden, mask=decoder.mask)
        added.append(x - before)
    return [*added, decoder.ln(x)]


def own(windows: list[Window], length: int) -> Tensor:
    """Which inputs are a window's own, rather than earlier text or padding: (windows, length)."""
    position = torch.arange(length)
    return torch.stack([(position >= w.loss_from) & (position < len(w.tokens) - 1) for w in windows])


def logprobs(decoder: TextDecoder, x: Tensor, unused_logit: float) -> Tensor:
    """(n, width) → (n, rows + 1)."""
    logits = (x @ decoder.token_embedding.weight.T)[:, :-1]
    return torch.cat([logits, logits.new_full((len(x), 1), unused_logit)], dim=-1).log_softmax(-1)


def answers(model: Whisper, windows: list[Window], hidden: Tensor, vocabulary: Vocabulary) -> tuple[list[Tensor], Tensor, Tensor]:
    """A decoder's layers, its log probabilities and the targets at the windows' own tokens."""
    inputs, targets = collate(windows, vocabulary)
    mine = own(windows, inputs.shape[1])
    with torch.autocast("cpu", torch.bfloat16):
        layers = read(model.decoder, inputs, hidden)
    layers = [layer[mine].float() for layer in layers]
    return layers, logprobs(model.decoder, layers[-1], vocabulary.unused_logit), targets[mine]


@torch.no_grad()
def lesson(teacher: Whisper, composer: Composer, rng: random.Random, vocabulary: Vocabulary) -> Lesson:
    """Windows of a random shape at a random offset, without earlier text."""
    frames, count = rng.choices(SHAPES, (0.35, 0.65))[0]
    offset = rng.randrange(0, (3000 - frames) // 2 + 1)
    windows = [composer.window(frames, 2 * offset) for _ in range(count)]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = encode(teacher, mels(windows), offset)
    return Lesson(windows, hidden, *answers(teacher, windows, hidden, vocabulary))


def loss(pupil: Whisper, taught: Lesson, windows: list[Window], vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """What the pupil has to learn, after the text in `windows`, and of that the cross entropy, to report."""
    layers, said, _ = answers(pupil, windows, taught.hidden, vocabulary)
    counted = taught.targets != IGNORE
    divergence = (taught.logprobs.exp() * (taught.logprobs - said)).sum(-1)[counted].mean()
    truth = F.nll_loss(said, taught.targets, ignore_index=IGNORE)
    *added, last = [(a - b).square().mean() / b.square().mean() for a, b in zip(layers, taught.layers, strict=True)]
    return divergence + 0.5 * truth + last + 0.5 * sum(added), truth


def optimizers(decoder: TextDecoder, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices and AdamW, at a quarter of the rate, for the rest."""
    named = [(name, p) for name, p in decoder.named_parameters() if p.requires_grad]
    hidden = [p for name, p in named if "blocks" in name and p.ndim == 2]
    rest = [p for name, p in named if not ("blocks" in name and p.ndim == 2)]
    muon = torch.optim.Muon(hidden, lr=muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=muon_lr / 4, betas=(0.9, 0.98), weight_decay=0)]


def pair(path: Path, pupil_path: Path | None, vocabulary: Vocabulary) -> tuple[Whisper, Whisper]:
    """The teacher of a checkpoint, and a pupil: the same with other positions, or as an earlier run left it."""
    teacher, pupil = build(vocabulary), build(vocabulary)
    teacher.load_state_dict(torch.load(path)["model"])
    teacher.requires_grad_(False)
    fresh = {**teacher.state_dict(), "decoder.positional_embedding": position_rows()}
    pupil.load_state_dict(torch.load(pupil_path)["model"] if pupil_path else fresh)
    pupil.encoder.requires_grad_(False)
    freeze_unused(pupil)
    return teacher, pupil


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--teacher", type=Path, required=True, help="a checkpoint of train.py")
    parser.add_argument("--pupil", type=Path, help="a checkpoint of this program to go on from")
    parser.add_argument("--minutes", type=float, default=28, help="the learning rate falls to nothing meanwhile")
    parser.add_argument("--muon-lr", type=float, default=3e-3)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--export", type=Path, required=True, help="where the model goes in OpenAI's format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Teach, saving and exporting now and then."""
    args = parse()
    torch.set_num_threads(args.threads)
    MultiHeadAttention.qkv_attention = plain_attention
    vocabulary, rng = Vocabulary(), random.Random(args.seed)
    teacher, pupil = pair(args.teacher, args.pupil, vocabulary)
    optims = optimizers(pupil.decoder, args.muon_lr)
    composer = Composer(Pool(args.pool), args.seed, Style(human=0.15, synthetic_digits=0.12))
    rates = [optim.param_groups[0]["lr"] for optim in optims]
    lessons: list[Lesson] = []
    means: dict[str, float] = {}
    started, step = time.time(), 0
    while (part_done := (time.time() - started) / (60 * args.minutes)) < 1:
        if step % 2 == 0 or len(lessons) < 4:
            lessons = [*lessons[-KEPT:], lesson(teacher, composer, rng, vocabulary)]
        taught, kind = lessons[-1] if step % 2 == 0 else rng.choice(lessons), rng.choice(KINDS)
        windows = taught.windows if kind == "none" else [composer.prompted(w, kind == "full") for w in taught.windows]
        for optim, rate in zip(optims, rates, strict=True):
            optim.param_groups[0]["lr"] = rate * min(1, (step + 1) / 20) * max(0.02, 1 - part_done)
            optim.zero_grad()
        total, truth = loss(pupil, taught, windows, vocabulary)
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(pupil.decoder.parameters(), 1.0)
        for optim in optims:
            optim.step()
        means[kind] = 0.9 * means.get(kind, truth.item()) + 0.1 * truth.item()
        step += 1
        if step % 50 == 0:
            print(step, {kind: round(mean, 3) for kind, mean in sorted(means.items())}, f"{time.time() - started:.0f}s", flush=True)
            torch.save({"model": pupil.state_dict()}, args.checkpoint)
    torch.save({"model": pupil.state_dict()}, args.checkpoint)
    export(pupil, vocabulary, args.export)


if __name__ == "__main__":
    main()
