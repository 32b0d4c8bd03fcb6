"""The knobs: their names, types, bounds and defaults, and the one strict reading of their text.

Names are those that Azure's fine-tuning components and Hugging Face share; every value is a
string on the wire. Defaults are those of Azure's component `oss_chat_completion_finetune`
(0.0.29) where it states one, else Hugging Face's `TrainingArguments`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Value = int | float | bool | str
Kind = Literal["int", "float", "bool", "choice", "switch"]
"""`switch`: true, false, or a path."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One hyperparameter."""

    name: str
    kind: Kind
    default: Value | None
    """None: not set, and another knob (or nothing) decides."""
    doc: str
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    """Whether `low` itself is refused."""
    choices: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """What may be written, in words."""
        if self.choices:
            return " | ".join(self.choices)
        words = {
            "int": "a whole number",
            "float": "a number",
            "bool": "true or false",
            "switch": "true, false or a path",
        }
        text = words[self.kind]
        if self.low is not None:
            text += f" {'above' if self.low_open else 'from'} {self.low:g}"
        if self.high is not None:
            text += f" {'up' if self.low is None else ''} to {self.high:g}".replace("  ", " ")
        return text


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a hyperparameter cannot be read."""

    message: str
    hint: str
    code: str


SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
)

_KNOBS = (
    Knob("num_train_epochs", "float", 1, "Passes over the training rows.", 0, 100, low_open=True),
    Knob(
        "max_steps", "int", -1, "Optimizer steps; -1 lets num_train_epochs decide.", -1, 10_000_000
    ),
    Knob("per_device_train_batch_size", "int", 1, "Rows in one forward pass.", 1, 1024),
    Knob("per_device_eval_batch_size", "int", 1, "Rows in one validation pass.", 1, 1024),
    Knob("auto_find_batch_size", "bool", False, "Halve the batch size when memory runs out."),
    Knob(
        "gradient_accumulation_steps", "int", 1, "Forward passes in one optimizer step.", 1, 65_536
    ),
    Knob("learning_rate", "float", 2e-5, "Peak step size of the optimizer.", 0, 1, low_open=True),
    Knob(
        "learning_rate_multiplier", "float", None, "Scales learning_rate; the portal's knob.", 0, 5
    ),
    Knob(
        "batch_size_multiplier", "float", None, "Scales the batch size; the portal's knob.", 0, 100
    ),
    Knob("lr_scheduler_type", "choice", "linear", "Course of the step size.", choices=SCHEDULES),
    Knob("warmup_steps", "int", 0, "Steps in which the step size rises from 0.", 0, 10_000_000),
    Knob("warmup_ratio", "float", None, "The same as a share of all steps.", 0, 1),
    Knob("weight_decay", "float", 0.0, "AdamW's decay.", 0, 1),
    Knob(
        "max_grad_norm", "float", 1.0, "Gradients are clipped to this norm; 0 turns it off.", 0, 1e6
    ),
    Knob(
        "optim",
        "choice",
        "adamw_torch",
        "The optimizer.",
        choices=(
            "adamw_torch",
            "adamw_hf",
            "adamw_torch_fused",
            "adafactor",
            "sgd",
            "adamw_bnb_8bit",
        ),
    ),
    Knob("adam_beta1", "float", 0.9, "AdamW's first decay rate.", 0, 0.999999),
    Knob("adam_beta2", "float", 0.999, "AdamW's second decay rate.", 0, 0.999999),
    Knob("adam_epsilon", "float", 1e-8, "AdamW's epsilon.", 0, 1, low_open=True),
    Knob(
        "precision",
        "choice",
        "32",
        "Bits of a weight in the forward pass.",
        choices=("32", "16", "bf16"),
    ),
    Knob("seed", "int", 42, "Seeds data order, dropout and the adapter's start.", 0, 2**31 - 1),
    Knob("enable_full_determinism", "bool", False, "Refuse kernels that are not repeatable."),
    Knob(
        "max_seq_length",
        "int",
        -1,
        "Tokens a row is cut to; -1 is the model's context.",
        -1,
        131_072,
    ),
    Knob("apply_lora", "bool", True, "Train a LoRA adapter instead of all weights."),
    Knob("lora_r", "int", 8, "Rank of the adapter.", 1, 1024),
    Knob("lora_alpha", "int", 128, "The adapter's scale is lora_alpha / lora_r.", 1, 65_536),
    Knob("lora_dropout", "float", 0.0, "Dropout before the adapter.", 0, 0.999),
    Knob("merge_lora_weights", "bool", False, "Also write the model with the adapter merged in."),
    Knob("apply_deepspeed", "bool", False, "Use DeepSpeed on several GPUs."),
    Knob("deepspeed_stage", "int", 2, "DeepSpeed's ZeRO stage.", 0, 3),
    Knob("apply_ort", "bool", False, "Use ONNX Runtime's training kernels."),
    Knob("apply_early_stopping", "bool", False, "Stop when the validation loss stops falling."),
    Knob(
        "early_stopping_patience", "int", 1, "Evaluations without gain before stopping.", 1, 10_000
    ),
    Knob("early_stopping_threshold", "float", 0.0, "What counts as a gain.", 0, 1e6),
    Knob(
        "evaluation_strategy",
        "choice",
        "epoch",
        "When to measure the validation loss.",
        choices=(
            "epoch",
            "steps",
            "disable",
        ),
    ),
    Knob("eval_steps", "int", 500, "Steps between evaluations, with `steps`.", 1, 10_000_000),
    Knob("logging_steps", "int", 10, "Steps between two metric lines.", 1, 10_000_000),
    Knob(
        "save_strategy",
        "choice",
        "epoch",
        "When to write a checkpoint.",
        choices=("epoch", "steps", "disable"),
    ),
    Knob("save_steps", "int", 500, "Steps between checkpoints, with `steps`.", 1, 10_000_000),
    Knob("save_total_limit", "int", 1, "Checkpoints that are kept; -1 keeps all.", -1, 10_000),
    Knob(
        "resume_from_checkpoint",
        "switch",
        False,
        "Go on from the last checkpoint; a path begins a run with that of another.",
    ),
    Knob(
        "load_best_model_at_end", "bool", False, "Keep what had the best evaluation, not the last."
    ),
    Knob(
        "metric_for_best_model",
        "choice",
        "loss",
        "What the best evaluation is judged by.",
        choices=("loss", "eval_loss", "token_accuracy"),
    ),
    # What peft and Hugging Face name, and only a local run can do.
    Knob(
        "peft_method",
        "choice",
        None,
        "The method, by peft's name; unset, use_dora and apply_lora decide.",
        choices=(
            "lora",
            "dora",
            "ia3",
            "prefix_tuning",
            "prompt_tuning",
            "vera",
            "oft",
            "full",
        ),
    ),
    Knob("use_dora", "bool", False, "Train magnitude and direction apart (DoRA)."),
    Knob("use_rslora", "bool", False, "Scale by lora_alpha / sqrt(lora_r) (rsLoRA)."),
    Knob(
        "init_lora_weights",
        "choice",
        "true",
        "The adapter's start; pissa and olora begin with the base's own directions.",
        choices=(
            "true",
            "gaussian",
            "pissa",
            "pissa_niter_4",
            "pissa_niter_16",
            "olora",
            "loftq",
        ),
    ),
    Knob("num_virtual_tokens", "int", 20, "Tokens that prefix and prompt tuning train.", 1, 10_000),
    Knob("oft_block_size", "int", 32, "Features that OFT turns together.", 1, 65_536),
    Knob("load_in_4bit", "bool", False, "Hold the frozen base in 4 bits (QLoRA)."),
    Knob("load_in_8bit", "bool", False, "Hold the frozen base in 8 bits."),
    Knob("bnb_4bit_quant_type", "choice", "nf4", "The 4-bit code.", choices=("nf4", "fp4")),
    Knob("bnb_4bit_use_double_quant", "bool", False, "Hold the 4-bit code's scales in 8 bits."),
    Knob("packing", "bool", False, "Put several rows into one sequence."),
    Knob(
        "system_turns",
        "choice",
        "refuse",
        "A system turn that the chat template would drop: refuse the row, or fold it into the user's.",
        choices=("refuse", "fold"),
    ),
)

KNOBS: Mapping[str, Knob] = {knob.name: knob for knob in _KNOBS}

PORTAL_NAMES: Mapping[str, str] = {
    "batch_size": "per_device_train_batch_size",
    "n_epochs": "num_train_epochs",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "early_stopping": "apply_early_stopping",
    "rank": "lora_r",
    "eval_strategy": "evaluation_strategy",
}
"""Other names people write, and the knob that they mean: used for hints, never silently."""

_TRUE, _FALSE = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})


def fault(key: str, text: str) -> Fault | None:
    """What is wrong with one entry of `hyperparameters`, or None."""
    knob = KNOBS.get(key)
    if knob is None:
        near = PORTAL_NAMES.get(key) or next(
            iter(difflib.get_close_matches(key.lower(), KNOBS, n=1, cutoff=0.6)), None
        )
        hint = (
            f"did you mean {near}?" if near else "`maas plan` lists the keys that a target honours"
        )
        return Fault(
            f"hyperparameters.{key} is not a known hyperparameter", hint, "unknown_hyperparameter"
        )
    try:
        read(knob, text)
    except ValueError as error:
        return Fault(
            f"hyperparameters.{key} is {text!r}: {error}", f"allowed: {knob.allowed}", "bad_value"
        )
    return None


def read(knob: Knob, text: str) -> Value:
    """The value that the text says.

    Raises:
        ValueError: with what is wrong, in a few words.
    """
    word = text.strip()
    match knob.kind:
        case "bool":
            if word.lower() in _TRUE | _FALSE:
                return word.lower() in _TRUE
            raise ValueError("neither true nor false")
        case "choice":
            if word.lower() in knob.choices:
                return word.lower()
            near = difflib.get_close_matches(word.lower(), knob.choices, n=1)
            raise ValueError(f"did you mean {near[0]}?" if near else "not one of the choices")
        case "switch":
            if not word:
                raise ValueError("neither true nor false, nor a path")
            return word.lower() in _TRUE if word.lower() in _TRUE | _FALSE else word
        case "int" | "float":
            return _number(knob, word)


def _number(knob: Knob, word: str) -> int | float:
    try:
        number = int(word) if knob.kind == "int" else float(word)
    except ValueError:
        raise ValueError("not a whole number" if knob.kind == "int" else "not a number") from None
    if "_" in word or not math.isfinite(number):
        raise ValueError("not a finite number")
    if knob.low is not None and (number < knob.low or (knob.low_open and number == knob.low)):
        raise ValueError("too small")
    if knob.high is not None and number > knob.high:
        raise ValueError("too large")
    return number
