"""Other projects' tests for `tenfold serve`: which are left out or fail by intent, and why."""

# OpenAI's client: for each test file of a served resource, a pattern of the tests that fail by intent. They use objects that were
# never created; `echo` with log-probabilities in the strict client, whose types have no null for the first token; embeddings
# without a format in it, which requests base64 and then expects numbers; web search; prompt objects; a conversation together with a
# previous response, or one that was never created; and two missing routes: deleting a model, and listing a response's input items.
OPENAI = {
    "chat/test_completions.py": "delete|retrieve|update|create_with_all_params",
    "chat/completions/test_messages.py": "list",
    "test_completions.py": "create_with_all_params_overload_1",
    "test_models.py": "delete",
    "test_embeddings.py": "create",
    "test_responses.py": "retrieve|delete|cancel|compact_with_all_params|create_with_all_params",
    "responses/test_input_tokens.py": "count_with_all_params",
    "responses/test_input_items.py": "list",
    "test_conversations.py": "delete|retrieve|update",
    "conversations/test_items.py": "create|delete|list|retrieve",
}

# llama.cpp's server: patterns of tests that are left out, by reason.
LLAMA_CPP = {
    "its own routes: /completion, /slots, /props, /infill, /lora-adapters, /predict, its router, its proxy, MCP, its tools": (
        r"test_(ctx_shift|ignore_eos|infill|kv_keep_only_active|lora|mcp_servers|metrics|proxy|router|sleep|slot_save|speculative"
        r"|stream|tools_builtin|compat_gcp)\.py.*",
        r"test_basic\.py::test_server_(props|slots)",
        r"test_completion\.py::test_(completion(_stream)?\[.*|cache_vs.*|json_prompt.*|cancel_request)",
        r"test_completion\.py::test_completion_(with_tokens_input|unified.*|response_fields.*|prompt_cache)",
        r"test_completion\.py::test_(n_probs.*|logit_bias\[(False.*|True-False\]))",
        r"test_security\.py::test_(access_static_assets.*|openai_library_correct.*|cors_proxy.*)",
        r"test_rerank\.py::test_rerank_tei.*",
        r"test_vision_api\.py::test_(models|v1_models|vision_chat_completion_token_count|vision_completion|vision_embeddings).*",
    ),
    "its own flags: names, tags, addresses, pooling, pages, built-in templates, templates' variables for the date": (
        r"test_template\.py::test_date_inside_prompt.*",
        r"test_basic\.py::test_(server_multiple_addresses|server_model_aliases_and_tags|no_ui)",
        r"test_embedding\.py::test_embedding_pooling_none.*",
        r"test_security\.py::test_cors.*",
        r"test_chat_completion\.py::test_(chat_template|apply_chat_template)",
    ),
    "its own fields and rules: grammar, json_schema, verbose, timings, return_progress; prompts as objects; words of errors; no two"
    " answers at the end; null for the empty text of OpenAI's first chunk": (
        r"test_chat_completion\.py::test_(logprobs_stream|invalid_chat_completion_req\[messages7\])",
        r"test_chat_completion\.py::test_(completion_with_(json_schema|grammar|invalid_grammar)|verbose_debug|return_progress).*",
        r"test_chat_completion\.py::test_(chat_completion_with_timings.*|context_size_exceeded.*)",
        r"test_chat_completion\.py::test_chat_template_(assistant_prefill.*|continue_final_message_vllm_compat)",
        r"test_compat_oai_responses\.py::test_responses_stream_with_llama_telemetry",
        r"test_embedding\.py::test_embedding_(content_text_same_as_string|error_prompt_too_long)",
        r"test_embedding\.py::test_embedding_mixed_input\[input(3|5|7|8|9|10)-.*",
        r"test_compat_anthropic\.py::test_anthropic_(vision_format_accepted|tool_result_with_image)",
    ),
    "its models, which are downloaded: what they say, how many tokens a text has, pictures": (
        r"test_basic\.py::test_load_split_model",
        r"test_chat_completion\.py::test_chat_completion(_stream)?\[.*",
        r"test_chat_completion\.py::test_completion_with_response_format\[response_format1-.*",
        r"test_chat_completion\.py::test_chat_completion_(with_openai_library|cached_tokens)",
        r"test_completion\.py::test_completion(_stream)?_with_openai_library.*",
        r"test_compat_oai_responses\.py::test_responses_(stream_)?with_openai_library",
        r"test_compat_anthropic\.py::test_anthropic_(vision_base64.*|thinking_with_reasoning_model.*)",
        r"test_embedding\.py::test_embedding_usage.*",
        r"test_tokenize\.py::test_tokenize_with_bos",
        r"test_rerank\.py::test_rerank(_usage.*)?",
        r"test_tool_call\.py::test_(completion_with_required_tool_real_model|weather|calc_result|thoughts|hello_world).*",
        r"test_vision_api\.py::test_vision_chat_completion\[.*-True-.*",
        r"test_security\.py::test_local_media_file\[.*-True\]",
    ),
    "refused here: thoughts that are asked for, no message at all, an empty text": (
        r"test_compat_anthropic\.py::test_anthropic_(thinking|empty_messages)",
        r"test_embedding\.py::test_embedding_mixed_input\[-False\]",
    ),
}
