"""Real architectures in miniature, with random weights and a tokenizer of our corpus.

    .engines/vllm/bin/python tests/provider/vllm/tiny.py FOLDER CORPUS

Run by vLLM's own Python, which has the libraries; nothing is downloaded. Writes FOLDER/text (Llama), FOLDER/lora (an
adapter for it), FOLDER/vision (LLaVA) and FOLDER/pooling (BERT).
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

BOS, END, IMAGE, PAD = "<|bos|>", "<|end|>", "<image>", "<|pad|>"
SPECIAL = [BOS, END, "<|system|>", "<|user|>", "<|assistant|>", IMAGE, PAD]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}<|system|>"
    "{% elif m['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WIDTH, LAYERS, HEADS, HIDDEN, VOCAB, RANK, CONTEXT = 128, 2, 4, 256, 1024, 8, 32_768
SIDE, PATCH = 336, 14
"""Pixels of an image, and of the squares that it is cut into: a token each."""


def main(folder: Path, corpus: Path) -> None:
    torch.manual_seed(7)
    tokenizer = trained(corpus)
    text(folder / "text", tokenizer)
    adapter(folder / "lora")
    vision(folder / "vision", tokenizer)
    pooling(folder / "pooling", tokenizer)


def trained(corpus: Path) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train([str(corpus)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=END, pad_token=PAD)
    fast.chat_template = TEMPLATE
    return fast


def llama() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=SPECIAL.index(BOS),
        eos_token_id=SPECIAL.index(END),
        tie_word_embeddings=False,
    )


def text(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(llama()).to(torch.bfloat16).save_pretrained(folder)


def adapter(folder: Path) -> None:
    weights = {}
    for layer in range(LAYERS):
        for name in ("q_proj", "v_proj"):
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{at}.lora_A.weight"] = torch.randn(RANK, WIDTH, dtype=torch.bfloat16)
            weights[f"{at}.lora_B.weight"] = torch.randn(WIDTH, RANK, dtype=torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["q_proj", "v_proj"]}
    config |= {"bias": "none", "task_type": "CAUSAL_LM", "base_model_name_or_path": "", "lora_dropout": 0.0}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def vision(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    eyes = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    config = LlavaConfig(
        vision_config=eyes,
        text_config=llama(),
        image_token_index=SPECIAL.index(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=False,
    )
    LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    # This transformers names the tower's weights otherwise than the published models do, whose names vLLM knows.
    weights = load_file(at := folder / "model.safetensors")
    known = {name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in weights.items()}
    save_file(known, at, metadata={"format": "pt"})
    looks = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_convert_rgb=True
    )
    LlavaProcessor(
        image_processor=looks,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def pooling(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=512,
        pad_token_id=SPECIAL.index(PAD),
    )
    tokenizer.save_pretrained(folder)
    BertModel(config).to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
