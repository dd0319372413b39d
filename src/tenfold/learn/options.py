"""The settings of this room's tasks, apart from their code, so that the command line can list its options without PyTorch."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from tenfold.spec.commands import File, Folder
from tenfold.spec.ranges import Count, LearningRate, NotNegative, Positive, Seed, SeqLen, Text

RELEASE = "release.json"  # in a home; names the generation in service

Kind = Literal["sft", "dpo", "kto"]
Bits = Literal["int8", "int4"]
DPOLoss = Literal["sigmoid", "ipo", "sigmoid_norm"]
GRPOLoss = Literal["dapo", "dr_grpo", "bnpo", "grpo"]
ImportanceSampling = Literal["sequence_mask", "sequence_truncate", "token_mask", "token_truncate", "none"]

Validation = Annotated[str | None, Meta(description="File of rows to evaluate on; by default every tenth row of the corpus.")]
EvaluateEvery = Annotated[int, Meta(ge=0, description="Steps between evaluations; 0 evaluates at the end only.")]
Rent = Annotated[
    NotNegative, Meta(description="Rent of the machine in USD per hour, for the forecast; 0 counts the electricity instead.")
]
Beta = Annotated[float, Meta(gt=0, description="The larger, the closer the model stays to its first weights; 0.1 is usual.")]


LoRARank = Annotated[int, Meta(ge=0, description="Rank of the adapters (LoRA); 0 trains all weights.")]


class LoRAOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether all weights are trained, or adapters (LoRA) beside frozen weights."""

    lora_rank: LoRARank = 0
    lora_alpha: Annotated[float | None, Meta(description="Scale of the adapters times the rank; by default twice the rank.")] = None
    quantization: Annotated[
        Bits | None, Meta(description="Bits of the frozen weights of the layers (QLoRA); by default they stay floats.")
    ] = None
    adapter: Annotated[Text | None, Meta(description="A folder with an adapter of PEFT, whose training is continued.")] = None


