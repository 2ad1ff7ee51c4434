"""Upstream's helpers at upstream's address."""

from typing import Any

from ktransformers.errors import UserError

FALLBACK = {"temperature": 0.6, "top_p": 0.95}  # where the model's makers recommend nothing
SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
            "repetition_penalty": "repeat_penalty"}  # fmt: skip


def prefill_and_generate(
    model: Any,
    tokenizer: Any,
    inputs: Any,
    max_new_tokens: int = 10000,
    use_cuda_graph: bool = True,
    mode: str = "normal",
    force_think: bool = False,
    chunk_size: int = 16384,
    use_flashinfer_mla: bool = False,
    num_heads: int | None = None,
    head_dim_ckv: int | None = None,
    head_dim_kpe: int | None = None,
    q_head_dim: int | None = None,
    chunk_prefill_size: int | None = None,
) -> list[int]:
    """Answers one prompt, printing text as it comes and then upstream's six lines of statistics.

    inputs: token ids [1, length]. Sampling is that of model.generation_config, else temperature
    0.6 and top_p 0.95; its do_sample=False is greedy. What concerns a GPU is not looked at.
    Returns the new token ids, without the id that ended the answer.
    Raises: UserError for more than one prompt, and a prompt that does not fit the cache.
    """
    from ktransformers.checkpoint.stream_decoder import StreamDecoder
    from ktransformers.cli.conversation import THINK, Turn
    from ktransformers.runtime.session import ChatSession, SamplingOptions

    if len(inputs.shape) != 2 or inputs.shape[0] != 1:
        raise UserError(f"prefill_and_generate: inputs of shape {list(inputs.shape)}: one prompt")
    ids = inputs[0].tolist()
    if force_think:
        ids += tokenizer.encode(THINK, add_special_tokens=False)
        print(THINK, end="", flush=True)
    if len(ids) >= model.cache_lens:
        raise UserError(
            f"the prompt has {len(ids)} tokens, the cache holds {model.cache_lens} with the answer;"
            " raise cache_lens"
        )
    config = model.generation_config
    ends = config.eos_token_id
    sampling = SamplingOptions(
        max_new_tokens=min(max_new_tokens, model.cache_lens - len(ids)),
        stop_ids=tuple(ends if isinstance(ends, list) else [] if ends is None else [ends]),
        **_sampling(config),
    )
    session, decoder, tokens = ChatSession(model, tokenizer), StreamDecoder(tokenizer), []
    session.chunk = max(1, chunk_prefill_size or chunk_size)
    session.append(ids)
    for token in session.generate(sampling):
        tokens.append(token)
        print(decoder.push(token), end="", flush=True)
    print(decoder.finish())
    stats = session.stats
    print()
    turn = Turn(stats.prompt_count, stats.prompt_seconds, stats.eval_count, stats.eval_seconds)
    print("\n".join(turn.lines()))
    return tokens


def _sampling(config: Any) -> dict[str, Any]:
    """Arguments of SamplingOptions from a transformers generation config."""
    if config.do_sample is False:
        return {"temperature": 0.0}
    values = {ours: getattr(config, theirs, None) for theirs, ours in SAMPLING.items()}
    return {name: value for name, value in values.items() if value is not None} or FALLBACK
