"""transformers' `generate` and TRL's GRPO trainer on torch, asked by `worker.serve`."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
import transformers
from worker import Paced, reward, serve, useful

STATE: dict[str, Any] = {}


def load(folder: str, dtype: str, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    STATE["folder"], STATE["dtype"] = folder, dtype
    STATE["tokenizer"] = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    # The chat template uses the stop token within prompts, so it cannot pad them.
    STATE["tokenizer"].pad_token = "<|endoftext|>"
    STATE["model"] = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype)
    ).eval()
    return {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}}


@torch.inference_mode()
def logprobs(prompts: list[list[int]], answers: list[list[int]]) -> dict[str, Any]:
    """log p of every token of each answer after its prompt."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        scores = STATE["model"](torch.tensor([prompt + answer])).logits[0].float()
        logp = torch.log_softmax(scores, -1)[len(prompt) - 1 : -1]
        found.append(logp.gather(-1, torch.tensor(answer)[:, None])[:, 0].tolist())
    return {"logprobs": found}


@torch.inference_mode()
def rollout(
    prompts: list[list[int]], samples: int, max_new_tokens: int, stop: int, batch: int, seed: int
) -> dict[str, Any]:
    """`samples` of each prompt, `batch` prompts at a time."""
    torch.manual_seed(seed)
    pad = STATE["tokenizer"].pad_token_id
    began = time.perf_counter()
    lengths: list[int] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        width = max(map(len, part))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in part])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
        drawn = STATE["model"].generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
            num_return_sequences=samples,
            eos_token_id=stop,
            pad_token_id=pad,
        )
        lengths += useful(drawn[:, width:].tolist(), stop)
    return {"seconds": time.perf_counter() - began, "tokens": sum(lengths), "n": len(lengths)}


def grpo(
    texts: list[str], samples: int, max_new_tokens: int, rate: float, pieces: int
) -> dict[str, Any]:
    """Prepares TRL's trainer on these prompts; each `step` is then one of its steps on all of them."""
    import datasets
    import trl

    STATE.pop("model", None)
    bf16 = STATE["dtype"] == "bfloat16"
    lengths: list[int] = []

    def rewards(completions, completion_ids, **_):
        lengths[:] = map(len, completion_ids)
        return [reward(text) for text in completions]

    class Pace(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            STATE["paced"].wait()

        def on_step_end(self, *_, **__):
            STATE["paced"].done(tokens=sum(lengths))

    rows = len(texts) * samples
    config = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="selfevolve-bench-"),
        use_cpu=True,
        bf16=bf16,
        gradient_checkpointing=False,
        per_device_train_batch_size=rows // pieces,
        gradient_accumulation_steps=pieces,
        steps_per_generation=pieces,
        num_generations=samples,
        max_completion_length=max_new_tokens,
        learning_rate=rate,
        lr_scheduler_type="constant",
        beta=0.0,
        num_iterations=1,
        max_steps=10_000,
        logging_steps=10_000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    trainer = trl.GRPOTrainer(
        # Weights stay in float32, as ours do; products run in bfloat16 under autocast.
        model=transformers.AutoModelForCausalLM.from_pretrained(
            STATE["folder"], dtype=torch.float32
        ),
        reward_funcs=rewards,
        args=config,
        train_dataset=datasets.Dataset.from_dict({"prompt": texts}),
        processing_class=STATE["tokenizer"],
        callbacks=[Pace()],
    )
    STATE["paced"] = Paced(trainer.train)
    return {"versions": {"trl": trl.__version__}}


def step() -> dict[str, Any]:
    return STATE["paced"].step()


if __name__ == "__main__":
    serve({"load": load, "logprobs": logprobs, "rollout": rollout, "grpo": grpo, "step": step})
