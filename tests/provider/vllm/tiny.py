"""A Llama of two layers with random weights, a tokenizer of our corpus, and a LoRA adapter for it.

    .engines/vllm/bin/python tests/provider/vllm/tiny.py FOLDER CORPUS

Run by vLLM's own Python, which has the libraries; nothing is downloaded. Writes FOLDER/model and FOLDER/lora.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}<|system|>"
    "{% elif m['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WIDTH, LAYERS, HEADS, HIDDEN, VOCAB, RANK = 128, 2, 4, 256, 1024, 8


def main(folder: Path, corpus: Path) -> None:
    torch.manual_seed(7)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train([str(corpus)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder / "model")
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    weights = {}
    for layer in range(LAYERS):
        for name in ("q_proj", "v_proj"):
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{at}.lora_A.weight"] = torch.randn(RANK, WIDTH, dtype=torch.bfloat16)
            weights[f"{at}.lora_B.weight"] = torch.randn(WIDTH, RANK, dtype=torch.bfloat16)
    (folder / "lora").mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "lora" / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["q_proj", "v_proj"]}
    adapter |= {"bias": "none", "task_type": "CAUSAL_LM", "base_model_name_or_path": "", "lora_dropout": 0.0}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(adapter))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
