"""One run of transformers' Trainer or of TRL's, as the benchmark's child, in their own environment."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

TARGETS = ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
COMMON = {
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant",
    "max_steps": 10_000,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "seed": 42,
}


class Watch(TrainerCallback):
    """Notes what each step took, and ends the run when its time is up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.marks: list[tuple[float, float, int, int]] = []
        self.tokens = self.trained = 0
        self.losses: list[float] = []

    def look(self, model: Any, args: Any, given: dict[str, Any]) -> None:
        """Before a forward pass: what is in the batch."""
        real = given.get("attention_mask")
        ids, labels = given["input_ids"], given["labels"]
        self.tokens += int(ids.numel() if real is None else real.sum())
        self.trained += int((labels[:, 1:] != -100).sum())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in (logs or {}):
            self.losses.append(logs["loss"])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self.marks.append((time.time(), sum(os.times()[:4]), self.tokens, self.trained))
        spent = torch.tensor(self.marks[-1][0] - self.marks[0][0])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(spent, torch.distributed.ReduceOp.MAX)
        if float(spent) > self.seconds and len(self.marks) > 1:
            control.should_training_stop = True
        return control


def adapter() -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")


def hugging_face(given: dict[str, Any], rows: list[Any], processes: int) -> Any:
    """transformers' Trainer: rows of like length together, loss on the assistant's tokens only."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    coded = tokenizer.apply_chat_template(
        [row["messages"] for row in rows], return_dict=True, return_assistant_tokens_mask=True
    )
    labels = [
        [i if said else -100 for i, said in zip(ids, mask, strict=True)]
        for ids, mask in zip(coded["input_ids"], coded["assistant_masks"], strict=True)
    ]
    data = Dataset.from_dict({"input_ids": coded["input_ids"], "labels": labels})
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    arguments = TrainingArguments(
        output_dir=given["out"],
        per_device_train_batch_size=8 // processes,
        train_sampling_strategy="group_by_length",
        **COMMON,
    )
    return Trainer(
        model=get_peft_model(model, adapter()),
        args=arguments,
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )


def trl(given: dict[str, Any], rows: list[Any], **more: Any) -> Any:
    """TRL's SFTTrainer; `more` is what the way sets."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=given["out"],
        model_init_kwargs={"dtype": "float32"},
        **(COMMON | {"per_device_train_batch_size": 8} | more),
    )
    return SFTTrainer(
        model=given["model"],
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        peft_config=adapter(),
    )


def make(given: dict[str, Any], rows: list[Any]) -> Any:
    answers = {"assistant_only_loss": True, "gradient_checkpointing": False}
    match given["way"]:
        case "hf":
            return hugging_face(given, rows, 1)
        case "hf2":
            return hugging_face(given, rows, 2)
        case "trl":
            return trl(given, rows)
        case "trl-assistant":
            return trl(given, rows, **answers)
        case "trl-packed":
            # Three packs hold about as many tokens as eight rows do: the same work a step.
            packed = {"packing": True, "max_length": 1024, "per_device_train_batch_size": 3}
            return trl(given, rows, **answers, **packed)
    raise SystemExit(f"unknown way: {given['way']}")


def main() -> None:
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    rows = [json.loads(line) for line in Path(given["rows"]).read_text().splitlines()]
    trainer = make(given, rows)
    watch = Watch(given["seconds"])
    trainer.add_callback(watch)
    trainer.model.register_forward_pre_hook(watch.look, with_kwargs=True)
    trainer.train()
    first, last = watch.marks[0], watch.marks[-1]
    made = {
        "first": first[0] - given["began"],
        "seconds": last[0] - first[0],
        "cpu": last[1] - first[1],
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "tokens": last[2] - first[2],
        "trained": last[3] - first[3],
        "losses": watch.losses,
    }
    place = f"{given['result']}{os.environ.get('RANK', '')}"
    Path(place).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main()
