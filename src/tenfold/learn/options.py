"""The settings of this room's tasks, apart from their code, so that the command line has its options without PyTorch."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from tenfold.spec.commands import File, Folder
from tenfold.spec.ranges import Count, LearningRate, NotNegative, Positive, Seed, SeqLen, Text

RELEASE = "release.json"  # of a home: the generation in service

Kind = Literal["sft", "dpo", "kto"]
Bits = Literal["int8", "int4"]
DPOLoss = Literal["sigmoid", "ipo", "sigmoid_norm"]
GRPOLoss = Literal["dapo", "dr_grpo", "bnpo", "grpo"]
ImportanceSampling = Literal["sequence_mask", "sequence_truncate", "token_mask", "token_truncate", "none"]

Validation = Annotated[str | None, Meta(description="Rows to evaluate on; by default every tenth of the corpus.")]
EvaluateEvery = Annotated[int, Meta(ge=0, description="Steps between evaluations; 0 evaluates at the end alone.")]
Rent = Annotated[NotNegative, Meta(description="Rent of the machine, for the forecast; 0 counts its electricity.")]
Beta = Annotated[float, Meta(gt=0, description="How close the model stays to its first weights; 0.1 is usual.")]


LoRARank = Annotated[int, Meta(ge=0, description="Rank of the adapters (LoRA); 0 trains all weights.")]


class LoRAOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether all weights are trained, or adapters beside them."""

    lora_rank: LoRARank = 0
    lora_alpha: Annotated[float | None, Meta(description="Their weight times the rank; by default twice the rank.")] = None
    quantization: Annotated[
        Bits | None, Meta(description="Bits of the layers' weights beside adapters (QLoRA); floats where left out.")
    ] = None
    adapter: Annotated[Text | None, Meta(description="A folder of PEFT's, whose adapters are trained on.")] = None


