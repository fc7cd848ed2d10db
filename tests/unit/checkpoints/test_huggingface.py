"""Hugging Face's folders: the bundled model under their names is the same checkpoint; what is broken is told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from whisper.model import ModelDimensions

from whispercore.checkpoints import (
    Checkpoint,
    converted_folder,
    dimensions,
    empty_model,
    huggingface,
    load_checkpoint,
    locate,
    write_random,
)
from whispercore.checkpoints.huggingface import openai_name
from whispercore.errors import ConfigurationError
from whispercore.settings import Settings
from whispercore.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[3]
THEIRS = {
    "encoder.conv1.weight": "model.encoder.conv1.weight",
    "encoder.positional_embedding": "model.encoder.embed_positions.weight",
    "encoder.blocks.3.attn.query.bias": "model.encoder.layers.3.self_attn.q_proj.bias",
    "encoder.blocks.3.attn_ln.weight": "model.encoder.layers.3.self_attn_layer_norm.weight",
    "encoder.blocks.3.mlp.0.weight": "model.encoder.layers.3.fc1.weight",
    "encoder.blocks.3.mlp_ln.bias": "model.encoder.layers.3.final_layer_norm.bias",
    "encoder.ln_post.weight": "model.encoder.layer_norm.weight",
    "decoder.token_embedding.weight": "model.decoder.embed_tokens.weight",
    "decoder.positional_embedding": "model.decoder.embed_positions.weight",
    "decoder.blocks.12.attn.out.weight": "model.decoder.layers.12.self_attn.out_proj.weight",
    "decoder.blocks.12.cross_attn.key.weight": "model.decoder.layers.12.encoder_attn.k_proj.weight",
    "decoder.blocks.12.cross_attn.value.bias": "model.decoder.layers.12.encoder_attn.v_proj.bias",
    "decoder.blocks.12.cross_attn_ln.weight": "model.decoder.layers.12.encoder_attn_layer_norm.weight",
    "decoder.blocks.12.mlp.2.bias": "model.decoder.layers.12.fc2.bias",
    "decoder.ln.bias": "model.decoder.layer_norm.bias",
}


def test_names() -> None:
    assert {openai_name(theirs) for theirs in THEIRS.values()} == set(THEIRS)
    assert all(openai_name(theirs) == ours for ours, theirs in THEIRS.items())
    assert all(huggingface.transformers_name(ours) == theirs for ours, theirs in THEIRS.items())


def config(checkpoint: Checkpoint) -> dict[str, object]:
    dims = checkpoint.dims
    return {
        "model_type": "whisper",
        "activation_function": "gelu",
        "num_mel_bins": dims.n_mels,
        "max_source_positions": dims.n_audio_ctx,
        "d_model": dims.n_audio_state,
        "encoder_attention_heads": dims.n_audio_head,
        "encoder_layers": dims.n_audio_layer,
        "vocab_size": dims.n_vocab,
        "max_target_positions": dims.n_text_ctx,
        "decoder_attention_heads": dims.n_text_head,
        "decoder_layers": dims.n_text_layer,
    }


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A fine-tuned model as transformers saves it: OpenAI's tiny, random weights, in two parts, with the tied output and its own heads."""
    transformers = pytest.importorskip("transformers", reason="transformers, whose own model is the oracle, is not installed")
    torch.manual_seed(0)
    path = tmp_path / "tiny.pt"
    write_random(dimensions("tiny"), path)
    known = {key: value for key, value in config(load_checkpoint(path)).items() if key != "model_type"}
    tokens = {"pad_token_id": 50_257, "bos_token_id": 50_257, "eos_token_id": 50_257, "decoder_start_token_id": 50_258}
    made = transformers.WhisperConfig(**known, encoder_ffn_dim=1536, decoder_ffn_dim=1536, **tokens)
    model = transformers.WhisperForConditionalGeneration(made).eval()
    folder = tmp_path / "models" / "my-tuned.en"
    model.save_pretrained(folder, max_shard_size="100MB")
    heads = {"alignment_heads": [[1, 2], [3, 0]]}
    (folder / "generation_config.json").write_text(json.dumps(heads))
    return folder


def test_transformers_own_model_computes_the_same(tuned: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers, whose own model is the oracle, is not installed")
    assert len(list(tuned.glob("*.safetensors"))) > 1
    checkpoint = load_checkpoint(tuned)
    ours = empty_model(checkpoint.dims)
    ours.load_state_dict({name: tensor.float() for name, tensor in checkpoint.state.items()}, assign=True)
    ours.decoder.register_buffer("mask", torch.full((448, 448), -torch.inf).triu_(1), persistent=False)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tuned).eval()
    mel, tokens = torch.randn(1, 80, 3000), torch.tensor([[50_258, 50_259, 50_359, 400, 500]])
    with torch.no_grad():
        expected = theirs(input_features=mel, decoder_input_ids=tokens).logits
        assert torch.allclose(ours.decoder(tokens, ours.encoder(mel)), expected, atol=1e-3)
    assert checkpoint.name == "my-tuned.en"
    assert checkpoint.alignment_heads == [(1, 2), (3, 0)]
    settings = Settings(model="my-tuned.en", models_dir=str(tuned.parent), converted_dir="converted")
    assert locate(settings) == tuned == locate(Settings(model=str(tuned)))
    assert converted_folder(settings, tuned, "int8").name.startswith("my-tuned.en-")


