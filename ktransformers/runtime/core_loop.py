"""What of transformers' generation settings the core's own loop can do.

transformers has turned the settings into logits processors and stopping criteria by the time this
is asked; they are what counts, whoever made them.
"""

import torch
from transformers.generation import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ktransformers import _core

# In the order in which the core's sampler applies them.
ORDER = (
    RepetitionPenaltyLogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
)
SAMPLED_ONLY = ORDER[3:]
TENSORS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def core_options(
    input_ids: torch.Tensor, attention_mask, processors, criteria, config, streamer
) -> _core.GenerateOptions | None:
    """The core's options for a call of transformers' `_sample`; None where it cannot do it all.

    A sampled run draws its seed from torch's generator, so that torch.manual_seed repeats it.
    """
    if any(getattr(config, name, None) for name in TENSORS):
        return None
    if streamer is not None and len(input_ids) > 1:
        return None
    options = _core.GenerateOptions()
    if not _stops(options, input_ids.shape[1], criteria):
        return None
    sampling = _core.SamplingOptions()
    sampling.greedy = not config.do_sample
    if not _processors(options, sampling, input_ids.shape[1], processors):
        return None
    if not all(_skips_padding_only(one, attention_mask) for one in processors):
        return None
    if config.do_sample:
        sampling.seed = int(torch.randint(1 << 62, (1,)))
    options.sampling = sampling
    return options


def _stops(options, columns: int, criteria) -> bool:
    room, ids = None, []
    for one in criteria:
        if type(one) is MaxLengthCriteria:
            room = min(one.max_length - columns, room if room is not None else one.max_length)
        elif type(one) is EosTokenCriteria:
            ids += [int(i) for i in one.eos_token_id.reshape(-1)]
        else:
            return False
    if room is None or room < 1:
        return False
    options.max_new_tokens, options.stop_ids = room, ids
    return True


def _processors(options, sampling, columns: int, processors) -> bool:
    places = [ORDER.index(type(one)) if type(one) in ORDER else -1 for one in processors]
    if -1 in places or places != sorted(set(places)):
        return False
    for one in processors:
        if isinstance(one, SAMPLED_ONLY) and sampling.greedy:
            return False
        if getattr(one, "min_tokens_to_keep", 1) != 1:
            return False
        if getattr(one, "filter_value", -float("inf")) != -float("inf"):
            return False
        if isinstance(one, RepetitionPenaltyLogitsProcessor):
            sampling.repetition_penalty = one.penalty
        elif isinstance(one, MinLengthLogitsProcessor):
            if not _same_stops(one, options):
                return False
            options.min_new_tokens = max(options.min_new_tokens, one.min_length - columns)
        elif isinstance(one, MinNewTokensLengthLogitsProcessor):
            if not _same_stops(one, options):
                return False
            options.min_new_tokens = max(options.min_new_tokens, one.min_new_tokens)
        elif isinstance(one, TemperatureLogitsWarper):
            sampling.temperature = one.temperature
        elif isinstance(one, TopKLogitsWarper):
            sampling.top_k = one.top_k
        elif isinstance(one, TopPLogitsWarper):
            sampling.top_p = one.top_p
        elif isinstance(one, MinPLogitsWarper):
            sampling.min_p = one.min_p
    return True


def _skips_padding_only(processor, mask) -> bool:
    """Whether a penalty counts the whole prompt, as the core's does, which is given no padding."""
    skipped = getattr(processor, "prompt_ignore_length", None)
    if skipped is None or mask is None or isinstance(skipped, int):
        return not torch.as_tensor(0 if skipped is None else skipped).any()
    return torch.equal(skipped.cpu(), (mask != 0).int().argmax(dim=1).to(skipped.dtype).cpu())


def _same_stops(processor, options) -> bool:
    """Whether a minimum length forbids exactly the ids that end a sequence."""
    return {int(i) for i in processor.eos_token_id.reshape(-1)} == set(options.stop_ids)
