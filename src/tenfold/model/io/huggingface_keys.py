"""The known keys of a `config.json`. A key in none of these lists is refused, because it might change the model."""

READ = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "tie_word_embeddings", "max_position_embeddings", "rope_theta", "rope_parameters", "rope_scaling",
    "rms_norm_eps", "attention_bias", "mlp_bias",
)  # fmt: skip

# Keys with the values that are supported.
FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "pruned_heads": ({},),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
}

# For each rope_type: the keys of its rope scaling, and the fields of `RopeScaling` that they set.
_ORIGINAL = {"factor": "factor", "original_max_position_embeddings": "original_context"}
ROPE_KEYS: dict[str, dict[str, str]] = {
    "llama3": _ORIGINAL | {"low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"},
    "linear": _ORIGINAL,
    "dynamic": _ORIGINAL,
    "yarn": _ORIGINAL | {key: key for key in ("attention_factor", "beta_fast", "beta_slow", "truncate")},
}

# Keys without effect on the logits of a text: names, token ids, sampling, training, storage. Most are fields of
# `PretrainedConfig`, which earlier versions of transformers wrote in full.
HARMLESS = frozenset((
    "architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "name_or_path", "tokenizer_class", "prefix",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id",
    "begin_suppress_tokens", "suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids",
    "initializer_range", "attention_dropout", "pretraining_tp", "use_cache", "chunk_size_feed_forward", "torchscript",
    "use_bfloat16", "return_dict", "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores",
    "remove_invalid_values", "attn_implementation", "finetuning_task", "id2label", "label2id", "num_labels", "problem_type",
    "task_specific_params", "tf_legacy_loss", "tie_encoder_decoder", "is_decoder", "cross_attention_hidden_size",
    "model_max_length", "max_sequence_length", "max_length", "min_length", "do_sample", "early_stopping", "num_beams",
    "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences",
    "exponential_decay_length_penalty", "is_llama_config", "transformers.js_config", "unsloth_fixed", "unsloth_version",
    "for_llm_compressor", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise",
))  # fmt: skip