class SFTConfig(LoRAOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that fine-tunes on chats."""

    name: str = "sft"
    validation: Validation = None
    evaluate_every: EvaluateEvery = 0


class DPOOptions(LoRAOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How preferences are learned."""

    beta: Beta = 0.1
    loss_type: Annotated[DPOLoss, Meta(description="sigmoid, ipo, or sigmoid_norm (by the length of the answers).")] = "sigmoid"


class DPOConfig(DPOOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that learns preferences."""

    name: str = "dpo"
    validation: Validation = None
    evaluate_every: EvaluateEvery = 0


class KTOOptions(LoRAOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How rated answers are learned."""

    beta: Beta = 0.1
    good_weight: Annotated[float, Meta(ge=0, description="Weight of answers that were rated good.")] = 1.0
    bad_weight: Annotated[float, Meta(ge=0, description="Weight of the others.")] = 1.0


class KTOConfig(KTOOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that learns from rated answers."""

    name: str = "kto"
    validation: Validation = None
    evaluate_every: EvaluateEvery = 0


class GRPOOptions(LoRAOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How rewards are learned."""

    num_generations: Annotated[int, Meta(gt=1, description="Answers to a prompt, which are compared.")] = 8
    max_completion_length: Annotated[int, Meta(gt=0, description="Tokens of an answer.")] = 32
    temperature: Annotated[float, Meta(gt=0, le=2, description="Of the draws.")] = 1.0
    loss_type: Annotated[GRPOLoss, Meta(description="What the sum over tokens is divided by.")] = "dapo"
    scale_rewards: Annotated[bool | None, Meta(description="Divide by a group's deviation; by default all but dr_grpo do.")] = None
    epsilon: Annotated[float, Meta(gt=0, lt=1, description="How far a ratio may fall below 1.")] = 0.2
    epsilon_high: Annotated[float | None, Meta(description="How far it may rise above 1; by default as far.")] = None
    kl_beta: Annotated[float, Meta(ge=0, description="Weight of the KL divergence from the first weights, kept for it.")] = 0.0
    num_iterations: Annotated[int, Meta(gt=0, description="Steps on the same answers.")] = 1
    importance_sampling: Annotated[
        ImportanceSampling | None,
        Meta(description="Correction for the sampler; by default sequence_mask, and token_truncate for stored answers."),
    ] = None
    importance_cap: Annotated[float, Meta(gt=0, description="The most that an answer or token may weigh by it.")] = 3.0
    validation_prompts: Annotated[int, Meta(gt=0, description="Prompts that are kept for the evaluation.")] = 64


class RewardSource(Struct, frozen=True):
    """What rewards answers, and where the prompts are from."""

    rewards: Annotated[str, Meta(description="A Python file with functions named reward..., or reasoning-gym:TASK.")] = ""
    data: Annotated[str, Meta(description="Rows with a prompt; by default those that the rewards bring.")] = ""
    stored: Annotated[
        str, Meta(description="Answers that were stored with log-probabilities, in a feedback database or rows; none are drawn.")
    ] = ""

    @property
    def prompts(self) -> str:
        return self.data or self.rewards


class GRPOConfig(GRPOOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that learns from rewards."""

    rewards: Annotated[str, Meta(description="A Python file with rewards, or reasoning-gym:NAME.")]
    name: str = "grpo"
    evaluate_every: EvaluateEvery = 0


class StoredGRPOConfig(GRPOOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that learns from rewards of stored answers."""

    name: str = "stored_grpo"
    evaluate_every: EvaluateEvery = 0


class TuneSettings(Struct, frozen=True):
    """How long and how fast a model is tuned."""

    steps: Annotated[Count, Meta(description="Steps of the optimizer.")] = 20
    seq_len: Annotated[SeqLen, Meta(description="Tokens in a row; longer chats lose their end.")] = 128
    batch_size: Annotated[Count, Meta(description="Rows in a step.")] = 4
    learning_rate: Annotated[LearningRate | None, Meta(description="Of a hidden matrix of the base width, at the peak.")] = None
    max_epochs: Annotated[Positive, Meta(description="How often a chat may be read.")] = 4.0
    held_out: Annotated[float, Meta(gt=0, lt=0.5, description="Share of users kept for the gate; as many for validation.")] = 0.2
    seed: Annotated[Seed, Meta(description="Seed of the order of the chats.")] = 0
    rent_usd_per_h: Rent = 0.0


Checkers = Annotated[File | None, Meta(description="A Python file with functions named check..., that rows name as `checker`.")]
Safety = Annotated[File | None, Meta(description="Prompts that are harmful or look so; by default 72 in English and Hindi.")]


class EvaluateOptions(Struct, frozen=True):
    """What a model is asked of one's own."""

    data: Annotated[tuple[Path, ...], Meta(description="Files of rows with a prompt, and an ideal answer or a checker.")] = ()
    checkers: Checkers = None
    corpus: Annotated[Path | None, Meta(description="Chats that were learned; by default those of the generation.")] = None
    safety: Safety = None


class GateSettings(Struct, frozen=True):
    """What a generation must not be worse in."""

    evaluations: Annotated[tuple[Path, ...], Meta(description="Files of prompts with ideal answers or checkers.")] = ()
    checkers: Checkers = None
    safety: Safety = None
    max_slowdown: Annotated[Positive, Meta(description="Times the processor's time of the other model.")] = 1.25
    max_growth: Annotated[Positive, Meta(description="Times its parameters.")] = 1.25
    allow: Annotated[tuple[str, ...], Meta(description="Checks by name that are reported, and refuse nothing.")] = ()


class TaskOptions(Struct, frozen=True):
    """Tasks of lm-eval."""

    tasks: Annotated[tuple[str, ...], Meta(description="Names of lm-eval's tasks, or of one's own, with commas between.")] = ()
    include_path: Annotated[Folder | None, Meta(description="A folder of task files (YAML) of one's own.")] = None
    num_fewshot: Annotated[int | None, Meta(ge=0, description="Examples before each question; by default the task's own.")] = None
    limit: Annotated[int, Meta(ge=0, description="Documents of each task; 0 takes all.")] = 0
    apply_chat_template: Annotated[bool, Meta(description="Ask in the model's chat template.")] = False
    api: Annotated[str, Meta(description="A server that answers in place of this process, as http://127.0.0.1:8000.")] = ""