class SFTConfig(LoRAOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that fine-tunes on chats."""

    name: str = "sft"
    validation: Validation = None
    evaluate_every: EvaluateEvery = 0


class DPOOptions(LoRAOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How preferences are learned."""

    beta: Beta = 0.1
    loss_type: Annotated[
        DPOLoss, Meta(description="sigmoid, ipo, or sigmoid_norm (log-ratios divided by the length of the answers).")
    ] = "sigmoid"


class DPOConfig(DPOOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that learns preferences."""

    name: str = "dpo"
    validation: Validation = None
    evaluate_every: EvaluateEvery = 0


class KTOOptions(LoRAOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How rated answers are learned."""

    beta: Beta = 0.1
    good_weight: Annotated[float, Meta(ge=0, description="Weight of the loss of answers that were rated good.")] = 1.0
    bad_weight: Annotated[float, Meta(ge=0, description="Weight of the loss of the other answers.")] = 1.0


class KTOConfig(KTOOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that learns from rated answers."""

    name: str = "kto"
    validation: Validation = None
    evaluate_every: EvaluateEvery = 0


class GRPOOptions(LoRAOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the model learns from rewards."""

    num_generations: Annotated[
        int, Meta(gt=1, description="Answers drawn for each prompt, whose rewards are compared with each other.")
    ] = 8
    max_completion_length: Annotated[int, Meta(gt=0, description="Tokens of an answer, at most.")] = 32
    temperature: Annotated[float, Meta(gt=0, le=2, description="Temperature at which answers are drawn.")] = 1.0
    loss_type: Annotated[GRPOLoss, Meta(description="What the sum of the token losses is divided by, as in TRL.")] = "dapo"
    scale_rewards: Annotated[
        bool | None,
        Meta(description="Divide rewards by their standard deviation in the group; by default yes, but not for dr_grpo."),
    ] = None
    epsilon: Annotated[
        float, Meta(gt=0, lt=1, description="How far a probability ratio may fall below 1 before it is clipped.")
    ] = 0.2
    epsilon_high: Annotated[
        float | None, Meta(description="How far a ratio may rise above 1; by default as far as it may fall (--epsilon).")
    ] = None
    kl_beta: Annotated[
        float,
        Meta(ge=0, description="Weight of the KL divergence from the first weights; above 0 a copy of them is kept in memory."),
    ] = 0.0
    num_iterations: Annotated[int, Meta(gt=0, description="Steps that learn from the same answers.")] = 1
    importance_sampling: Annotated[
        ImportanceSampling | None,
        Meta(description="Correction for answers of another sampler; by default sequence_mask, for stored answers token_truncate."),
    ] = None
    importance_cap: Annotated[
        float, Meta(gt=0, description="Largest importance weight of a token or an answer; above it the weight is cut or set to 0.")
    ] = 3.0
    validation_prompts: Annotated[int, Meta(gt=0, description="Prompts that are held out for the evaluation.")] = 64


class RewardSource(Struct, frozen=True):
    """Where the rewards and the prompts come from."""

    rewards: Annotated[
        str, Meta(description="A Python file with functions whose names begin with reward, or reasoning-gym:TASK.")
    ] = ""
    data: Annotated[str, Meta(description="File of rows with a prompt; by default the prompts of --rewards.")] = ""
    stored: Annotated[
        str, Meta(description="Learn from stored answers with log-probabilities (feedback database or file of rows) and draw none.")
    ] = ""

    @property
    def prompts(self) -> str:
        return self.data or self.rewards


class GRPOConfig(GRPOOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that learns from rewards."""

    rewards: Annotated[str, Meta(description="A Python file with functions whose names begin with reward, or reasoning-gym:NAME.")]
    name: str = "grpo"
    evaluate_every: EvaluateEvery = 0


class StoredGRPOConfig(GRPOOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[task]` of a run that learns from stored answers and their rewards."""

    name: str = "stored_grpo"
    evaluate_every: EvaluateEvery = 0


class TuneSettings(Struct, frozen=True):
    """How long and how fast a model is tuned."""

    steps: Annotated[Count, Meta(description="Steps of the optimizer.")] = 20
    seq_len: Annotated[SeqLen, Meta(description="Tokens in a row; longer chats lose their end.")] = 128
    batch_size: Annotated[Count, Meta(description="Rows in a step.")] = 4
    learning_rate: Annotated[
        LearningRate | None,
        Meta(description="Peak learning rate of a hidden matrix of the base width; by default that of the task."),
    ] = None
    max_epochs: Annotated[
        Positive, Meta(description="How often a row may be read; a run that would read it more often is refused.")
    ] = 4.0
    held_out: Annotated[
        float, Meta(gt=0, lt=0.5, description="Share of the users held out for the gate; the same share is for validation.")
    ] = 0.2
    seed: Annotated[Seed, Meta(description="Seed of the order of the rows.")] = 0
    rent_usd_per_h: Rent = 0.0


Checkers = Annotated[
    File | None, Meta(description="A Python file with functions whose names begin with check, which rows name as `checker`.")
]
Safety = Annotated[
    File | None, Meta(description="File of harmful prompts and harmless look-alikes; by default 72 rows in English and Hindi.")
]


class EvaluateOptions(Struct, frozen=True):
    """What a model is evaluated on."""

    data: Annotated[tuple[Path, ...], Meta(description="Files of rows with a prompt, and an ideal answer or a checker.")] = ()
    checkers: Checkers = None
    corpus: Annotated[
        Path | None, Meta(description="Training data, whose prompts are left out; by default that of the generation.")
    ] = None
    safety: Safety = None


class GateSettings(Struct, frozen=True):
    """What the gate checks beside people's judgements, and its limits."""

    evaluations: Annotated[tuple[Path, ...], Meta(description="Files of prompts with ideal answers or checkers.")] = ()
    checkers: Checkers = None
    safety: Safety = None
    max_slowdown: Annotated[Positive, Meta(description="Largest processor time, as a multiple of that of the other model.")] = 1.25
    max_growth: Annotated[Positive, Meta(description="Largest number of parameters, as a multiple of that of the other model.")] = (
        1.25
    )
    allow: Annotated[tuple[str, ...], Meta(description="Names of checks that are reported but do not refuse the generation.")] = ()


class TaskOptions(Struct, frozen=True):
    """Tasks of lm-eval."""

    tasks: Annotated[tuple[str, ...], Meta(description="Names of lm-eval's tasks or of your own, separated by commas.")] = ()
    include_path: Annotated[Folder | None, Meta(description="A folder with your own task files (YAML).")] = None
    num_fewshot: Annotated[int | None, Meta(ge=0, description="Examples before each question; by default the task's own.")] = None
    limit: Annotated[int, Meta(ge=0, description="Documents of each task, from the first on; 0 takes all.")] = 0
    apply_chat_template: Annotated[bool, Meta(description="Write the questions in the model's chat template.")] = False
    api: Annotated[
        str, Meta(description="Address of a server that answers in place of this process, e.g. http://127.0.0.1:8000.")
    ] = ""