@pytest.mark.parametrize(("vocabulary", "mels"), [(51_864, 80), (51_865, 80), (51_866, 128)], ids=["english", "multilingual", "large-v3"])
def test_what_is_written_transformers_loads(tmp_path: Path, vocabulary: int, mels: int) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers, which is to load what was written, is not installed")
    dims, tokenizer = ModelDimensions(mels, 1500, 64, 2, 1, vocabulary, 448, 64, 2, 2), Tokenizer(vocabulary)
    write_random(dims, tmp_path / "small.pt", dtype=torch.bfloat16)
    written = load_checkpoint(tmp_path / "small.pt")
    huggingface.write(dims, written.state, tmp_path / "small", alignment_heads=[(1, 0), (0, 1)])
    read = load_checkpoint(tmp_path / "small")
    assert read.dims == dims and read.heads == ((1, 0), (0, 1))
    assert read.state.keys() == written.state.keys() and all(torch.equal(read.state[name], each) for name, each in written.state.items())
    processor = transformers.WhisperProcessor.from_pretrained(tmp_path / "small")
    assert processor.feature_extractor.feature_size == mels
    assert processor.tokenizer.convert_tokens_to_ids("<|0.00|>") == tokenizer.timestamp_begin
    model, information = transformers.WhisperForConditionalGeneration.from_pretrained(
        tmp_path / "small", dtype=torch.float32, output_loading_info=True
    )
    assert not any(information[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    chosen = {"language": "de", "task": "translate"} if tokenizer.multilingual else {}
    tokens = model.generate(torch.randn(1, mels, 3000), max_new_tokens=4, return_timestamps=True, **chosen)
    assert tokens.shape[0] == 1 and model.generation_config.is_multilingual == tokenizer.multilingual


@pytest.fixture(scope="module")
def nano_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as such a folder."""
    nano = load_checkpoint(ROOT / "whisper-models" / "nano.pt")
    folder = tmp_path_factory.mktemp("hub") / "nano"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(nano)))
    (folder / "generation_config.json").write_text(json.dumps({"alignment_heads": nano.alignment_heads}))
    save_file({_theirs(name): tensor.contiguous() for name, tensor in nano.state.items()}, folder / "model.safetensors")
    return folder


def _theirs(name: str) -> str:
    """The inverse of `openai_name`, spelled out."""
    side, *rest = name.split(".")
    if rest[0] != "blocks":
        plain = {
            "positional_embedding": "embed_positions.weight",
            "token_embedding": "embed_tokens",
            "ln_post": "layer_norm",
            "ln": "layer_norm",
        }
        return ".".join(["model", side, plain.get(rest[0], rest[0]), *rest[1:]])
    layer, part, *last = rest[1:]
    parts = {"attn": "self_attn", "cross_attn": "encoder_attn", "attn_ln": "self_attn_layer_norm"}
    parts |= {"cross_attn_ln": "encoder_attn_layer_norm", "mlp_ln": "final_layer_norm"}
    projections = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    inner = [{"0": "fc1", "2": "fc2"}[last[0]]] if part == "mlp" else [parts[part], *(projections[each] for each in last[:-1])]
    return ".".join(["model", side, "layers", layer, *inner, last[-1]])


def test_the_bundled_model_is_the_same_as_a_folder(nano_folder: Path) -> None:
    nano, read = load_checkpoint(ROOT / "whisper-models" / "nano.pt"), load_checkpoint(nano_folder)
    assert asdict(read.dims) == asdict(nano.dims)
    assert read.state.keys() == nano.state.keys()
    assert all(torch.equal(read.state[name], tensor) for name, tensor in nano.state.items())
    assert read.alignment_heads == nano.alignment_heads


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _other_shape(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({**state, "model.encoder.conv1.bias": torch.zeros(3)}, folder / "model.safetensors")


def _other_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')


def _own_output(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({**state, "proj_out.weight": state["model.decoder.embed_tokens.weight"] + 1}, folder / "model.safetensors")


def _other_activation(folder: Path) -> None:
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"activation_function": "relu"}))


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_cut, "cut short"),
        (_other_shape, "does not fit its own dimensions: encoder.conv1.bias"),
        (_other_model, "no Whisper model: its config.json says 'bert'"),
        (_own_output, "has an output layer of its own, proj_out.weight"),
        (_other_activation, "no Whisper model: its config.json says 'relu'"),
        (_pickled, "must be safetensors"),
    ],
)
def test_what_is_broken_is_told_in_one_line(nano_folder: Path, tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    folder = tmp_path / "nano"
    folder.mkdir()
    for file in nano_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    harm(folder)
    with pytest.raises(ConfigurationError, match=message):
        load_checkpoint(folder)
